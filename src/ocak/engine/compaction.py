"""Puts cells together again that steps have scattered.

A step that decodes gives each answer one cell beside those of all others, so where cells are shared an answer's
come to lie far apart, and attention on a CPU reads them slowly: with 16 answers of 256 to 512 tokens in 8,192
cells a step took 111 ms, and 77 with each one's cells in a row (0.5B Q4_0, two cores; docs/adr/0012). They are
saved to host memory and put back one answer after the other: what was decoded since the last time, or all once
others have left many gaps. A thousand cells take about 8 ms.
Invariant: what several slots hold stays where it is.
"""

from __future__ import annotations

from ocak.engine.moves import Forget, Move, Restore, Save, Trim
from ocak.engine.slots import Slots

LEAST = 512  # tokens that were decoded, or cells given back, since the last time
WORTH_MOVING = 8  # cells of an answer
GAPS = 0.5  # of the cells in use, given back: then all move


class Compaction:
    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._num_scattered = 0
        self._num_given_back = 0
        self._lengths: dict[int, int] = {}  # by sequence: its first cells that lie in a row, or in a few

    def scatter(self, count: int) -> None:
        """So many cells were given out by a step that decoded."""
        self._num_scattered += count

    def give_back(self, count: int) -> None:
        """So many cells of one sequence were given back."""
        self._num_given_back += count

    def moves(self) -> list[Move]:
        """Return how to put together what each answer has to itself, if it is time to."""
        cells = self._slots.cells
        has_gaps = self._num_given_back >= max(LEAST, GAPS * cells.num_used)
        if not self._slots.limits.compacts or not (has_gaps or self._num_scattered >= LEAST):
            return []
        self._num_scattered = 0
        if has_gaps:
            self._num_given_back = 0
            self._lengths.clear()
        return self._move(self._scattered())

    def _scattered(self) -> dict[int, range]:
        """What is to be moved of each slot."""
        cells, before = self._slots.cells, self._lengths
        parts: dict[int, range] = {}
        self._lengths = {}
        for slot, sequence in self._slots.running.items():
            start, end = max(cells.num_shared(slot), before.get(sequence.id, 0)), cells.length(slot)
            if sequence.in_prefill or end - start < WORTH_MOVING:
                self._lengths[sequence.id] = before.get(sequence.id, 0)
            else:
                self._lengths[sequence.id] = end
                parts[slot] = range(start, end)
        return parts

    def _move(self, parts: dict[int, range]) -> list[Move]:
        keys = {slot: self._slots.cache.new_key() for slot in parts}
        saves: list[Move] = [Save(slot, keys[slot], part.start) for slot, part in parts.items()]
        trims = [Trim(slot, part.start) for slot, part in parts.items()]
        back = ((Restore(keys[slot], slot, part.stop), Forget(keys[slot])) for slot, part in parts.items())
        return [*saves, *trims, *(move for pair in back for move in pair)]
