"""Which rows are lent to a step: gaps closed, tiles filled, and only where that has proved quicker."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ocak.engine.padding import RETRY, TALL, TILE, RowTimes, full, gaps, neighbours, reach, tile_mates, tiled

slots = st.sets(st.integers(0, 31), min_size=1)


@given(slots, slots, st.integers(0, 32))
def test_slots_lend_a_row_once_and_no_more_than_asked_for(busy: set[int], others: set[int], count: int) -> None:
    others = others - busy
    closing, near = gaps(busy, others), neighbours(busy, others, count)
    assert len([*closing, *near]) == len({*closing, *near})
    assert {*closing, *near} <= others
    assert all(min(busy) < slot < max(busy) for slot in closing)
    assert not any(min(busy) < slot < max(busy) for slot in near) and len(near) <= count


@given(slots)
def test_only_gaps_longer_than_a_tile_are_left(busy: set[int]) -> None:
    taken = sorted([*busy, *gaps(busy, set(range(32)) - busy)])
    assert all(b - a == 1 or b - a > TILE for a, b in pairwise(taken))


def test_a_long_gap_is_cheaper_cut_than_closed() -> None:
    assert gaps({0, 15}, set(range(1, 15))) == []
    assert gaps({0, 2}, {1, 3, 4}) == [1]
    assert neighbours({3, 4}, {0, 1, 2, 5}, 3) == [5, 2, 1]


@given(st.integers(0, 10_000))
def test_attention_costs_the_same_up_to_its_reach(depth: int) -> None:
    assert depth <= reach(depth) < depth + 256 and reach(reach(depth)) == reach(depth)


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


@given(st.sets(st.integers(0, 63), min_size=1))
def test_tile_mates_make_whole_tiles_of_slots(busy: set[int]) -> None:
    mates = tile_mates(busy)
    assert not busy & set(mates) and len(mates) == len(set(mates))
    assert {slot // TILE for slot in mates} <= {slot // TILE for slot in busy}
    assert len(busy) + len(mates) == TILE * len({slot // TILE for slot in busy})


def test_few_rows_less_than_a_tall_tile_are_filled_up_at_depth_alone() -> None:
    assert full(48, 512) == full(63, 3000) == full(64, 3000) == TALL
    assert full(47, 512) == 48 and full(65, 3000) == 68
    assert full(62, 511) == 64 and full(50, 511) == 52
    assert full(48, 3000, 16, fills_tall=False) == 48
