"""Who begins with the same tokens: a radix tree over token ids.

Every path from a root spells the tokens of the holders that stand on it: slots, or keys of saved prefixes. A root
is one tenant's: nothing is ever found across roots.
Invariants: a slot is in every node of its path and in no other; no node is without a slot; siblings begin with
different tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Node:
    """A run of tokens that follow one another in all of `slots`."""

    run: list[int]
    slots: set[int]
    children: dict[int, Node] = field(default_factory=dict)  # by their first token


class PrefixTree:
    def __init__(self) -> None:
        self._roots: dict[Hashable, Node] = {}
        self._paths: dict[int, tuple[Hashable, list[int]]] = {}  # by slot

    def insert(self, slot: int, root: Hashable, tokens: Sequence[int]) -> None:
        """Put the slot's tokens in, in the place of those that it had."""
        self.remove(slot)
        if not tokens:
            return
        path = list(tokens)
        self._paths[slot] = root, path
        node = self._roots.setdefault(root, Node([], set()))
        node.slots.add(slot)
        depth = 0
        while depth < len(path):
            child = node.children.get(path[depth])
            if child is None:
                child = node.children[path[depth]] = Node(path[depth:], set())
            common = common_length(child.run, path, depth)
            if common < len(child.run):
                _split(child, common)
            child.slots.add(slot)
            depth += common
            node = child

    def remove(self, slot: int) -> None:
        """Take the slot's tokens out, if it has any."""
        root, path = self._paths.pop(slot, (None, []))
        if not path:
            return
        node = self._roots[root]
        node.slots.remove(slot)
        if not node.slots:
            del self._roots[root]
            return
        depth = 0
        while depth < len(path):
            child = node.children[path[depth]]
            child.slots.remove(slot)
            if not child.slots:
                del node.children[path[depth]]
                return
            depth += len(child.run)
            node = child

    def path(self, slot: int) -> tuple[Hashable, list[int]]:
        """Return the slot's root and tokens."""
        return self._paths[slot]

    def lengths(self, first: int) -> dict[int, int]:
        """Return how many tokens each holder has, from the number `first` on."""
        return {holder: len(path) for holder, (_, path) in self._paths.items() if holder >= first}

    def match(self, root: Hashable, tokens: Sequence[int], end: int | None = None) -> dict[int, int]:
        """Return the slots that begin as `tokens` does up to `end`, and for how long."""
        lengths: dict[int, int] = {}
        node = self._roots.get(root)
        end = len(tokens) if end is None else end
        depth = 0
        while node is not None and depth < end:
            child = node.children.get(tokens[depth])
            left = set[int]() if child is None else child.slots
            if depth:
                lengths.update(dict.fromkeys(node.slots - left, depth))
            if child is None:
                return lengths
            common = min(common_length(child.run, tokens, depth), end - depth)
            depth += common
            node = child
            if common < len(child.run):
                break
        if node is not None and depth:
            lengths.update(dict.fromkeys(node.slots, depth))
        return lengths

    def check_integrity(self) -> None:
        """Assert the invariants."""
        found: dict[int, tuple[Hashable, list[int]]] = {}
        for root, top in self._roots.items():
            left = [(top, list[int]())]
            while left:
                node, path = left.pop()
                below = [child.slots for child in node.children.values()]
                assert node.slots and sum(map(len, below)) == len(set[int]().union(*below))
                found.update(dict.fromkeys(node.slots.difference(*below), (root, path)))
                for first, child in node.children.items():
                    assert child.run and child.run[0] == first and child.slots <= node.slots
                    left.append((child, path + child.run))
        assert found == self._paths


def common_length(run: Sequence[int], path: Sequence[int], start: int) -> int:
    """Return how many tokens of `run` stand in `path` from `start` on."""
    low, high = 0, min(len(run), len(path) - start)
    if run[:high] == path[start : start + high]:
        return high
    while high - low > 1:  # the first `low` are alike, the first `high` are not
        middle = (low + high) // 2
        if run[low:middle] == path[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low


def _split(node: Node, length: int) -> None:
    """Cut a node's run in two; the second part becomes its only child."""
    rest = Node(node.run[length:], set(node.slots), node.children)
    node.run, node.children = node.run[:length], {rest.run[0]: rest}
