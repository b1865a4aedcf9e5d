"""Sequences that outgrow their context, on a fake model whose every token depends on all tokens it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeRunner
from ocak.engine.outputs import Sampled
from ocak.engine.runner import Aborted, Chunk
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.window import Window, most_kept

CONTEXT = 32
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Job:
    prompt: tuple[int, ...]
    num_keep: int | None = 4  # None: no window, so prompt and answer must fit
    max_tokens: int = 8
    leaves_after: int | None = None  # steps, then it is cancelled
    arrives_at: int = 0  # step
    tenant: str = ""
    family: str = ""


def sequence(index: int, job: Job) -> Sequence:
    fits = job.num_keep is None
    return Sequence(
        id=index,
        tokens=list(job.prompt[: CONTEXT - 1] if fits else job.prompt),
        sampling=Sampling(seed=0),
        max_tokens=job.max_tokens,
        end_tokens=frozenset(),
        tenant=job.tenant,
        root=job.tenant,
        family=job.family,
        window=None if job.num_keep is None else Window(CONTEXT, job.num_keep),
    )


@pytest.fixture(autouse=True, scope="module")
def _short_prefixes_are_worth_their_copies() -> Iterator[None]:
    with (
        mock.patch("ocak.engine.saved.WORTH_SAVING", 8),
        mock.patch("ocak.engine.prefix_cache.WORTH_COPYING", 4),
        mock.patch("ocak.engine.prefix_cache.MOST_IDLE", 30),
        mock.patch("ocak.engine.slots.WORTH_WAITING", 4),
    ):
        yield


def limits(slots: int = 3, batch_tokens: int = 16, cells: int | None = None, **more: object) -> SchedulerLimits:
    """Fewer cells than slots x context are shared, as in the unified layout."""
    settings: dict[str, object] = {
        "parallel": slots,
        "context": CONTEXT,
        "num_cells": cells or CONTEXT * slots,
        "batch_tokens": batch_tokens,
        "num_slots": 2 * slots if cells else slots,
        "shares_cells": cells is not None,
    }
    return SchedulerLimits(**(settings | more))  # type: ignore[arg-type]


def serve(
    jobs: list[Job], size: SchedulerLimits, aborts: frozenset[int] = frozenset()
) -> tuple[list[list[int]], list[Sequence], FakeRunner, Engine]:
    """Run every job to its end or its leaving; return the tokens of the answers."""
    runner = FakeRunner(num_cells=size.num_cells, shares_cells=size.shares_cells)
    engine = Engine(runner, size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    waiting = list(range(len(jobs)))
    answers: list[list[int]] = [[] for _ in jobs]
    for step in range(MAX_STEPS):
        for index in [i for i in waiting if jobs[i].arrives_at <= step]:
            waiting.remove(index)
            engine.submit(sequences[index])
        for index, job in enumerate(jobs):
            if job.leaves_after is not None and step >= job.arrives_at + job.leaves_after:
                engine.finish(sequences[index])
        if not engine.has_work and not waiting:
            break
        if engine.has_work:
            runner.failures += [Aborted("cut short")] * (step in aborts)
            for output in engine.step():
                if isinstance(output, Sampled):
                    answers[output.sequence.id].append(output.token)
            check(engine, runner, size)
    assert not engine.has_work
    assert engine.stats().slots_used == engine.stats().kv_cells_used == 0
    return answers, sequences, runner, engine


def check(engine: Engine, runner: FakeRunner, size: SchedulerLimits) -> None:
    engine.check_integrity()
    stats = engine.stats()
    assert stats.kv_cells_used + stats.kv_cells_cached == runner.num_used, "a wrong account"
    assert all(len(cells) <= CONTEXT for cells in runner.cells.values()), "more than a context"


def alone(job: Job) -> list[int]:
    return serve([Job(job.prompt, job.num_keep, job.max_tokens)], limits(1, 1000))[0][0]


def model_of(job: Job) -> tuple[list[int], int]:
    """What shifting means, in the plainest words: one token at a time, no batches, no slots, no cache."""
    runner = FakeRunner()
    sampler = runner.new_sampler(Sampling(seed=0), ())
    assert job.num_keep is not None
    held: list[int] = []
    left = list(job.prompt)
    answer: list[int] = []
    dropped = 0
    keep = min(job.num_keep, len(job.prompt))
    while len(answer) < job.max_tokens:
        token = left.pop(0)
        if len(held) == CONTEXT:
            step = (CONTEXT - keep) // 2
            held = held[:keep] + held[keep + step :]
            dropped += step
        held.append(token)
        if not left:
            runner.trim(0, 0)
            [picked] = runner.run([Chunk(0, 0, held, sampler)])
            answer.append(picked)
            left.append(picked)
    return answer, dropped


lengths = st.integers(1, 4 * CONTEXT)
jobs_strategy = st.lists(
    st.builds(
        Job,
        prompt=st.builds(
            lambda family, length, tail: (*((family,) * 10 + tuple(range(90)) * 2)[:length], *tail),
            st.integers(0, 1),
            lengths,
            st.lists(st.integers(0, 3), max_size=3),
        ),
        num_keep=st.one_of(st.none(), st.integers(0, most_kept(CONTEXT))),
        max_tokens=st.integers(1, 3 * CONTEXT),
        leaves_after=st.one_of(st.none(), st.none(), st.integers(0, 30)),
        arrives_at=st.integers(0, 40),
        tenant=st.sampled_from(["", "", "", "other"]),
        family=st.sampled_from(["", "", "f", "g"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(lengths, st.integers(0, most_kept(CONTEXT)), st.integers(1, 3 * CONTEXT))
def test_what_remains_is_the_kept_tokens_and_the_latest(length: int, keep: int, max_tokens: int) -> None:
    job = Job(tuple(i % 97 for i in range(length)), min(keep, length), max_tokens)
    answers, [served], _, _ = serve([job], limits(1, 7))
    expected, dropped = model_of(job)
    assert answers[0] == expected
    assert served.usage.dropped_tokens == dropped
    assert (served.usage.prompt_tokens, served.usage.completion_tokens) == (length, max_tokens)
    stream = [*job.prompt, *expected]
    assert served.tokens == stream[: job.num_keep] + stream[(job.num_keep or 0) + dropped :]


@settings(deadline=None)
@given(lengths, st.integers(0, most_kept(CONTEXT)))
def test_what_a_prompt_loses_is_known_before_it_begins(length: int, keep: int) -> None:
    job = Job(tuple(i % 97 for i in range(length)), min(keep, length), max_tokens=1)
    foretold = sequence(0, job).num_prompt_dropped
    _, [served], _, engine = serve([job], limits(1, 16))
    assert served.usage.dropped_tokens == foretold == served.num_prompt_dropped
    assert engine.stats().prompt_tokens == length


layouts = st.one_of(
    st.builds(limits, st.integers(1, 4), st.integers(4, 80)),
    st.builds(limits, st.integers(1, 4), st.integers(4, 80), st.sampled_from([CONTEXT, CONTEXT + 9, 2 * CONTEXT])),
    st.builds(
        limits,
        st.integers(1, 4),
        st.integers(4, 80),
        st.sampled_from([None, CONTEXT, CONTEXT + 9, 2 * CONTEXT]),
        keeps_prefixes=st.just(True),
        moves_cells=st.sampled_from([True, True, False]),
        host_tokens=st.sampled_from([0, 50, 200]),
    ),
)


@settings(deadline=None, max_examples=600)
@given(jobs_strategy, layouts, st.frozensets(st.integers(0, 60), max_size=4))
def test_neighbours_preemptions_and_cached_prefixes_change_neither_answers_nor_what_is_dropped(
    jobs: list[Job], size: SchedulerLimits, aborts: frozenset[int]
) -> None:
    answers, sequences, _, _ = serve(jobs, size, aborts)
    for job, answer, served in zip(jobs, answers, sequences, strict=True):
        full = alone(job)
        assert answer == full if job.leaves_after is None else answer == full[: len(answer)]
        if job.leaves_after is None and served.window is not None:
            expected = served.window.num_dropped(len(job.prompt) + job.max_tokens - 1)
            assert served.usage.dropped_tokens == expected


@settings(deadline=None)
@given(jobs_strategy, layouts.filter(lambda size: size.keeps_prefixes), st.integers(1, 7))
def test_what_is_exported_of_shifting_sequences_is_a_prompts_beginning_and_comes_back(
    jobs: list[Job], size: SchedulerLimits, every: int
) -> None:
    runner = FakeRunner(num_cells=size.num_cells, shares_cells=size.shares_cells)
    engine = Engine(runner, size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    for each in sequences:
        engine.submit(each)
    answers: list[list[int]] = [[] for _ in jobs]
    for step in range(1, MAX_STEPS):
        if not engine.has_work:
            break
        job = jobs[step % len(jobs)]
        if step % every == 0:
            length, data = engine.export(job.tenant, list(job.prompt))
            assert bytes(data).startswith(repr(list(job.prompt[:length])).encode()[:-1]) or not length
            if 0 < length < CONTEXT:
                engine.adopt(job.tenant, list(job.prompt[:length]), data)
            check(engine, runner, size)
        for output in engine.step():
            if isinstance(output, Sampled):
                answers[output.sequence.id].append(output.token)
        check(engine, runner, size)
    assert not engine.has_work
    assert answers == [alone(job) for job in jobs]


def test_cells_that_another_sequence_holds_too_stay_where_they_are() -> None:
    """Two begin alike beyond the tokens they keep; what they share cannot move, and is computed again."""
    shared = tuple(range(28))
    jobs = [Job((*shared, 50), 4, 40), Job((*shared, 60), 4, 40, arrives_at=1), Job((*shared, 70), None, 3)]
    size = limits(3, 64, 2 * CONTEXT + 20, keeps_prefixes=True)
    answers, _, runner, _ = serve(jobs, size)
    assert answers == [alone(job) for job in jobs]
    assert runner.num_shifts > 0, "once they are apart, cells move"


def test_a_shift_moves_cells_and_computes_nothing_again() -> None:
    _, _, runner, _ = serve([Job(tuple(range(90)), 4, 40)], limits(1, 16))
    assert sum(len(chunk.tokens) for batch in runner.batches for chunk in batch) == 90 + 39
    assert runner.num_shifts == Window(CONTEXT, 4).num_dropped(90 + 39) / 14


def test_where_cells_cannot_move_what_stays_is_computed_again() -> None:
    job = Job(tuple(range(90)), 4, 40)
    answers, _, runner, _ = serve([job], limits(1, 16, moves_cells=False))
    assert answers[0] == alone(job)
    assert runner.num_shifts == 0


def test_a_shifted_sequence_leaves_its_kept_tokens_alone_as_a_prefix() -> None:
    long = tuple(range(90))
    again = Job(long[:30], None, 1, arrives_at=60)
    _, sequences, _, _ = serve([Job(long, 12, 4), again], limits(1, 64, keeps_prefixes=True))
    assert sequences[1].num_cached == 12


def test_a_shifted_sequence_is_preempted_and_goes_on_with_what_it_still_held() -> None:
    jobs = [Job((1, 2), 0, 50), Job((2, 3), 1, 50), Job(tuple(range(60)), 4, 60)]
    size = limits(3, 16, CONTEXT + 20)
    engine = Engine(FakeRunner(num_cells=size.num_cells, shares_cells=True), size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    for each in sequences:
        engine.submit(each)
    while not engine.stats().preemptions:
        engine.step()
    assert sequences[0].slot is not None and sequences[2].slot is None
    assert sequences[2].num_dropped > 0
    answers, _, _, _ = serve(jobs, size)
    assert answers == [alone(job) for job in jobs]


def test_who_waits_for_a_prefix_does_not_wait_for_one_that_has_shifted_away() -> None:
    long = tuple(range(30))
    jobs = [Job(long, 4, 200), Job((*long[:29], 95), None, 1), Job((90, 91), None, 30)]
    engine = Engine(FakeRunner(), limits(2, 8, keeps_prefixes=True))
    first, second, third = (sequence(i, job) for i, job in enumerate(jobs))
    for each in (first, second, third):
        engine.submit(each)
        engine.step()
    assert second.awaited is not None and second.slot is None and third.slot is not None
    while not first.has_shifted:
        engine.step()
    engine.finish(third)
    engine.step()
    assert second.slot is not None


def test_who_waits_does_not_wait_for_one_that_gave_the_prefix_up_to_compute_it_again() -> None:
    """Where cells cannot move, a shift leaves fewer computed; counts alone would have the other wait on."""
    long = tuple(range(CONTEXT))
    jobs = [Job(long, 4, 500), Job((*long[:31], 95), 15, 1)]
    engine = Engine(FakeRunner(), limits(2, 80, keeps_prefixes=True, moves_cells=False))
    first, second = (sequence(i, job) for i, job in enumerate(jobs))
    engine.submit(first)
    engine.submit(second)
    for _ in range(8):
        engine.step()
    assert second.is_admitted and not first.is_finished


def test_an_endless_prompt_holds_nobody_up_for_longer_than_a_context() -> None:
    endless, short = (
        sequence(i, job) for i, job in enumerate([Job(tuple(range(90)) * 50), Job(tuple(range(20)))])
    )
    engine = Engine(FakeRunner(), limits(2, 8))
    engine.submit(endless)
    engine.step()
    engine.submit(short)
    num_steps = 0
    while short.in_prefill:
        engine.step()
        num_steps += 1
    assert num_steps <= (CONTEXT + len(short.tokens)) // 8 + 2
    while not endless.is_finished:
        engine.step()
    assert endless.num_generated == 8
