"""The engine and its scheduler on a fake model whose every token depends on all tokens before it."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.chunks import UNIFORM_ROWS
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeRunner
from ocak.engine.outputs import Admitted, Broken, Sampled
from ocak.engine.runner import Aborted, Chunk, Logprobs, NoRoom, RunFailed
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.slot_limits import Reuse

CONTEXT = 64
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Job:
    prompt: tuple[int, ...]
    max_tokens: int = 8
    seed: int = 0
    leaves_after: int | None = None  # steps, then it is cancelled
    arrives_at: int = 0  # step
    tenant: str = ""
    priority: int = 0
    family: str = ""


def sequence(index: int, job: Job) -> Sequence:
    return Sequence(
        id=index,
        tokens=list(job.prompt),
        sampling=Sampling(seed=job.seed),
        max_tokens=job.max_tokens,
        end_tokens=frozenset({13}),
        tenant=job.tenant,
        priority=job.priority,
        root=job.tenant,
        family=job.family,
    )


@pytest.fixture(autouse=True, scope="module")
def _short_prefixes_are_worth_saving() -> Iterator[None]:
    with (
        mock.patch("ocak.engine.saved.WORTH_SAVING", 8),
        mock.patch("ocak.engine.prefix_cache.WORTH_COPYING", 4),
        mock.patch("ocak.engine.prefix_cache.MOST_IDLE", 40),
        mock.patch("ocak.engine.compaction.LEAST", 8),
        mock.patch("ocak.engine.compaction.WORTH_MOVING", 2),
    ):
        yield


def limits(
    slots: int = 4,
    batch_tokens: int = 32,
    cells: int | None = None,
    reuse: Reuse | None = None,
    host: int = 0,
) -> SchedulerLimits:
    """Fewer cells than slots x context are shared, as in the unified layout; on a CPU."""
    return SchedulerLimits(
        parallel=slots,
        context=CONTEXT,
        num_cells=cells or CONTEXT * slots,
        batch_tokens=batch_tokens,
        num_slots=2 * slots if cells else slots,
        shares_cells=cells is not None,
        reuse=reuse or "parts",
        keeps_prefixes=reuse is not None,
        host_tokens=host,
        is_on_cpu=cells is not None,
    )


def serve(jobs: list[Job], size: SchedulerLimits) -> tuple[list[list[int]], FakeRunner, Engine]:
    """Run every job to its end or its leaving; return the answers' tokens."""
    takes_parts = size.reuse == "parts"
    runner = FakeRunner(num_cells=size.num_cells, shares_cells=size.shares_cells, takes_parts=takes_parts)
    engine = Engine(runner, size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    waiting = list(range(len(jobs)))
    ended: list[int] = []
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
            ended += [o.sequence.id for o in engine.step() if isinstance(o, Sampled) and o.reason]
            engine.check_integrity()
            stats = engine.stats()
            assert stats.saved_tokens == sum(map(len, runner.saved.values())) <= size.host_tokens
            assert stats.kv_cells_used + stats.kv_cells_cached == runner.num_used, "a wrong account"
            assert sum(len(chunk.tokens) for chunk in runner.batches[-1]) <= size.batch_tokens
        elif engine.tidy():
            engine.check_integrity()
            assert engine.stats().saved_tokens == sum(map(len, runner.saved.values())) <= size.host_tokens
    assert len(ended) == len(set(ended)), "a sequence finished twice"
    assert set(ended) == {i for i, job in enumerate(jobs) if job.leaves_after is None or i in ended}
    assert size.keeps_prefixes or runner.cells == {}, "cells left behind"
    assert all(sampler.is_closed for sampler in runner.samplers), "a sampler was left open"
    assert engine.stats().slots_used == engine.stats().kv_cells_used == 0
    return [s.tokens[s.num_prompt :] for s in sequences], runner, engine


jobs_strategy = st.lists(
    st.builds(
        Job,
        prompt=st.lists(st.integers(0, 96), min_size=1, max_size=CONTEXT - 1).map(tuple),
        max_tokens=st.integers(1, 40),
        seed=st.integers(0, 3),
        arrives_at=st.integers(0, 30),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(jobs_strategy, st.integers(1, 6), st.integers(6, 80))
def test_batching_never_changes_the_tokens(jobs: list[Job], slots: int, budget: int) -> None:
    alone = [serve([job], limits(1, 10_000))[0][0] for job in jobs]
    together, _, _ = serve(jobs, limits(slots, budget))
    assert together == alone


@settings(deadline=None)
@given(jobs_strategy, st.integers(1, 6))
def test_uniform_steps_hold_one_token_of_each_or_a_short_part_of_one_prompt(jobs: list[Job], slots: int) -> None:
    alone = [serve([job], limits(1, 10_000))[0][0] for job in jobs]
    together, runner, _ = serve(jobs, replace(limits(slots, 64), is_uniform=True))
    assert together == alone
    for batch in runner.batches:
        rows = [len(chunk.tokens) for chunk in batch]
        assert set(rows) == {1} or (len(rows) == 1 and rows[0] <= UNIFORM_ROWS)


@settings(deadline=None)
@given(jobs_strategy, st.integers(2, 6), st.integers(CONTEXT, 2 * CONTEXT))
def test_overcommitted_cells_never_change_the_tokens_and_never_fail_anybody(
    jobs: list[Job], slots: int, cells: int
) -> None:
    alone = [serve([job], limits(1, 10_000))[0][0] for job in jobs]
    together, _, _ = serve(jobs, limits(slots, 16, cells))
    assert together == alone


@settings(deadline=None)
@given(jobs_strategy, st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=12, max_size=12))
def test_those_who_leave_change_nothing_for_those_who_stay(jobs: list[Job], leaving: list[int | None]) -> None:
    mixed = [
        Job(job.prompt, job.max_tokens, job.seed, leaves, job.arrives_at)
        for job, leaves in zip(jobs, leaving, strict=False)
    ]
    together, _, _ = serve(mixed, limits(3, 16))
    for job, answer in zip(mixed, together, strict=True):
        full = serve([Job(job.prompt, job.max_tokens, job.seed)], limits(1, 10_000))[0][0]
        assert answer == full if job.leaves_after is None else answer == full[: len(answer)]


families = st.lists(
    st.builds(
        Job,
        prompt=st.builds(
            lambda family, length, tail: ((family,) * 20 + tuple(range(40)))[:length] + tuple(tail),
            st.integers(0, 1),
            st.integers(1, 50),
            st.lists(st.integers(0, 3), max_size=5),
        ),
        max_tokens=st.integers(1, 12),
        leaves_after=st.one_of(st.none(), st.none(), st.integers(0, 20)),
        arrives_at=st.integers(0, 30),
        tenant=st.sampled_from(["", "", "", "other"]),
        priority=st.integers(-1, 1),
        family=st.sampled_from(["", "", "f", "g"]),
    ),
    min_size=1,
    max_size=12,
)


reuses: st.SearchStrategy[Reuse | None] = st.sampled_from(["parts", "wholes", None])
slot_counts, budgets = st.integers(1, 5), st.integers(6, 80)
hosts = st.sampled_from([0, 40, 100, 1000])
split = st.builds(limits, slot_counts, budgets, st.none(), reuses, hosts)
cell_counts = st.sampled_from([CONTEXT, CONTEXT + 30, 2 * CONTEXT])
unified = st.builds(limits, slot_counts, budgets, cell_counts, reuses, hosts)


@settings(deadline=None, max_examples=500)
@given(families, st.one_of(split, unified))
def test_prefixes_that_are_kept_never_change_the_tokens(jobs: list[Job], size: SchedulerLimits) -> None:
    together, _, _ = serve(jobs, size)
    for job, answer in zip(jobs, together, strict=True):
        full = serve([Job(job.prompt, job.max_tokens)], limits(1, 10_000))[0][0]
        assert answer == full if job.leaves_after is None else answer == full[: len(answer)]


@settings(deadline=None)
@given(families, st.one_of(split, unified).filter(lambda size: size.keeps_prefixes), st.integers(1, 7))
def test_prefixes_that_come_from_elsewhere_never_change_the_tokens(
    jobs: list[Job], size: SchedulerLimits, every: int
) -> None:
    takes_parts = size.reuse == "parts"
    runner = FakeRunner(num_cells=size.num_cells, shares_cells=size.shares_cells, takes_parts=takes_parts)
    engine = Engine(runner, size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    for each in sequences:
        engine.submit(each)
    step = 0
    while engine.has_work:
        step += 1
        if step % every == 0:
            job = jobs[step % len(jobs)]
            prefix = list(job.prompt[: 1 + step % len(job.prompt)])
            has_room = engine.adopt(job.tenant, prefix, repr([*prefix, 1, 2] if takes_parts else prefix).encode())
            length, data = engine.export(job.tenant, prefix)
            assert length > 0 if has_room else length >= 0
            assert bytes(data).startswith(repr(prefix[:length]).encode()[:-1]) or not length
            engine.check_integrity()
        engine.check_integrity()
        engine.step()
        engine.check_integrity()
        stats = engine.stats()
        assert stats.kv_cells_used + stats.kv_cells_cached == runner.num_used, "a wrong account"
    for job, each in zip(jobs, sequences, strict=True):
        assert each.tokens[each.num_prompt :] == serve([Job(job.prompt, job.max_tokens)], limits(1, 10_000))[0][0]
    tidy_up(engine)


def test_a_prefix_from_elsewhere_that_is_refused_leaves_nothing() -> None:
    class Refusing(FakeRunner):
        def restore(self, key: int, slot: int, count: int) -> None:
            raise RunFailed("not taken")

    runner = Refusing()
    engine = Engine(runner, limits(2, 64, None, "parts"))
    with pytest.raises(RunFailed):
        engine.adopt("", [1, 2, 3], b"[1, 2, 3]")
    engine.check_integrity()
    assert runner.saved == {} and engine.stats().kv_cells_cached == 0


@dataclass(slots=True)
class Unreliable(FakeRunner):
    """Fails to save, restore or copy now and then."""

    fails: list[bool] = field(default_factory=list)
    num_failed: int = 0

    def _may_fail(self) -> None:
        if self.fails and self.fails.pop(0):
            self.num_failed += 1
            raise MemoryError if self.num_failed % 2 else RunFailed("now and then")

    def save(self, slot: int, key: int, start: int = 0) -> None:
        self._may_fail()
        FakeRunner.save(self, slot, key, start)

    def restore(self, key: int, slot: int, count: int) -> None:
        self._may_fail()
        FakeRunner.restore(self, key, slot, count)

    def copy(self, source: int, slot: int, count: int) -> None:
        self._may_fail()
        FakeRunner.copy(self, source, slot, count)


@settings(deadline=None, max_examples=300)
@given(
    families,
    st.one_of(split, unified).filter(lambda size: size.keeps_prefixes),
    st.lists(st.sampled_from([False, False, True]), max_size=60),
)
def test_prefixes_that_cannot_be_saved_or_brought_never_change_the_tokens(
    jobs: list[Job], size: SchedulerLimits, fails: list[bool]
) -> None:
    takes_parts = size.reuse == "parts"
    runner = Unreliable(
        num_cells=size.num_cells, shares_cells=size.shares_cells, takes_parts=takes_parts, fails=fails
    )
    engine = Engine(runner, size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    for index, each in enumerate(sequences):
        engine.submit(each)
        for _ in range(index % 5):
            if engine.has_work:
                engine.step()
                engine.check_integrity()
    while engine.has_work:
        engine.step()
        engine.check_integrity()
        stats = engine.stats()
        assert stats.saved_tokens == sum(map(len, runner.saved.values())) <= size.host_tokens
        assert stats.kv_cells_used + stats.kv_cells_cached == runner.num_used, "a wrong account"
    for job, each in zip(jobs, sequences, strict=True):
        assert each.tokens[each.num_prompt :] == serve([Job(job.prompt, job.max_tokens)], limits(1, 10_000))[0][0]
    tidy_up(engine)


def test_what_is_saved_while_nothing_runs_need_not_be_when_its_slot_is_needed() -> None:
    engine, runner = new_engine(limits(2, 64, reuse="parts", host=1000))
    finish_all(engine, [Job(tuple(range(start, start + 40)), 4) for start in (0, 40)])
    assert not runner.saved and engine.tidy() and engine.tidy() and not engine.tidy()
    saved = dict(runner.saved)
    assert len(saved) == 2
    finish_all(engine, [Job(tuple(range(80, 97)), 4)])
    assert runner.saved == saved, "saved twice"


def test_nothing_is_given_up_for_what_is_saved_while_nothing_runs() -> None:
    engine, runner = new_engine(limits(2, 64, reuse="parts", host=60))
    finish_all(engine, [Job(tuple(range(start, start + 40)), 4) for start in (0, 40)])
    assert engine.tidy() and not engine.tidy()
    assert len(runner.saved) == 1


def tidy_up(engine: Engine) -> None:
    """Do all that can wait until there is no work; it must come to an end."""
    assert not all(engine.tidy() for _ in range(100))
    engine.check_integrity()


def new_engine(size: SchedulerLimits) -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(num_cells=size.num_cells, shares_cells=size.shares_cells)
    return Engine(runner, size), runner


def finish_all(engine: Engine, jobs: list[Job]) -> None:
    for index, job in enumerate(jobs):
        engine.submit(sequence(index, job))
    while engine.has_work:
        engine.step()


@pytest.mark.parametrize("lengths", [(50,), (30, 50)], ids=["a run", "a chain of runs"])
def test_nobody_builds_upon_a_prefix_that_was_not_restored_in_the_same_step(lengths: tuple[int, ...]) -> None:
    size = limits(3, 64, 2 * CONTEXT, "parts", 1000)
    runner = Unreliable(num_cells=size.num_cells, shares_cells=True)
    engine = Engine(runner, size)
    cache = engine._scheduler.slots.cache
    for index, length in enumerate(lengths):
        engine.submit(sequence(index, Job(LONG[:length], 1)))
        while engine.has_work:
            engine.step()
        engine._mover.make(cache.evict())
    assert len(runner.saved) == len(lengths) and not runner.cells
    runner.fails = [True]
    both = [sequence(10 + last, Job((*LONG, last), 4)) for last in (1, 2)]
    for each in both:
        engine.submit(each)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert runner.num_failed == 1
    for last, each in zip((1, 2), both, strict=True):
        assert each.tokens[each.num_prompt :] == serve([Job((*LONG, last), 4)], limits(1))[0][0]


BEGINNING = tuple(range(14, 44))  # as long as the rest, so that no slot is taken over from another


def conversations(count: int) -> list[Job]:
    """Several with a beginning in common, one after another, twice."""
    prompts = [(*BEGINNING, *(50 + which for _ in range(20))) for which in range(count)]
    return [Job(prompt, 3, arrives_at=12 * place) for place, prompt in enumerate(prompts * 2)]


def test_a_shared_beginning_is_saved_once_and_restored_behind_what_a_slot_has_of_it() -> None:
    jobs = conversations(8)
    _, runner, engine = serve(jobs, limits(2, 64, 2 * CONTEXT, "parts", 1000))
    assert engine.stats().saved_tokens <= len(BEGINNING) + 8 * (20 + 2)
    assert engine.stats().prompt_tokens <= len(BEGINNING) + 8 * 20 + 8
    assert len(runner.saved) > 4 and min(runner.starts.values()) == 0


def test_a_budget_that_holds_no_more_than_the_beginning_is_not_exceeded() -> None:
    jobs = conversations(8)
    alone = [serve([replace(job, arrives_at=0)], limits(1, 10_000))[0][0] for job in jobs]
    together, _, engine = serve(jobs, limits(2, 64, 2 * CONTEXT, "parts", 60))
    assert together == alone
    assert 0 < engine.stats().saved_tokens <= 60


@pytest.mark.parametrize(("host", "is_bound"), [(1000, True), (100, False), (0, False)])
def test_idle_prefixes_leave_shared_cells_when_they_are_many_and_somebody_runs(host: int, is_bound: bool) -> None:
    size = limits(2, 64, 2 * CONTEXT, "parts", host)
    runner = FakeRunner(num_cells=size.num_cells, shares_cells=True)
    engine = Engine(runner, size)
    for index, prompt in enumerate([LONG[:30], LONG[10:40]]):
        engine.submit(sequence(index, Job(prompt, 2)))
        while engine.has_work:
            engine.step()
    assert engine.stats().kv_cells_cached > 40, "nobody is slowed by them"
    runs = sequence(9, Job((1, 2, 3), 20))
    engine.submit(runs)
    engine.step()
    engine.check_integrity()
    assert (engine.stats().kv_cells_cached < 30) == is_bound
    again = sequence(10, Job((*LONG[:30], 1), 2))
    engine.submit(again)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert again.num_cached >= 30


@given(families, unified.filter(lambda size: size.reuse == "parts"))
@settings(deadline=None, max_examples=200)
def test_nothing_of_one_tenant_is_ever_restored_to_another(jobs: list[Job], size: SchedulerLimits) -> None:
    owner: dict[int, str] = {}
    engines: list[Engine] = []

    class Watching(FakeRunner):
        def save(self, slot: int, key: int, start: int = 0) -> None:
            owner[key] = str(engines[0]._scheduler.slots.cache.tree.path(key)[0])
            super().save(slot, key, start)

        def restore(self, key: int, slot: int, count: int) -> None:
            assert owner[key] == engines[0]._scheduler.running[slot].tenant
            super().restore(key, slot, count)

    engines.append(
        Engine(
            Watching(num_cells=size.num_cells, shares_cells=True), replace(size, host_tokens=1000, is_on_cpu=False)
        )
    )
    for index, job in enumerate(jobs * 2):
        engines[0].submit(sequence(index, job))
        while engines[0].has_work and index % 3:
            engines[0].step()
    while engines[0].has_work:
        engines[0].step()


def computed(runner: FakeRunner) -> int:
    return sum(map(computed_in, runner.batches))


LONG = tuple(range(14, 64))


@pytest.mark.parametrize("cells", [None, 3 * CONTEXT], ids=["split", "unified"])
def test_the_next_turn_of_a_conversation_computes_its_new_tokens_alone(cells: int | None) -> None:
    first, runner, _ = serve([Job(LONG[:30], 6)], limits(1, 64, cells))
    turns = [Job(LONG[:30], 6), Job((*LONG[:30], *first[0], 1, 2, 3), 6, arrives_at=20)]
    _, runner, engine = serve(turns, limits(4, 64, cells, "parts"))
    assert computed(runner) == 30 + 5 + (1 + 3) + 5  # the last token of an answer is sampled, not computed
    assert engine.stats().kv_cells_used == 0


@pytest.mark.parametrize("cells", [None, 3 * CONTEXT], ids=["split", "unified"])
def test_a_prefix_that_many_wait_for_is_computed_once(cells: int | None) -> None:
    jobs = [Job((*LONG, 70 + i), 4) for i in range(4)]
    _, runner, _ = serve(jobs, limits(4, 25, cells, "parts"))
    assert computed(runner) == len(LONG) + 4 * 1 + 4 * 3


@pytest.mark.parametrize("reuse", ["parts", "wholes", None])
@pytest.mark.parametrize("cells", [None, 3 * CONTEXT], ids=["split", "unified"])
def test_the_answers_of_one_request_compute_their_prompt_once_and_start_together(
    cells: int | None, reuse: Reuse | None
) -> None:
    jobs = [Job(LONG, 4, seed=seed, family="f") for seed in range(4)]
    alone = [serve([job], limits(1, 10_000))[0][0] for job in jobs]
    together, runner, _ = serve(jobs, limits(4, 25, cells, reuse))
    assert together == alone
    rest = sum(len(answer) - 1 for answer in alone)
    assert computed(runner) == len(LONG) + 3 * 1 + rest
    first_tokens = [[chunk.slot for chunk in batch if chunk.sampler is not None] for batch in runner.batches]
    started = [slots for slots in first_tokens if slots]
    assert {*started[0], *started[1]} == {0, 1, 2, 3}, "all have their first token a step after the first one's"


@pytest.mark.parametrize("reuse", ["parts", "wholes"])
def test_nobody_waits_for_a_prefix_that_would_not_be_copied(reuse: Reuse) -> None:
    jobs = [Job((*LONG[:20], 70 + i), 4) for i in range(4)]
    with mock.patch("ocak.engine.prefix_cache.WORTH_COPYING", 32):
        engine = Engine(FakeRunner(takes_parts=reuse == "parts"), limits(4, 96, None, reuse))
        for index, job in enumerate(jobs):
            engine.submit(sequence(index, job))
        assert sum(isinstance(output, Admitted) for output in engine.step()) == 4


def test_the_answers_of_one_request_share_with_nobody_where_nothing_is_kept() -> None:
    jobs = [Job(LONG, 4, family="f"), Job(LONG, 4), Job(LONG, 4, family="g"), Job(LONG, 4, family="f", tenant="x")]
    _, runner, _ = serve(jobs, limits(4, 64))
    assert computed(runner) == 4 * (len(LONG) + 3)


def test_who_waited_for_a_holder_that_left_computes_the_prompt_itself() -> None:
    jobs = [Job(LONG, 4, family="f", leaves_after=2), Job(LONG, 4, family="f"), Job(LONG, 4, family="f")]
    for reuse in ("parts", "wholes", None):
        together, _, _ = serve(jobs, limits(4, 20, None, reuse))  # type: ignore[arg-type]
        assert together[1] == together[2] == serve([Job(LONG, 4)], limits(1))[0][0]


def test_conversations_that_take_turns_in_fewer_slots_compute_their_new_tokens_alone() -> None:
    prompts = [tuple(range(14 + i, 24 + i)) for i in range(8)]
    histories = list(prompts)
    jobs: list[Job] = []
    for turn in range(4):
        for which in range(8):
            if turn:
                answer = serve([Job(histories[which], 3)], limits(1))[0][0]
                histories[which] = (*histories[which], *answer, 50 + turn, 60 + which)
            jobs.append(Job(histories[which], 3, arrives_at=12 * len(jobs)))
    _, runner, engine = serve(jobs, limits(4, 64, None, "parts", 1000))
    computed_prompts = engine.stats().prompt_tokens
    assert computed_prompts <= sum(map(len, prompts)) + 8 * 3 * (1 + 2)  # the last answer's end, and what is new
    assert runner.saved


def test_a_prefix_of_another_tenant_is_not_used() -> None:
    jobs = [Job(LONG, 4, tenant="a"), Job(LONG, 4, tenant="b", arrives_at=20)]
    _, runner, _ = serve(jobs, limits(4, 64, None, "parts"))
    assert computed(runner) == 2 * (len(LONG) + 3)


def admitted_order(jobs: list[Job], size: SchedulerLimits) -> list[int]:
    engine = Engine(FakeRunner(), size)
    for index, job in enumerate(jobs):
        engine.submit(sequence(index, job))
    order: list[int] = []
    while engine.has_work:
        order += [o.sequence.id for o in engine.step() if isinstance(o, Admitted)]
        engine.check_integrity()
    return order


def test_a_tenant_with_one_request_does_not_wait_for_the_two_hundred_of_another() -> None:
    jobs = [Job((i % 90 + 1, 2), 4, tenant="crowd") for i in range(200)] + [Job((1, 2), 4, tenant="single")]
    order = admitted_order(jobs, limits(4))
    assert order.index(200) <= 1


def test_tenants_take_turns_and_priority_counts_among_ones_own_alone() -> None:
    jobs = [Job((i + 1,), 1, tenant="a", priority=-i) for i in range(4)]
    jobs += [Job((i + 50,), 1, tenant="b") for i in range(4)]
    assert admitted_order(jobs, limits(1)) == [3, 4, 2, 5, 1, 6, 0, 7]


def test_the_least_urgent_of_the_tenant_that_runs_most_is_preempted() -> None:
    jobs = [
        Job(tuple(range(14, 27)), max_tokens=20, tenant="a"),
        Job(tuple(range(24, 37)), max_tokens=20, tenant="a", priority=5),
        Job(tuple(range(34, 47)), max_tokens=20, tenant="a"),
        Job(tuple(range(44, 57)), max_tokens=20, tenant="b", priority=9),
    ]
    size = limits(4, 100, 100)
    engine = Engine(FakeRunner(num_cells=100, shares_cells=True), size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    for each in sequences:
        engine.submit(each)
    while not engine.stats().preemptions:
        engine.step()
    assert [each.slot is None for each in sequences] == [False, True, False, False]


def test_the_least_recently_used_prefix_goes_first() -> None:
    prompts = [tuple(range(start, start + 20)) for start in (14, 40, 66)]
    order = [0, 1, 0, 2, 0, 1]  # two slots: 2 takes the place of 1, not of 0
    jobs = [Job(prompts[which], 1, arrives_at=10 * place) for place, which in enumerate(order)]
    _, runner, _ = serve(jobs, limits(2, 64, None, "parts"))
    assert [computed_in(batch) for batch in runner.batches] == [20, 20, 1, 20, 1, 20]


def computed_in(batch: list[Chunk]) -> int:
    return sum(len(chunk.tokens) for chunk in batch)


def test_cells_that_steps_have_scattered_are_put_together_again_but_those_that_are_shared() -> None:
    starts: list[int] = []

    class Counting(FakeRunner):
        def restore(self, key: int, slot: int, count: int) -> None:
            starts.append(len(self.cells.get(slot, [])))
            super().restore(key, slot, count)

    size = limits(3, 32, 2 * CONTEXT, "parts", 1000)
    jobs = [Job(tuple(range(20)), 30), Job((*range(20), 50), 30), Job((60, 61), 30)]
    for can_compact in (True, False):
        starts.clear()
        engine = Engine(
            Counting(num_cells=size.num_cells, shares_cells=True), replace(size, is_on_cpu=can_compact)
        )
        sequences = [sequence(index, job) for index, job in enumerate(jobs)]
        for each in sequences:
            engine.submit(each)
        while not any(each.is_finished for each in sequences):
            engine.step()
            engine.check_integrity()
        assert bool(starts) == can_compact
        assert {*starts[:3]} <= {0, 20}, "the shared beginning stays"
        assert 0 not in starts[3:], "so does what lies in a row"
        for job, each in zip(jobs, sequences, strict=True):
            engine.finish(each)
            answer = each.tokens[each.num_prompt :]
            assert answer == serve([job], limits(1, 10_000))[0][0][: len(answer)]


def test_those_that_are_left_after_a_preemption_have_room_to_grow() -> None:
    jobs = [Job(tuple(range(60 + i, 64 + i)), max_tokens=50) for i in range(4)]
    size = limits(4, 32, 100, "parts", 1000)
    engine = Engine(FakeRunner(num_cells=100, shares_cells=True), size)
    sequences = [sequence(index, job) for index, job in enumerate(jobs)]
    for each in sequences:
        engine.submit(each)
    while not engine.stats().preemptions:
        engine.step()
    assert [each.slot is None for each in sequences] == [False, False, True, True]
    assert engine.stats().kv_cells_cached == 0, "what nobody runs on is no burden to those who run"
    while all(len(each.tokens) < 48 and not each.is_finished for each in sequences):
        engine.step()
        assert engine.stats().preemptions == 2 and engine.stats().running == 2


def test_there_may_be_fewer_cells_than_sequences() -> None:
    jobs = [Job((i + 20, i + 21), max_tokens=20) for i in range(12)]
    size = SchedulerLimits(parallel=20, context=16, num_cells=16, batch_tokens=32, num_slots=40, shares_cells=True)
    together, _, engine = serve(jobs, size)
    assert engine.stats().preemptions > 0
    assert together == [serve([job], size)[0][0] for job in jobs]


def test_overcommitted_cells_do_preempt() -> None:
    jobs = [Job(tuple(range(20 + i, 50 + i)), max_tokens=30) for i in range(4)]
    _, _, engine = serve(jobs, limits(4, 16, CONTEXT + 16))
    assert engine.stats().preemptions > 0


def test_a_decoding_sequence_gets_a_token_between_the_chunks_of_a_long_prompt() -> None:
    engine = Engine(FakeRunner(), limits(2, 20))
    first = sequence(0, Job((1, 2), max_tokens=50))
    engine.submit(first)
    engine.step()
    engine.submit(sequence(1, Job(tuple(range(60)), max_tokens=1)))
    has_token = [any(isinstance(o, Sampled) and o.sequence is first for o in engine.step()) for _ in range(6)]
    assert has_token in ([True, False] * 3, [False, True] * 3)


def test_prompts_that_wait_lend_a_token_to_fill_the_gaps_and_the_tile_of_a_decode_step() -> None:
    runner = FakeRunner()
    engine = Engine(runner, limits(8, 16))
    for i in range(3):
        engine.submit(sequence(i, Job((i + 1, 2), max_tokens=50)))
    engine.step()
    for i in range(3, 8):
        engine.submit(sequence(i, Job(tuple(range(i, i + 50)), max_tokens=1)))
    engine.step()
    engine.step()
    decode, prefill = sorted(runner.batches[-2:], key=len, reverse=True)
    assert [(chunk.slot, len(chunk.tokens)) for chunk in decode] == [(slot, 1) for slot in range(4)]
    assert [chunk.slot for chunk in prefill] == [3]


@pytest.mark.parametrize("reuse", ["parts", "wholes", None])
def test_a_batch_that_is_cut_short_is_computed_again(reuse: Reuse | None) -> None:
    expected = serve([Job(LONG, 4)], limits(1, 20))[0][0]
    runner = FakeRunner()
    engine = Engine(runner, limits(2, 20, None, reuse))
    cut = sequence(0, Job(LONG, 4))
    engine.submit(cut)
    engine.step()
    runner.failures.append(Aborted("cut short"))
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert cut.tokens[cut.num_prompt :] == expected


def test_a_step_is_cut_short_for_a_sequence_that_has_it_to_itself_alone() -> None:
    class Cancelling(FakeRunner):
        def run(self, chunks: Rows[Chunk]) -> list[int]:
            for wanted in (0, 1):
                engine.abort(wanted)
            return super().run(chunks)

    runner = Cancelling()
    engine = Engine(runner, limits(2, 20))
    engine.submit(sequence(0, Job((1, 2), 50)))
    engine.step()
    assert runner.num_aborts == 1
    engine.submit(sequence(1, Job(LONG, 4)))
    steps = [runner.num_aborts for _ in range(4) if engine.step() is not None]
    assert steps == [2, 2, 3, 3] or steps == [1, 2, 2, 3]
    engine.abort(1)
    assert runner.num_aborts <= 3, "no batch runs"


def test_a_waiting_sequence_takes_the_slot_in_the_step_after_it_is_freed() -> None:
    engine = Engine(FakeRunner(), limits(1))
    first, second = sequence(0, Job((1,), max_tokens=50)), sequence(1, Job((2,), max_tokens=50))
    engine.submit(first)
    engine.submit(second)
    engine.step()
    engine.finish(first)
    assert any(isinstance(o, Admitted) and o.sequence is second for o in engine.step())


def test_finishing_twice_does_nothing() -> None:
    engine = Engine(FakeRunner(), limits(1))
    first = sequence(0, Job((1,)))
    engine.submit(first)
    engine.step()
    engine.finish(first)
    engine.finish(first)
    engine.check_integrity()


def test_the_end_of_the_context_ends_the_answer() -> None:
    answers, _, _ = serve([Job(tuple(range(14, 14 + CONTEXT - 3)), max_tokens=1000)], limits(1))
    assert len(answers[0]) == 3 or answers[0][-1] == 13


def test_a_failed_batch_breaks_its_sequences_and_no_later_one() -> None:
    runner = FakeRunner(failures=[RunFailed("out of luck")])
    engine = Engine(runner, limits(2))
    broken, waiting = [sequence(i, Job((i + 1,))) for i in range(2)], sequence(2, Job((5,)))
    for each in [*broken, waiting]:
        engine.submit(each)
    outputs = engine.step()
    assert [o.sequence for o in outputs if isinstance(o, Broken)] == broken
    assert any(isinstance(o, Sampled) and o.sequence is waiting for o in engine.step())
    engine.finish(waiting)
    assert runner.cells == {}


def test_a_pass_that_failed_half_way_leaves_nothing_to_those_who_come_next() -> None:
    class Failing(FakeRunner):
        def run(self, chunks: Rows[Chunk]) -> list[int]:
            tokens = super().run(chunks)
            if len(self.batches) == 1:
                raise RunFailed("after some of it")
            return tokens

    engine = Engine(Failing(), limits(2, 32, None, "parts"))
    engine.submit(sequence(0, Job(LONG, 4)))
    assert any(isinstance(o, Broken) for o in engine.step())
    good = sequence(1, Job(LONG, 4))
    engine.submit(good)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert good.tokens[good.num_prompt :] == serve([Job(LONG, 4)], limits(1))[0][0]


def test_a_prefix_that_cannot_be_saved_or_given_back_costs_time_alone() -> None:
    class Forgetful(FakeRunner):
        def save(self, slot: int, key: int, start: int = 0) -> None:
            if key % 2:
                raise MemoryError
            super().save(slot, key, start)

        def restore(self, key: int, slot: int, count: int) -> None:
            raise RunFailed("not taken back")

    runner = Forgetful()
    engine = Engine(runner, limits(1, 64, None, "parts", 1000))
    prompts = [tuple(range(start, start + 20)) for start in (14, 40, 66)] * 3
    for index, prompt in enumerate(prompts):
        served = sequence(index, Job(prompt, 4))
        engine.submit(served)
        while engine.has_work:
            engine.step()
            engine.check_integrity()
        assert served.tokens[served.num_prompt :] == serve([Job(prompt, 4)], limits(1))[0][0]
        assert engine.stats().saved_tokens == sum(map(len, runner.saved.values()))


def test_no_room_preempts_the_newest_and_loses_no_token() -> None:
    expected, _, _ = serve([Job((i + 1, 5), max_tokens=6) for i in range(3)], limits(3))
    runner = FakeRunner(failures=[NoRoom("full"), NoRoom("full")])
    engine = Engine(runner, limits(3))
    sequences = [sequence(i, Job((i + 1, 5), max_tokens=6)) for i in range(3)]
    for each in sequences:
        engine.submit(each)
    while engine.has_work:
        assert not any(isinstance(o, Broken) for o in engine.step())
        engine.check_integrity()
    assert [s.tokens[2:] for s in sequences] == expected


@pytest.mark.parametrize("error", [RunFailed("no"), MemoryError()])
def test_a_prefix_that_cannot_be_copied_is_computed_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tuple(range(1, 31))
    runner = FakeRunner()
    engine = Engine(runner, limits(2, reuse="parts"))
    first = sequence(0, Job((*prompt, 40), max_tokens=30))
    engine.submit(first)
    engine.step()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(FakeRunner, "copy", fail)
    second = sequence(1, Job((*prompt, 50), max_tokens=4))
    engine.submit(second)
    while engine.has_work:
        assert not any(isinstance(output, Broken) for output in engine.step())
        engine.check_integrity()
    assert second.num_cached == 0
    assert second.tokens[second.num_prompt :] == serve([Job((*prompt, 50), max_tokens=4)], limits(1))[0][0]


def test_no_room_for_a_lone_sequence_is_said_to_it() -> None:
    engine = Engine(FakeRunner(failures=[NoRoom("full")]), limits(1))
    engine.submit(sequence(0, Job((1,))))
    assert [o.message for o in engine.step() if isinstance(o, Broken)] == ["full"]
    assert not engine.has_work


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_seed_gives_the_same_tokens_alone_and_in_a_busy_batch(seed: int) -> None:
    job = Job((3, 1, 4), max_tokens=20, seed=seed)
    alone = serve([job], limits(1))[0][0]
    busy = [Job((i,) * (i + 1), max_tokens=30, seed=i) for i in range(7)]
    assert serve([*busy, job], limits(4, 16))[0][-1] == alone


def test_log_probabilities_come_with_their_tokens_and_for_those_who_ask_alone() -> None:
    runner = FakeRunner()
    engine = Engine(runner, limits(3))
    sequences = [sequence(i, Job((i + 1, 2, 3), max_tokens=6)) for i in range(3)]
    sequences[0].num_logprobs, sequences[2].num_logprobs = 0, 4
    for one in sequences:
        engine.submit(one)
    outputs = []
    while engine.has_work:
        outputs += [o for o in engine.step() if isinstance(o, Sampled)]
    for one, count in zip(sequences, (0, None, 4), strict=True):
        told = [(o.token, o.logprobs) for o in outputs if o.sequence is one]
        assert [token for token, _ in told] == one.tokens[3:]
        if count is None:
            assert all(logprobs is None for _, logprobs in told)
        else:
            best = tuple((token, -float(token)) for token in range(count))
            assert [logprobs for _, logprobs in told] == [Logprobs(-float(token), best) for token, _ in told]
    assert runner.num_logprobs == sequences[0].num_generated + sequences[2].num_generated


def test_a_sequence_for_which_no_token_is_left_ends_alone_and_frees_its_slot():
    runner = FakeRunner(dead_ends={1})
    engine = Engine(runner, limits())
    sequences = [sequence(i, Job((1, 2, i))) for i in range(3)]
    for one in sequences:
        engine.submit(one)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert [(o.sequence, o.message) for o in outputs if isinstance(o, Broken)] == [
        (sequences[1], "no token is left")
    ]
    assert [one.num_generated > 0 for one in sequences] == [True, False, True]
    assert all(sampler.is_closed for sampler in runner.samplers)
    engine.check_integrity()
