"""Who holds which slot, and what the free ones still know.

A slot that a sequence has left keeps its cells as a cached prefix until the slot or its cells are needed; the
least recently used goes first. A new sequence starts from the longest prefix that any slot of its tenant holds,
running or cached.
Invariants: a slot has at most one sequence; the account of cells and the tree agree with what every slot holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ocak.engine.cells import Cells
from ocak.engine.prefix_tree import PrefixTree
from ocak.engine.sequence import Sequence

Reuse = Literal["parts", "wholes", "nothing"]
WORTH_WAITING = 16  # tokens that another sequence is about to compute


@dataclass(frozen=True, slots=True)
class SlotLimits:
    num_slots: int  # sequence ids that llama.cpp knows
    num_cells: int
    shares_cells: bool = False  # a copy takes no cells (the unified layout)
    reuse: Reuse = "nothing"  # of cached prefixes: any part of them, only whole ones, or none


@dataclass(frozen=True, slots=True)
class Trim:
    """Remove all cells of the slot but the first."""

    slot: int
    keep: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Give the slot, which holds nothing, the first cells of another."""

    source: int
    slot: int
    count: int


Move = Trim | Copy


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt that a slot already holds."""

    slot: int
    length: int


NO_PREFIX = Prefix(-1, 0)


class Slots:
    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.running: dict[int, Sequence] = {}
        self.cells = Cells(limits.num_cells)
        self._tree = PrefixTree()
        self._cached: dict[int, None] = {}  # slots that hold cells and no sequence, least recently used first

    @property
    def num_held(self) -> int:
        """Cells of the running sequences; shared ones count once."""
        if not self.limits.shares_cells:
            return sum(map(self.cells.length, self.running))
        return self.cells.num_held(self.running)

    @property
    def num_cached(self) -> int:
        """Cells that only slots without a sequence hold."""
        return self.cells.num_used - self.num_held

    def longest_prefix(self, sequence: Sequence) -> Prefix | None:
        """Return the best start for a sequence; None if it is worth waiting for one that is being computed."""
        if self.limits.reuse == "nothing":
            return NO_PREFIX
        best, coming = NO_PREFIX, 0
        # One token is always left to compute: its logits are the first answer's.
        for slot, common in self._tree.match(sequence.root, sequence.tokens[:-1]).items():
            held = self.cells.length(slot)
            length = min(common, held) if self.limits.reuse == "parts" or held <= common else 0
            if length > best.length or (length == best.length and slot in self._cached):
                best = Prefix(slot, length)
            if slot in self.running and self.limits.reuse == "parts":
                coming = max(coming, common)
        return None if coming - best.length >= WORTH_WAITING else best

    def take(self, sequence: Sequence, prefix: Prefix) -> list[Move]:
        """Seat a sequence on the prefix; return how to make it so."""
        slot = self._choose(prefix)
        self._cached.pop(slot, None)
        moves: list[Move] = []
        if slot == prefix.slot:
            moves += self._trim(slot, prefix.length)
        else:
            moves += self._trim(slot, 0)
            if prefix.length:
                self._copy(prefix, slot)
                self._touch(prefix.slot)
                moves.append(Copy(prefix.slot, slot, prefix.length))
        sequence.slot = slot
        sequence.num_computed = prefix.length
        self.running[slot] = sequence
        self._tree.insert(slot, sequence.root, sequence.tokens)
        return moves

    def release(self, sequence: Sequence, *, keep: bool = True) -> list[Move]:
        """Take the sequence's slot from it; what it has computed may be kept as a prefix."""
        slot = sequence.slot
        assert slot is not None and self.running.pop(slot) is sequence
        sequence.slot = None
        if not keep or self.limits.reuse == "nothing" or not self.cells.length(slot):
            return self._drop(slot)
        self._tree.insert(slot, sequence.root, sequence.tokens[: sequence.num_computed])
        self._cached[slot] = None
        return []

    def grow(self, slot: int, count: int) -> None:
        """Note that so many cells were added to the slot."""
        self.cells.append(slot, count)

    def evict(self) -> list[Move]:
        """Drop the cached prefix that was not used for the longest time; nothing if there is none."""
        oldest = next(iter(self._cached), None)
        return [] if oldest is None else self._drop(oldest)

    def _choose(self, prefix: Prefix) -> int:
        """The slot for a new sequence: the prefix's own if it holds no more, an empty one, or the oldest."""
        if prefix.slot in self._cached and self.cells.length(prefix.slot) == prefix.length:
            return prefix.slot
        empty = next((slot for slot in range(self.limits.num_slots) if self._is_empty(slot)), None)
        if empty is not None:
            return empty
        return next(iter(self._cached))

    def _is_empty(self, slot: int) -> bool:
        return slot not in self.running and slot not in self._cached

    def _copy(self, prefix: Prefix, slot: int) -> None:
        if self.limits.shares_cells:
            self.cells.share(prefix.slot, slot, prefix.length)
        else:
            self.cells.append(slot, prefix.length)

    def _touch(self, slot: int) -> None:
        if slot in self._cached:
            del self._cached[slot]
            self._cached[slot] = None

    def _trim(self, slot: int, keep: int) -> list[Move]:
        if self.cells.length(slot) == keep:
            return []
        self.cells.trim(slot, keep)
        return [Trim(slot, keep)]

    def _drop(self, slot: int) -> list[Move]:
        self._cached.pop(slot, None)
        self._tree.remove(slot)
        return self._trim(slot, 0)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        self.cells.check_integrity()
        self._tree.check_integrity()
        assert not self._cached.keys() & self.running.keys()
        for slot, sequence in self.running.items():
            assert sequence.slot == slot and not sequence.is_finished
            assert self.cells.length(slot) == sequence.num_computed
        for slot in self._cached:
            assert self.cells.length(slot) > 0
