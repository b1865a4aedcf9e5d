"""The estimate equals what llama.cpp allocates, and is honest where it cannot be exact."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import TinyModel, write_model, write_tiny_model

from ocak.core.errors import ConfigError, ModelFileError
from ocak.memory.estimate import KV_TYPES, KvBound, KvSettings, MemoryEstimate, estimate, kv_bytes
from ocak.memory.ggml_types import TYPE_BY_NAME
from ocak.memory.gguf_header import GgufHeader, GgufModel, MetadataValue, TensorInfo, read_model

ATTENTION: dict[str, MetadataValue] = {
    "block_count": 28,
    "embedding_length": 1024,
    "attention.head_count": 16,
    "attention.head_count_kv": 8,
}


def header(**changes: MetadataValue) -> GgufHeader:
    """A header of architecture `toy`: `ATTENTION` with changes (`__` for a dot); `None` is not a value."""
    values = ATTENTION | {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {"general.architecture": "toy"} | {f"toy.{key}": value for key, value in values.items()}
    weights = TensorInfo("w", (32,), "F32", 0, 128)
    return GgufHeader(Path("toy.gguf"), 3, "toy", 32, 64, 192, MappingProxyType(metadata), (weights,))


def run(**changes: MetadataValue) -> MemoryEstimate:
    return estimate(GgufModel((header(**changes),)), KvSettings(4096))


def test_qwen3_06b_takes_its_known_kv_bytes() -> None:
    """28 layers, 8 heads of 128: 448 MiB at 4096 cells in f16, as llama.cpp logs."""
    result = run(attention__key_length=128, attention__value_length=128)
    assert result.kv_bytes == 448 << 20
    assert result.kv_bound is KvBound.EXACT
    assert result.weights_bytes == 128
    assert result.total_bytes == result.weights_bytes + result.kv_bytes


def test_head_lengths_default_to_an_equal_share_of_the_embedding() -> None:
    assert run().kv_bytes == 4096 * 28 * 2 * (8 * 64) * 2


def test_heads_may_differ_by_layer_and_be_none() -> None:
    heads = (8, 0, 4) + (0,) * 25
    assert run(attention__head_count_kv=heads).kv_bytes == 4096 * 12 * 64 * 2 * 2


def test_without_a_number_of_kv_heads_every_head_keeps_its_own() -> None:
    plain = header()
    metadata = {k: v for k, v in plain.metadata.items() if not k.endswith("head_count_kv")}
    one = GgufHeader(plain.path, 3, "toy", 32, 64, 192, MappingProxyType(metadata), plain.tensors)
    assert kv_bytes(one, KvSettings(256)) == 256 * 28 * 16 * 64 * 2 * 2


def test_latent_attention_keeps_keys_only() -> None:
    result = run(
        attention__head_count_kv=1,
        attention__key_length=576,
        attention__value_length=512,
        attention__key_length_mla=192,
        attention__value_length_mla=128,
    )
    assert result.kv_bytes == 4096 * 28 * 576 * 2


def test_a_sliding_window_makes_it_an_upper_bound() -> None:
    assert run(attention__sliding_window=512).kv_bound is KvBound.AT_MOST


def test_recurrent_layers_make_it_a_lower_bound() -> None:
    result = run(ssm__state_size=16, attention__head_count=0, attention__head_count_kv=0)
    assert (result.kv_bytes, result.kv_bound) == (0, KvBound.AT_LEAST)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"block_count": 10**6}, "limit is 512"),
        ({"block_count": "many"}, "whole number"),
        ({"embedding_length": 2**60}, "limit"),
        ({"attention.head_count_kv": (8, 8)}, "28 whole numbers"),
        ({"attention.head_count_kv": (-1,) * 28}, "28 whole numbers"),
    ],
)
def test_absurd_metadata_is_refused(changes: dict[str, MetadataValue], reason: str) -> None:
    with pytest.raises(ModelFileError, match=reason):
        run(**changes)


def test_missing_metadata_is_named() -> None:
    bare = GgufHeader(Path("bare.gguf"), 3, "toy", 32, 64, 192, MappingProxyType({}), ())
    with pytest.raises(ModelFileError, match="toy.attention.head_count is missing"):
        kv_bytes(bare, KvSettings(256))


def test_a_kv_type_that_does_not_fit_the_rows_is_refused_with_a_way_out() -> None:
    odd = header(attention__head_count_kv=1, attention__key_length=80, attention__value_length=80)
    with pytest.raises(ModelFileError, match="Choose f16") as caught:
        kv_bytes(odd, KvSettings(256, "q8_0", "q8_0"))
    assert caught.value.param == "kv_type"


@pytest.mark.parametrize(("cells", "kv_type"), [(0, "f16"), (-1, "f16"), (256, "q6_k"), (256, "")])
def test_settings_that_make_no_sense_are_refused(cells: int, kv_type: str) -> None:
    with pytest.raises(ConfigError):
        KvSettings(cells, kv_type)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from(KV_TYPES), st.sampled_from(KV_TYPES))
def test_more_cells_or_wider_types_never_cost_less(few: int, more: int, narrow: str, wide: str) -> None:
    few, more = sorted((few, more))
    narrow, wide = sorted((narrow, wide), key=lambda name: TYPE_BY_NAME[name.upper()].row_bytes(32))
    toy = header()
    assert kv_bytes(toy, KvSettings(few, narrow, narrow)) <= kv_bytes(toy, KvSettings(more, wide, wide))
    assert kv_bytes(toy, KvSettings(few, narrow, wide)) == kv_bytes(toy, KvSettings(few, wide, narrow))


def allocated_by_llama_cpp(path: Path, cells: int, kv_type: int) -> int:
    """Bytes of the KV cache that llama.cpp reports for one context, in a process of its own."""
    script = f"""
import ctypes, llama_cpp as lib
log = lib.llama_log_callback(lambda level, text, data: print(text.decode(), end=""))
lib.llama_log_set(log, ctypes.c_void_p(0))
model = lib.llama_model_load_from_file({str(path)!r}.encode(), lib.llama_model_default_params())
params = lib.llama_context_default_params()
params.n_ctx, params.type_k, params.type_v, params.flash_attn_type = {cells}, {kv_type}, {kv_type}, 1
params.n_seq_max = 1
lib.llama_free(lib.llama_init_from_model(model, params))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    match = re.search(r"K \(\w+\): +([\d.]+) MiB, V \(\w+\): +([\d.]+) MiB", done.stdout)
    assert match is not None, done.stdout
    return round((float(match[1]) + float(match[2])) * 2**20)


@pytest.mark.parametrize(("name", "type_id"), [("f16", 1), ("q8_0", 8), ("q4_0", 2), ("f32", 0)])
def test_the_estimate_is_what_llama_cpp_allocates(tmp_path: Path, name: str, type_id: int) -> None:
    pytest.importorskip("llama_cpp")
    path = write_model(tmp_path / "tiny.gguf", TinyModel(num_layers=3, num_heads=2, num_kv_heads=2))
    ours = estimate(read_model(path), KvSettings(1000, name, name)).kv_bytes
    assert abs(ours - allocated_by_llama_cpp(path, 1000, type_id)) <= 2 * 5300  # the log has two decimals


def test_the_weights_are_the_sum_of_the_tensors(tmp_path: Path) -> None:
    model = read_model(write_tiny_model(tmp_path / "tiny.gguf"))
    assert estimate(model, KvSettings(256)).weights_bytes == sum(t.num_bytes for t in model.header.tensors)
