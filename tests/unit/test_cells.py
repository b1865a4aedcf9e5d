"""The account of cells against plain lists."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.engine.cells import Cells, SplitCells, UnifiedCells

NUM_CELLS = 24
slots = st.integers(0, 4)
moves = st.one_of(
    st.tuples(st.just("append"), slots, slots, st.integers(0, 8)),
    st.tuples(st.just("copy"), slots, slots, st.integers(0, 8)),
    st.tuples(st.just("trim"), slots, slots, st.integers(0, 8)),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(moves, max_size=40), st.sampled_from([SplitCells, UnifiedCells]))
def test_cells_are_counted_once_and_freed_with_their_last_holder(
    history: list[tuple[str, int, int, int]], layout: Callable[[int], Cells]
) -> None:
    cells = layout(NUM_CELLS)
    plain: dict[int, list[object]] = {slot: [] for slot in range(5)}
    for action, slot, other, count in history:
        if action == "append" and count <= cells.num_free:
            cells.append(slot, count)
            plain[slot] += [object() for _ in range(count)]
        elif action == "copy" and not plain[slot] and 0 < count <= min(len(plain[other]), cells.num_free):
            cells.copy(other, slot, count)
            copied = plain[other][:count]
            plain[slot] = copied if layout is UnifiedCells else [object() for _ in copied]
        elif action == "trim":
            cells.trim(slot, count)
            plain[slot] = plain[slot][:count]
        cells.check_integrity()
        distinct = {id(cell) for held in plain.values() for cell in held}
        assert cells.num_used == NUM_CELLS - cells.num_free == len(distinct)
        assert [cells.length(each) for each in range(5)] == [len(held) for held in plain.values()]
        pair = {slot, other}
        assert cells.num_held(pair) == len({id(cell) for each in pair for cell in plain[each]})
        third = (slot + 1) % 5
        beginning = {id(cell) for cell in plain[third][:count]}
        both = {id(cell) for each in pair for cell in plain[each]} | beginning
        assert cells.num_held(pair, third, min(count, len(plain[third]))) == len(both)
