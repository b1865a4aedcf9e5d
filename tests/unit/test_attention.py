"""Which attention a model gets, where its owner leaves it open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.test_estimate import header

from ocak.llama.context import ContextOptions
from ocak.memory.estimate import score_bytes
from ocak.worker.attention import LONG, flash_attention

SIZES = ContextOptions(
    context=2 * LONG,
    parallel=4,
    kv_cells=8 * LONG,
    batch_tokens=512,
    threads=2,
    kv_type="f16",
    kv_offload=True,
    flash_attn="auto",
)
TOY = header()


def chosen(**changes: object) -> str:
    return flash_attention(replace(SIZES, **changes), TOY, is_on_cpu=True)  # type: ignore[arg-type]


def test_long_contexts_of_several_on_a_cpu_have_plain_attention() -> None:
    assert chosen() == "off"


@pytest.mark.parametrize(
    "changes",
    [
        {"context": LONG, "kv_cells": 4 * LONG},
        {"parallel": 1, "kv_cells": 2 * LONG},
        {"kv_cells": 3 * LONG},  # shared by all
        {"kv_type": "q8_0"},  # which plain attention cannot read
    ],
)
def test_others_are_llama_cpps_to_decide(changes: dict[str, object]) -> None:
    assert chosen(**changes) == "auto"


def test_a_gpu_has_kernels_of_its_own() -> None:
    assert flash_attention(SIZES, TOY, is_on_cpu=False) == "auto"


@pytest.mark.parametrize("asked", ["on", "off"])
def test_what_the_owner_asks_for_holds(asked: str) -> None:
    assert chosen(flash_attn=asked) == asked
    assert chosen(flash_attn=asked, context=512, kv_cells=2048) == asked


def test_scores_that_take_more_than_half_of_the_cache_are_not_kept() -> None:
    wide = header(attention__head_count=64, attention__head_count_kv=1)
    assert score_bytes(wide, 512, 8192) == 512 * 8192 * 64 * 4
    assert flash_attention(SIZES, wide, is_on_cpu=True) == "auto"
