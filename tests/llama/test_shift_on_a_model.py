"""Shifting on a tiny real model: nobody else is touched, and what stays is what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as c
from tests.models import TinyModel, write_model

from ocak.core.errors import LoadFailed
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.outputs import Sampled
from ocak.engine.runner import Aborted, Chunk
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.window import Window
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.worker.loading import load
from ocak.worker.messages import LoadOptions
from ocak.worker.stopwatch import Stopwatch

GREEDY = Sampling(temperature=0)
CONTEXT = 64
SPLIT, UNIFIED = CONTEXT * 4, CONTEXT * 3
LONG = [(7 * i + i * i // 3) % 240 + 1 for i in range(300)]
SHORT = [[(11 * i + j * j) % 240 + 1 for j in range(8 + 5 * i)] for i in range(3)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    with loaded(tiny_model) as model:
        yield model


@contextmanager
def loaded(path: Path) -> Iterator[LlamaModel]:
    library.initialise()
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    yield model
    model.close()


def options(kv_cells: int = SPLIT, **changes: object) -> ContextOptions:
    settings: dict[str, object] = {
        "context": CONTEXT,
        "parallel": 4,
        "kv_cells": kv_cells,
        "batch_tokens": 48,
        "threads": 1,
        "kv_type": "f16",
        "kv_offload": True,
        "flash_attn": "auto",
    }
    return ContextOptions(**(settings | changes))  # type: ignore[arg-type]


def engine_of(model: LlamaModel, context: LlamaContext, sizes: ContextOptions) -> Engine:
    limits = SchedulerLimits(
        parallel=sizes.parallel,
        context=sizes.context,
        num_cells=sizes.kv_cells,
        batch_tokens=sizes.batch_tokens,
        num_slots=sizes.num_slots,
        shares_cells=sizes.is_unified,
        reuse=context.reuse,
        keeps_prefixes=True,
        moves_cells=context.moves_cells,
    )
    return Engine(LlamaRunner(context, model.vocabulary), limits)


def sequence(index: int, prompt: list[int], *, keep: int | None, max_tokens: int = 24) -> Sequence:
    window = None if keep is None else Window(CONTEXT, keep)
    return Sequence(index, list(prompt), GREEDY, max_tokens, frozenset(), window=window)


def run(engine: Engine, sequences: list[Sequence]) -> list[list[int]]:
    """Let each arrive two steps after the one before; return the answers."""
    answers: list[list[int]] = [[] for _ in sequences]

    def step() -> None:
        for output in engine.step():
            if isinstance(output, Sampled):
                answers[output.sequence.id].append(output.token)
        engine.check_integrity()

    for each in sequences:
        engine.submit(each)
        step()
        step()
    while engine.has_work:
        step()
    return answers


def serve(model: LlamaModel, sequences: list[Sequence], sizes: ContextOptions) -> list[list[int]]:
    context = LlamaContext(model, sizes)
    try:
        return run(engine_of(model, context, sizes), sequences)
    finally:
        context.close()


def alone(model: LlamaModel, make: Callable[[], Sequence], sizes: ContextOptions | None = None) -> list[int]:
    [answer] = serve(model, [make()], sizes or options(CONTEXT, parallel=1))
    return answer


@pytest.mark.parametrize("kv_cells", [SPLIT, UNIFIED], ids=["split", "unified"])
@pytest.mark.parametrize("kv_type", ["f16", "f32", "bf16", "q8_0", "q4_0"])
def test_neighbours_of_a_shifting_sequence_answer_as_if_they_were_alone(
    model: LlamaModel, kv_cells: int, kv_type: str
) -> None:
    sizes = options(kv_cells, kv_type=kv_type, flash_attn="on")
    single = options(CONTEXT, parallel=1, kv_type=kv_type, flash_attn="on")
    neighbours = [lambda i=i, prompt=prompt: sequence(i, prompt, keep=None) for i, prompt in enumerate(SHORT)]
    expected = [alone(model, lambda make=make: renamed(make(), 0), single) for make in neighbours]
    shifting = sequence(3, LONG, keep=8, max_tokens=80)
    answers = serve(
        model, [renamed(shifting, 0), *(renamed(make(), i + 1) for i, make in enumerate(neighbours))], sizes
    )
    assert answers[1:] == expected
    assert shifting.num_dropped == Window(CONTEXT, 8).num_dropped(len(LONG) + 79)


def renamed(sequence: Sequence, index: int) -> Sequence:
    sequence.id = index
    return sequence


@pytest.mark.parametrize("first_keep", [0, 8, 20])
def test_sequences_that_share_cells_are_unharmed_when_one_of_them_shifts(
    model: LlamaModel, first_keep: int
) -> None:
    """They begin alike far beyond what the first keeps: in the unified layout these are the same cells."""
    shared = LONG[:50]
    first = sequence(0, [*shared, 5], keep=first_keep, max_tokens=120)
    others = [
        sequence(1, [*shared, 9], keep=None, max_tokens=10),
        sequence(2, [*shared, 7], keep=None, max_tokens=10),
    ]
    expected = [alone(model, lambda o=o: sequence(0, o.tokens, keep=None, max_tokens=10)) for o in others]
    answers = serve(model, [first, *others], options(UNIFIED))
    assert others[0].num_cached == others[1].num_cached == len(shared), "cells were shared"
    assert answers[1:] == expected
    assert first.num_dropped > 0


@pytest.mark.parametrize("kv_cells", [SPLIT, UNIFIED], ids=["split", "unified"])
def test_a_prompt_is_shifted_alike_in_every_layout_and_chunking(model: LlamaModel, kv_cells: int) -> None:
    expected = alone(model, lambda: sequence(0, LONG, keep=8))
    assert alone(model, lambda: sequence(0, LONG, keep=8), options(kv_cells)) == expected
    assert alone(model, lambda: sequence(0, LONG, keep=8), options(kv_cells, batch_tokens=4)) == expected


def test_moved_keys_are_those_that_would_be_computed_there(tmp_path: Path) -> None:
    """With one layer a key depends on its own token and place alone, so shifting and computing anew agree."""
    path = write_model(tmp_path / "one.gguf", TinyModel(num_layers=1))
    long, sizes = LONG[:290], options(CONTEXT, parallel=1, kv_type="f32")
    left = [*long[:8], *long[8 + Window(CONTEXT, 8).num_dropped(len(long)) :]]
    assert len(left) + 20 < CONTEXT
    with loaded(path) as model:
        shifted = alone(model, lambda: sequence(0, long, keep=8, max_tokens=20), sizes)
        anew = alone(model, lambda: sequence(0, left, keep=None, max_tokens=20), sizes)
    assert shifted == anew


def test_kept_tokens_are_a_prefix_for_others_after_a_shift(model: LlamaModel) -> None:
    context = LlamaContext(model, options())
    engine = engine_of(model, context, options())
    run(engine, [sequence(0, LONG, keep=30)])
    expected = alone(model, lambda: sequence(0, [*LONG[:40], 3], keep=None))
    again = sequence(0, [*LONG[:40], 3], keep=None)
    assert run(engine, [again])[0] == expected
    assert again.num_cached == 30
    context.close()


def test_the_pass_that_rotates_the_keys_is_not_cut_short(
    model: LlamaModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short, it would leave half of the keys rotated, and rotate them again."""
    context = LlamaContext(model, options(CONTEXT, parallel=1))
    runner = LlamaRunner(context, model.vocabulary)
    runner.run([Chunk(0, 0, LONG[:40], None)])
    monkeypatch.setattr(library.abort_wanted, "clear", context.abort)  # which comes as soon as a pass begins
    runner.shift(0, 4, 8)
    runner.run([Chunk(0, 32, [3], None)])
    with pytest.raises(Aborted):
        runner.run([Chunk(0, 33, [3], None)])
    context.close()


@pytest.mark.parametrize("kv_type", sorted(library.KV_TYPES))
def test_cells_move_only_where_a_rotation_by_nothing_changes_nothing(model: LlamaModel, kv_type: str) -> None:
    context = LlamaContext(model, options(kv_type=kv_type, flash_attn="on"))
    assert context.moves_cells == (kv_type in ("f16", "f32"))
    context.close()


def keys_after_a_shift(model: LlamaModel, sizes: ContextOptions) -> tuple[bytes, bytes]:
    """The bytes of a neighbour's cells before and after another slot's cells were moved."""
    context = LlamaContext(model, sizes)
    context.moves_cells = True
    runner = LlamaRunner(context, model.vocabulary)
    runner.run([Chunk(0, 0, LONG[:20], None), Chunk(1, 0, LONG[:20], None)])
    before = context.states.save(1).tobytes()
    runner.shift(0, 4, 8)
    runner.run([Chunk(0, 12, [3], None)])
    after = context.states.save(1).tobytes()
    context.close()
    return before, after


def test_a_neighbours_cells_are_the_same_bytes_after_a_shift(model: LlamaModel) -> None:
    before, after = keys_after_a_shift(model, options())
    assert before == after


def test_a_model_whose_rotation_scales_keys_does_not_move_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YaRN scales what it rotates, and a shift rotates everybody's keys, if by nothing."""
    path = tmp_path / "yarn.gguf"
    write_yarn_model(path, monkeypatch)
    with loaded(path) as model:
        context = LlamaContext(model, options())
        assert not context.moves_cells
        context.close()
        before, after = keys_after_a_shift(model, options())
        assert before != after, "llama.cpp has learned it: such models may move cells"
        neighbour = alone(model, lambda: sequence(0, SHORT[2], keep=None))
        assert (
            serve(model, [sequence(0, LONG, keep=8), sequence(1, SHORT[2], keep=None)], options())[1] == neighbour
        )


def write_yarn_model(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = GGUFWriter.add_context_length

    def add_context_length(writer: GGUFWriter, length: int) -> None:
        plain(writer, length)
        writer.add_string("llama.rope.scaling.type", "yarn")
        writer.add_float32("llama.rope.scaling.factor", 4.0)
        writer.add_uint32("llama.rope.scaling.original_context_length", 512)

    monkeypatch.setattr(GGUFWriter, "add_context_length", add_context_length)
    write_model(path, TinyModel())


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
def test_a_model_that_cannot_shift_is_refused_where_its_owner_wants_it_to(
    architecture: Literal["gemma2", "mamba"], tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", TinyModel(architecture=architecture))
    with pytest.raises(LoadFailed, match="cannot shift its context.*--context-policy truncate or error"):
        load(LoadOptions(path=str(path), context=64, context_policy="shift"), lambda _progress: None, Stopwatch())
    made = load(LoadOptions(path=str(path), context=64), lambda _progress: None, Stopwatch())
    assert (made.info.can_shift, made.info.context_policy, made.info.n_keep) == (False, "error", 16)


def test_positions_stay_within_the_context_however_long_the_prompt(model: LlamaModel) -> None:
    sizes = options(CONTEXT, parallel=1)
    context = LlamaContext(model, sizes)
    engine = engine_of(model, context, sizes)
    prompt = (np.arange(5000) * 7 % 240 + 1).tolist()
    served = sequence(0, prompt, keep=4, max_tokens=3)
    engine.submit(served)
    while engine.has_work:
        engine.step()
        assert c.llama_memory_seq_pos_max(c.llama_get_memory(context.pointer), 0) < CONTEXT
    assert served.usage.prompt_tokens == 5000
    assert served.tokens[:4] == prompt[:4] and served.tokens[4:-3] == prompt[4 + served.num_dropped :]
    context.close()


jobs = st.lists(
    st.tuples(
        st.integers(1, 150),  # tokens of the prompt, all of which begin alike
        st.sampled_from([None, 0, 4, 20]),  # kept ones
        st.integers(1, 80),  # tokens of the answer
        st.none() | st.integers(0, 25),  # steps until its client leaves
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs, st.sampled_from([SPLIT, UNIFIED, CONTEXT + 10]), st.sampled_from(["f16", "q8_0"]))
def test_llama_holds_what_the_engine_counts_whoever_shifts_leaves_or_is_preempted(
    model: LlamaModel, work: list[tuple[int, int | None, int, int | None]], kv_cells: int, kv_type: str
) -> None:
    sizes = options(kv_cells, kv_type=kv_type, flash_attn="on")
    context = LlamaContext(model, sizes)
    memory = c.llama_get_memory(context.pointer)
    engine = engine_of(model, context, sizes)
    leaving: list[tuple[int, Sequence]] = []
    for index, (length, keep, max_tokens, leaves_after) in enumerate(work):
        prompt = LONG[: length if keep is not None else min(length, CONTEXT - 1)]
        each = sequence(index, prompt, keep=None if keep is None else min(keep, length), max_tokens=max_tokens)
        engine.submit(each)
        if leaves_after is not None:
            leaving.append((index + leaves_after, each))
    step = 0
    while engine.has_work:
        for _, each in [pair for pair in leaving if pair[0] <= step]:
            engine.finish(each, "slot")
        if engine.has_work:
            engine.step()
        engine.check_integrity()
        cells = engine._scheduler.slots.cells
        held = [cells.length(slot) for slot in range(sizes.num_slots)]
        assert [c.llama_memory_seq_pos_max(memory, slot) + 1 for slot in range(sizes.num_slots)] == held
        assert all(c.llama_memory_seq_pos_min(memory, slot) == 0 for slot in range(sizes.num_slots) if held[slot])
        step += 1
    context.close()
