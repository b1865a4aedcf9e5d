"""Turns, against a plain list."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.sequence import Sequence
from ocak.engine.waiting import Waiting

arrivals = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1)), max_size=20)


def made(requests: list[tuple[str, int]]) -> list[Sequence]:
    return [
        Sequence(index, [1], Sampling(), 1, frozenset(), tenant, priority)
        for index, (tenant, priority) in enumerate(requests)
    ]


@settings(max_examples=500)
@given(arrivals, st.integers(1, 4))
def test_everybody_is_served_once_and_shares_are_fair(requests: list[tuple[str, int]], slots: int) -> None:
    waiting, running, served = Waiting(), list[Sequence](), list[Sequence]()
    for sequence in made(requests):
        waiting.add(sequence)
    while len(waiting):
        if len(running) == slots:
            running.pop(0)
        sequence = waiting.next(running)
        assert sequence is not None
        held = {tenant: sum(other.tenant == tenant for other in running) for tenant in "abc"}
        assert held[sequence.tenant] == min(held[other.tenant] for other in waiting)
        own = [(other.priority, other.id) for other in waiting if other.tenant == sequence.tenant]
        assert (sequence.priority, sequence.id) == min(own)
        waiting.take(sequence)
        running.append(sequence)
        served.append(sequence)
    assert sorted(sequence.id for sequence in served) == list(range(len(requests)))


def test_those_who_are_passed_over_keep_their_place() -> None:
    waiting = Waiting()
    first, second, third = made([("a", 0), ("a", 0), ("b", 0)])
    for sequence in (first, second, third):
        waiting.add(sequence)
    assert waiting.next([], {0}) is second
    assert waiting.next([], {0, 1}) is third
    assert waiting.next([], {0, 1, 2}) is None
    assert waiting.next([]) is first
