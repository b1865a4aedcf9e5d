"""What kernels copy: as large as their largest operation, by hand."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest

from ocak.memory.gguf_header import GgufHeader, MetadataValue, TensorInfo
from ocak.memory.work_bytes import matrix_work, score_work

ROWS = 512


def header(**metadata: MetadataValue) -> GgufHeader:
    values = MappingProxyType({f"toy.{key}".replace("__", "."): value for key, value in metadata.items()})
    return GgufHeader(Path("toy.gguf"), 3, "toy", 32, 64, 192, values, ())


def tensor(name: str, shape: tuple[int, ...], ggml_type: str = "F16") -> TensorInfo:
    return TensorInfo(name, shape, ggml_type, 0, 0)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (tensor("blk.0.ffn_down.weight", (4864, 896)), 4864 * ROWS * 2),
        (tensor("blk.0.ffn_down.weight", (4864, 896), "Q4_0"), round(4864 * ROWS * 292 / 256)),
        (tensor("blk.0.ffn_down.weight", (4864, 896), "F32"), 0),  # what it multiplies is float32 already
        (tensor("blk.0.attn_k_b.weight", (128, 512, 16)), 128 * 16 * ROWS * 2),  # one for each head
        (tensor("blk.0.ffn_up_exps.weight", (2048, 768, 128)), 2048 * ROWS * 2 + 128 * 8 * ROWS * 8),
        (tensor("blk.0.ffn_down_exps.weight", (768, 2048, 128)), 8 * 768 * ROWS * 2 + 128 * 8 * ROWS * 8),
        (tensor("token_embd.weight", (99_999, 150_000)), 0),  # its rows are looked up; few have logits
    ],
    ids=lambda value: value.name if isinstance(value, TensorInfo) else "",
)
def test_a_matrix_has_its_inputs_copied_into_the_type_it_multiplies(matrix: TensorInfo, expected: int) -> None:
    one = header(expert_used_count=8)
    assert matrix_work(one, [matrix], ROWS) == expected
    small = tensor("blk.0.attn_q.weight", (32, 32))
    assert matrix_work(one, [small, matrix], ROWS) == max(expected, 32 * ROWS * 2)


def test_plain_attention_has_half_its_scores_copied_unless_values_are_float32() -> None:
    one = header(attention__head_count=14)
    assert score_work(one, ROWS, 32_768, "f16") == ROWS * 32_768 * 14 * 2
    assert score_work(one, ROWS, 32_768, "f32") == 0
    assert score_work(header(), ROWS, 32_768, "f16") == 0  # a model without attention
