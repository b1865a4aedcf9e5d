"""The radix tree against a plain dictionary, through thousands of random histories."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.engine.prefix_tree import PrefixTree, common_length

paths = st.lists(st.integers(0, 2), max_size=12)
roots = st.sampled_from(["one", "two"])
inserts = st.tuples(st.just("insert"), st.integers(0, 5), roots, paths)
removes = st.tuples(st.just("remove"), st.integers(0, 5), roots, paths)


def common(left: list[int], right: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
    )


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.one_of(inserts, inserts, removes), max_size=30), roots, paths)
def test_the_tree_finds_what_a_search_through_all_slots_finds(
    history: list[tuple[str, int, str, list[int]]], root: str, wanted: list[int]
) -> None:
    tree = PrefixTree()
    plain: dict[int, tuple[str, list[int]]] = {}
    for action, slot, where, path in history:
        if action == "insert":
            tree.insert(slot, where, path)
            plain[slot] = where, path
        else:
            tree.remove(slot)
            plain.pop(slot, None)
        tree.check_integrity()
    expected = {slot: common(path, wanted) for slot, (where, path) in plain.items() if where == root}
    assert tree.match(root, wanted) == {slot: length for slot, length in expected.items() if length}


@given(paths, paths, st.integers(0, 5))
def test_common_length(run: list[int], path: list[int], start: int) -> None:
    start = min(start, len(path))
    assert common_length(run, path, start) == common(run, path[start:])


def test_a_chain_of_ever_longer_beginnings_is_no_deeper_than_memory() -> None:
    tree = PrefixTree()
    base = list(range(3000))
    for slot in range(1500):
        tree.insert(slot, "", [*base[: slot + 1], 5000])
    tree.check_integrity()
    assert tree.match("", base)[700] == 701


def test_a_long_shared_prefix_is_one_node() -> None:
    tree = PrefixTree()
    shared = list(range(10_000))
    for slot in range(64):
        tree.insert(slot, "", [*shared, 20_000 + slot])
    assert set(tree.match("", [*shared, 5]).values()) == {10_000}
    assert tree.match("", [*shared, 20_007])[7] == 10_001
    tree.check_integrity()
