"""Adapters take turns: nobody waits for ever, and a batch is one adapter's alone."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeRunner
from ocak.engine.outputs import Sampled
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.turns import Turns
from ocak.engine.waiting import Waiting

ADAPTERS = ("", "a", "b", "c", "d")
groups = st.sets(st.sampled_from(ADAPTERS))


def sequence(index: int, adapter: str = "", length: int = 3, **changes: object) -> Sequence:
    tokens = [(index * 7 + i) % 90 + 1 for i in range(length)]
    fixed: dict[str, object] = {"max_tokens": 6, "end_tokens": frozenset[int](), "root": ("", adapter)}
    return Sequence(index, tokens, Sampling(seed=0), adapter=adapter, **(fixed | changes))  # type: ignore[arg-type]


@given(groups, groups, st.lists(st.tuples(groups, groups), max_size=20))
def test_each_of_k_adapters_decodes_within_a_round_and_prefills_within_p_rounds(
    decoding: set[str], prefilling: set[str], before: list[tuple[set[str], set[str]]]
) -> None:
    turns = Turns()
    for earlier in before:
        if any(earlier):
            turns.next(*earlier)
    if not decoding and not prefilling:
        return
    num_rounds = max(1, len(prefilling))
    size = len(decoding) + bool(prefilling)
    taken = [turns.next(decoding, prefilling) for _ in range(3 * num_rounds * size)]
    for start in range(len(taken) - num_rounds * size + 1):
        window = taken[start : start + num_rounds * size]
        for adapter in decoding:
            assert any(turn.adapter == adapter and not turn.is_prefill for turn in window[:size])
        for adapter in prefilling:
            assert any(turn.adapter == adapter and turn.is_prefill for turn in window)


@given(st.lists(st.tuples(groups, groups).filter(any), min_size=1, max_size=60))
def test_those_who_come_and_go_hold_nobody_up_for_longer_than_every_adapter_there_is(
    states: list[tuple[set[str], set[str]]],
) -> None:
    """`c` wants to decode and `d` to prefill all the time."""
    turns = Turns()
    taken = [turns.next({*decoding, "c"}, {*prefilling, "d"}) for decoding, prefilling in states]
    since_decode = since_prefill = 0
    for turn in taken:
        since_decode = 0 if turn.adapter == "c" and not turn.is_prefill else since_decode + 1
        since_prefill = 0 if turn.adapter == "d" and turn.is_prefill else since_prefill + 1
        assert since_decode <= 2 * len(ADAPTERS)
        assert since_prefill <= len(ADAPTERS) * (len(ADAPTERS) + 1)


def test_with_one_adapter_prompts_and_answers_take_turns() -> None:
    turns = Turns()
    assert [turns.next({"a"}, {"a"}).is_prefill for _ in range(6)] in ([True, False] * 3, [False, True] * 3)


jobs = st.lists(
    st.tuples(st.sampled_from(ADAPTERS), st.integers(1, 40), st.integers(0, 20)), min_size=1, max_size=12
)


def answers(wanted: list[tuple[str, int, int]], limits: SchedulerLimits) -> tuple[list[list[int]], FakeRunner]:
    runner = FakeRunner(num_cells=limits.num_cells, shares_cells=limits.shares_cells)
    engine = Engine(runner, limits)
    sequences = [sequence(i, adapter, length) for i, (adapter, length, _) in enumerate(wanted)]
    left = list(enumerate(wanted))
    step = 0
    while left or engine.has_work:
        for index, _ in [one for one in left if one[1][2] <= step]:
            engine.submit(sequences[index])
        left = [one for one in left if one[1][2] > step]
        step += 1
        if engine.has_work:
            engine.step()
            engine.check_integrity()
    return [one.tokens[one.num_prompt :] for one in sequences], runner


@given(jobs, st.integers(1, 4), st.integers(4, 40), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_an_answer_is_the_same_alone_and_among_other_adapters(
    wanted: list[tuple[str, int, int]], parallel: int, budget: int, kind: tuple[bool, bool, bool]
) -> None:
    is_shared, keeps, has_states = kind
    limits = SchedulerLimits(
        parallel=parallel,
        context=64,
        num_cells=80 if is_shared else 64 * parallel,
        batch_tokens=max(budget, parallel),
        num_slots=2 * parallel if is_shared else parallel,
        shares_cells=is_shared,
        keeps_prefixes=keeps,
        reuse="wholes" if has_states else "parts",
        host_tokens=200,
    )
    together, _ = answers(wanted, limits)
    for index, (adapter, length, _) in enumerate(wanted):
        alone = Engine(FakeRunner(), SchedulerLimits(1, 64, 64))
        one = sequence(index, adapter, length)
        alone.submit(one)
        while alone.has_work:
            alone.step()
        assert one.tokens[one.num_prompt :] == together[index]


def test_a_prefix_of_another_adapter_is_not_used() -> None:
    size = SchedulerLimits(4, 64, 256, keeps_prefixes=True)
    engine = Engine(FakeRunner(num_cells=256), size)
    cached = []
    for index, adapter in enumerate(["", "a", "", "a"]):
        one = sequence(index, adapter, max_tokens=2)
        one.tokens[:] = range(1, 51)
        one.num_prompt = 50
        engine.submit(one)
        while engine.has_work:
            engine.step()
        cached.append(one.num_cached)
    assert cached == [0, 0, 49, 49]


def test_a_flood_of_one_adapter_leaves_another_its_share_of_slots_and_steps() -> None:
    runner = FakeRunner()
    engine = Engine(runner, SchedulerLimits(4, 64, 256))
    flood = [sequence(i, "a", length=30) for i in range(60)]
    for one in flood:
        engine.submit(one)
    for _ in range(5):
        engine.step()
    late = sequence(100, "b")
    engine.submit(late)
    steps = 0
    while not late.is_finished:
        engine.step()
        steps += 1
    assert sum(one.is_finished for one in flood) <= 8, "all before it, instead of those who held the slots"
    started = runner.adapters.index("b")
    others = Counter(runner.adapters[started : runner.adapters.index("b") + 3 * late.max_tokens])
    assert others["b"] >= late.max_tokens


def test_a_share_of_slots_goes_by_adapter_among_those_of_the_same_urgency() -> None:
    waiting = Waiting()
    for index, (adapter, priority) in enumerate([("a", 0), ("a", 0), ("a", 0), ("b", 0), ("c", 5), ("a", -1)]):
        waiting.add(sequence(index, adapter, priority=priority))
    order: list[int] = []
    seated: list[Sequence] = []
    while (one := waiting.next(seated)) is not None:
        waiting.take(one)
        seated.append(one)
        order.append(one.id)
    assert order == [5, 3, 0, 1, 2, 4]


def test_every_answer_of_every_adapter_goes_on_while_prompts_come_in() -> None:
    engine = Engine(FakeRunner(), SchedulerLimits(8, 64, 512, batch_tokens=16))
    answering = [sequence(i, adapter, max_tokens=40) for i, adapter in enumerate(("a", "b", "c"))]
    for one in answering:
        engine.submit(one)
    for _ in range(6):
        engine.step()
    for i in range(5):
        engine.submit(sequence(10 + i, "d", length=50))
    tokens = [[o.sequence.adapter for o in engine.step() if isinstance(o, Sampled)] for _ in range(12)]
    for start in range(9):
        window = [adapter for step in tokens[start : start + 4] for adapter in step]
        assert {"a", "b", "c"} <= set(window)
