"""The account of KV cells: how many each slot holds, and how many are free.

It mirrors what llama.cpp does and is told nothing by it. In the split layout counting is enough; in the unified
one slots share cells, and a shared cell counts once, however many hold it.
Invariant: a cell is free exactly while no slot holds it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

NONE: NDArray[np.int32] = np.empty(0, np.int32)


class Cells(Protocol):
    num_free: int

    @property
    def num_used(self) -> int: ...

    def length(self, slot: int) -> int:
        """The number of cells that the slot holds."""
        ...

    def num_held(self, slots: Collection[int], other: int = -1, count: int = 0) -> int:
        """The number of cells that these slots hold together, and the first so many of another."""
        ...

    def append(self, slot: int, count: int) -> None:
        """Give the slot so many free cells more."""
        ...

    def copy(self, source: int, slot: int, count: int) -> None:
        """Give the slot, which holds none, the first cells of another, or as many of its own."""
        ...

    def trim(self, slot: int, keep: int) -> None:
        """Take all cells but the first from the slot."""
        ...

    def cut(self, slot: int, keep: int, count: int) -> None:
        """Take so many cells behind the first from the slot; those behind them are its own and move up."""
        ...

    def is_private(self, slot: int, start: int) -> bool:
        """Whether no other slot holds the slot's cells from `start` on."""
        ...

    def num_shared(self, slot: int) -> int:
        """How many of the slot's first cells others may hold too; none behind them."""
        ...

    def check_integrity(self) -> None:
        """Assert the invariant."""
        ...


class SplitCells:
    def __init__(self, num_cells: int) -> None:
        self._lengths: dict[int, int] = {}
        self._num_cells = num_cells
        self.num_free = num_cells

    @property
    def num_used(self) -> int:
        return self._num_cells - self.num_free

    def length(self, slot: int) -> int:
        return self._lengths.get(slot, 0)

    def num_held(self, slots: Collection[int], other: int = -1, count: int = 0) -> int:
        return sum(map(self.length, slots)) + (0 if other in slots else count)

    def append(self, slot: int, count: int) -> None:
        assert count <= self.num_free, "more cells than there are"
        self._lengths[slot] = self.length(slot) + count
        self.num_free -= count

    def copy(self, source: int, slot: int, count: int) -> None:
        assert self.length(slot) == 0 and 0 < count <= self.length(source)
        self.append(slot, count)

    def trim(self, slot: int, keep: int) -> None:
        kept = min(keep, self.length(slot))
        self.num_free += self.length(slot) - kept
        self._lengths[slot] = kept

    def cut(self, slot: int, keep: int, count: int) -> None:
        assert 0 < count <= self.length(slot) - keep
        self._lengths[slot] -= count
        self.num_free += count

    def is_private(self, slot: int, start: int) -> bool:
        return True

    def num_shared(self, slot: int) -> int:
        return 0

    def check_integrity(self) -> None:
        assert sum(self._lengths.values()) == self.num_used <= self._num_cells


class UnifiedCells:
    def __init__(self, num_cells: int) -> None:
        self._free: NDArray[np.int32] = np.arange(num_cells, dtype=np.int32)  # a stack, up to `num_free`
        self.num_free = num_cells
        self._num_holders: NDArray[np.int32] = np.zeros(num_cells, np.int32)
        self._held: dict[int, NDArray[np.int32]] = {}  # by slot, in the order of the positions

    @property
    def num_used(self) -> int:
        return len(self._free) - self.num_free

    def length(self, slot: int) -> int:
        return len(self._held.get(slot, NONE))

    def num_held(self, slots: Collection[int], other: int = -1, count: int = 0) -> int:
        mask = np.zeros(len(self._num_holders), np.bool_)
        mask[self._held.get(other, NONE)[:count]] = True
        for slot in slots:
            mask[self._held.get(slot, NONE)] = True
        return int(mask.sum())

    def append(self, slot: int, count: int) -> None:
        assert count <= self.num_free, "more cells than there are"
        fresh = self._free[self.num_free - count : self.num_free]
        self.num_free -= count
        self._num_holders[fresh] = 1
        if count:
            self._held[slot] = np.concatenate((self._held.get(slot, NONE), fresh))

    def copy(self, source: int, slot: int, count: int) -> None:
        assert self.length(slot) == 0 and 0 < count <= self.length(source)
        self._held[slot] = self._held[source][:count].copy()
        self._num_holders[self._held[slot]] += 1

    def trim(self, slot: int, keep: int) -> None:
        held = self._held.pop(slot, NONE)
        self._give_back(held[keep:])
        if keep and len(held):
            self._held[slot] = held[:keep]

    def cut(self, slot: int, keep: int, count: int) -> None:
        held = self._held[slot]
        assert 0 < count <= len(held) - keep and self.is_private(slot, keep + count)
        self._give_back(held[keep : keep + count])
        self._held[slot] = np.concatenate((held[:keep], held[keep + count :]))

    def is_private(self, slot: int, start: int) -> bool:
        return bool((self._num_holders[self._held[slot][start:]] == 1).all())

    def num_shared(self, slot: int) -> int:
        shared = np.flatnonzero(self._num_holders[self._held.get(slot, NONE)] > 1)
        return int(shared[-1]) + 1 if len(shared) else 0

    def _give_back(self, dropped: NDArray[np.int32]) -> None:
        self._num_holders[dropped] -= 1
        freed = dropped[self._num_holders[dropped] == 0]
        self._free[self.num_free : self.num_free + len(freed)] = freed
        self.num_free += len(freed)

    def check_integrity(self) -> None:
        holders = np.zeros_like(self._num_holders)
        for held in self._held.values():
            assert len(held)
            np.add.at(holders, held, 1)
        assert (holders == self._num_holders).all()
        assert np.array_equal(np.sort(self._free[: self.num_free]), np.flatnonzero(holders == 0))
