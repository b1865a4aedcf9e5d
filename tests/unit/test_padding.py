"""Which rows are lent to a step: gaps closed, tiles filled, and only where that has proved quicker."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ocak.engine.padding import RETRY, TILE, RowTimes, lenders, tiled

slots = st.sets(st.integers(0, 31), min_size=1)


@given(slots, slots, st.integers(0, 32))
def test_empty_slots_are_lent_once_and_no_more_than_asked_for(busy: set[int], others: set[int], rows: int) -> None:
    empty = others - busy
    closing = lenders(busy, empty, 0)
    lent = lenders(busy, empty, rows)
    assert len(lent) == len(set(lent))
    assert set(closing) <= set(lent) <= empty
    assert len(lent) <= max(len(closing), rows - len(busy))


@given(slots, st.integers(0, 32))
def test_only_gaps_longer_than_a_tile_are_left(busy: set[int], rows: int) -> None:
    taken = sorted([*busy, *lenders(busy, set(range(32)) - busy, rows)])
    assert all(b - a == 1 or b - a > TILE for a, b in pairwise(taken))


def test_a_long_gap_is_cheaper_cut_than_closed() -> None:
    assert lenders({0, 15}, set(range(1, 15)), 2) == []
    assert lenders({0, 2}, {1, 3, 4}, 4) == [1, 3]


def learn(seconds: dict[int, float]) -> RowTimes:
    times = RowTimes()
    for rows, value in seconds.items():
        for _ in range(20):
            times.observe(rows, value)
    return times


@given(st.integers(1, 64), st.integers(0, 8))
def test_rows_are_never_fewer_than_needed_nor_more_than_can_be_filled(rows: int, more: int) -> None:
    assert rows <= RowTimes().best(rows, rows + more) <= min(tiled(rows), rows + more)


def test_the_tile_is_filled_where_that_is_quicker() -> None:
    choices = [learn({15: 0.082, 16: 0.053}).best(15, 16) for _ in range(RETRY - 1)]
    assert set(choices) == {16}


def test_the_tile_is_not_filled_where_that_costs_more_or_nothing_is_gained() -> None:
    assert learn({2: 0.024, TILE: 0.032}).best(2, 16) == 2
    assert learn({15: 0.053, 16: 0.053}).best(15, 16) == 15


def test_both_ways_are_tried_and_tried_again_now_and_then() -> None:
    times = RowTimes()
    first = times.best(15, 16)
    times.observe(first, 0.05)
    second = times.best(15, 16)
    times.observe(second, 0.08)
    assert {first, second} == {15, 16}
    later = [times.best(15, 16) for _ in range(RETRY)]
    assert later.count(first) == RETRY - 1
