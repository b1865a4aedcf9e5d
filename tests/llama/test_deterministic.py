"""Deterministic mode on a real tiny model: log-probabilities are the same to the last bit, whatever else runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from tests.models import TinyModel, write_model

from ocak.core.errors import LoadFailed
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.outputs import Sampled
from ocak.engine.runner import Logprobs
from ocak.engine.sequence import Sequence
from ocak.engine.window import Window
from ocak.worker.loading import LoadedModel, load
from ocak.worker.messages import LoadOptions
from ocak.worker.stopwatch import Stopwatch

CONTEXT, PARALLEL = 1024, 6
LENGTHS = (1, 2, 40, 64, 130, 600)
Told = list[tuple[int, Logprobs | None]]


def loaded(path: Path, **options: object) -> LoadedModel:
    settled = LoadOptions(path=str(path), context=CONTEXT, parallel=PARALLEL, threads=2, **options)  # type: ignore[arg-type]
    return load(settled, lambda _: None, Stopwatch())


@pytest.fixture(
    scope="module",
    params=[
        TinyModel(),
        TinyModel(is_quantized=True),
        TinyModel(num_experts=4),
        TinyModel(num_experts=4, is_quantized=True),
    ],
    ids=["f32", "q4_0", "experts", "experts q4_0"],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    path = write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", request.param)
    model = loaded(path, deterministic=True)
    yield model
    model.close()


def sequence(number: int, length: int, seed: int, root: str, max_tokens: int = 24) -> Sequence:
    tokens = [random.Random(seed).randrange(5, 250) for _ in range(length)]
    return Sequence(number, tokens, Sampling(temperature=0), max_tokens, frozenset(), num_logprobs=1, root=root)


def answer(engine: object, wanted: Sequence, others: list[Sequence], every: int = 1) -> Told:
    """Run the wanted one while another comes every few steps; end them all when it has ended."""
    assert isinstance(engine, Engine)
    told: Told = []
    coming, steps = list(others), 0
    engine.submit(wanted)
    while not wanted.is_finished:
        if coming and steps % every == 0:
            engine.submit(coming.pop())
        for output in engine.step():
            if isinstance(output, Sampled) and output.sequence is wanted:
                told.append((output.token, output.logprobs))
        engine.check_integrity()
        steps += 1
    for other in others:
        engine.finish(other)
    return told


def crowd(seed: int) -> list[Sequence]:
    chance = random.Random(seed)
    return [
        sequence(1000 * seed + n, chance.choice([1, 3, 70, 200]), chance.randrange(999), f"{seed}/{n}", 40)
        for n in range(1, 9)
    ]


@pytest.mark.parametrize("length", LENGTHS)
def test_an_answer_is_the_same_to_the_last_bit_alone_and_in_a_crowd(model: LoadedModel, length: int) -> None:
    alone = answer(model.engine, sequence(1, length, length, "alone"), [])
    assert len(alone) == 24
    for seed in (1, 2, 3):
        wanted = sequence(seed, length, length, f"crowd {seed}")
        assert answer(model.engine, wanted, crowd(seed), every=seed) == alone


@pytest.mark.parametrize("length", [40, 130, 600])
def test_an_answer_is_the_same_from_a_cached_prefix(model: LoadedModel, length: int) -> None:
    alone = answer(model.engine, sequence(1, length, length, "one root"), [])
    again = sequence(2, length, length, "one root")
    assert answer(model.engine, again, crowd(4)) == alone
    assert again.num_cached == length - 1


def test_an_answer_that_shifts_is_the_same(model: LoadedModel) -> None:
    def shifting(number: int) -> Sequence:
        tokens = [random.Random(7).randrange(5, 250) for _ in range(300)]
        window = Window(context=128, num_keep=16)
        return Sequence(
            number,
            tokens,
            Sampling(temperature=0),
            60,
            frozenset(),
            num_logprobs=1,
            root=str(number),
            window=window,
        )

    assert answer(model.engine, shifting(1), crowd(5)) == answer(model.engine, shifting(2), [])


def test_without_it_the_last_bits_do_differ(tiny_model: Path) -> None:
    """Or the tests above could not fail."""
    model = loaded(tiny_model)
    try:
        told = [answer(model.engine, sequence(n, 130, 130, str(n)), crowd(n) if n else []) for n in (0, 1, 2, 3)]
        assert any(other != told[0] for other in told[1:])
    finally:
        model.close()


def test_sequences_come_in_fours(model: LoadedModel) -> None:
    assert model.info.parallel == 8


@pytest.mark.parametrize(
    ("options", "named"), [({"kv_cells": 2048}, "kv-cells"), ({"flash_attn": "off"}, "flash-attn")]
)
def test_what_it_cannot_keep_its_promise_with_is_refused(
    tiny_model: Path, options: dict[str, object], named: str
) -> None:
    with pytest.raises(LoadFailed, match=named):
        loaded(tiny_model, deterministic=True, **options)


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
def test_a_model_that_cannot_lose_single_tokens_is_refused(
    tmp_path: Path, architecture: Literal["gemma2", "mamba"]
) -> None:
    path = write_model(tmp_path / "other.gguf", TinyModel(architecture=architecture))
    with pytest.raises(LoadFailed, match="single tokens"):
        loaded(path, deterministic=True)
