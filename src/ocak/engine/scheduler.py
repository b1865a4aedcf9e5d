"""Decides which tokens run next. Knows no model, no text, no clock.

Decoding sequences go first so they never stall; the rest of the token budget goes to prompts, oldest first, in
chunks. When the cells run short, the newest sequence gives its slot back and is computed again later; nobody
else notices.
Invariants: a slot has at most one sequence; the tokens of all running sequences fit into the cells; a batch
never exceeds its budget; the oldest sequence always makes progress.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ocak.engine.sequence import Sequence

GRAIN = 32  # chunks of whole grains suit the kernels
STRETCH = 1.1  # by how much a chunk may exceed what was wanted to end its prompt


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    num_slots: int
    context: int  # tokens per sequence
    num_cells: int  # shared by all slots; at least `context`
    batch_tokens: int = 512

    def __post_init__(self) -> None:
        assert self.num_cells >= self.context > 1, "one sequence must fit"
        assert self.batch_tokens >= self.num_slots >= 1, "every slot must be able to decode"


@dataclass(frozen=True, slots=True)
class Batch:
    """What to compute: pairs of a sequence and how many of its pending tokens, ordered by slot."""

    rows: tuple[tuple[Sequence, int], ...]
    admitted: tuple[Sequence, ...]  # for the first time, in this batch

    @property
    def num_prefill(self) -> int:
        return sum(count for sequence, count in self.rows if sequence.in_prefill)

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.rows)


class Scheduler:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by slot
        self._free_slots = list(range(limits.num_slots))  # a heap: the lowest first keeps batches dense
        self._is_crowded = False  # since a preemption; until a sequence ends, nobody is admitted
        self.num_preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_committed(self) -> int:
        """Cells that the running sequences hold or are about to."""
        return sum(len(sequence.tokens) for sequence in self.running.values())

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self, prefill_tokens: int) -> tuple[Batch, tuple[int, ...]]:
        """Pick the next batch with about `prefill_tokens` of prompts; also return the slots to clear first."""
        cleared = self._preempt_until_fitting()
        admitted = self._admit_waiting()
        rows = self._decode_rows()
        rows += self._prefill_rows(prefill_tokens, self.limits.batch_tokens - len(rows))
        rows += self._bridge_rows(rows)
        rows.sort(key=_slot)
        return Batch(tuple(rows), admitted), cleared

    def remove(self, sequence: Sequence) -> int | None:
        """Forget a sequence that has finished; return the slot to clear, None if it held none."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return None
        self._is_crowded = False
        return self._release(sequence)

    def preempt_newest(self) -> int | None:
        """Send the newest running sequence back to wait; return its slot, None if it is the only one."""
        if len(self.running) < 2:
            return None
        newest = max(self.running.values(), key=lambda sequence: sequence.id)
        slot = self._release(newest)
        newest.num_computed = 0
        self.waiting.appendleft(newest)
        self._is_crowded = True
        self.num_preemptions += 1
        return slot

    def _preempt_until_fitting(self) -> tuple[int, ...]:
        cleared = []
        while self.num_committed > self.limits.num_cells:
            slot = self.preempt_newest()
            assert slot is not None, "one sequence always fits"
            cleared.append(slot)
        return tuple(cleared)

    def _admit_waiting(self) -> tuple[Sequence, ...]:
        admitted = []
        committed = self.num_committed
        while self.waiting and self._free_slots and not self._is_crowded:
            committed += len(self.waiting[0].tokens)
            if committed > self.limits.num_cells:
                break
            sequence = self.waiting.popleft()
            sequence.slot = heapq.heappop(self._free_slots)
            self.running[sequence.slot] = sequence
            if not sequence.is_admitted:
                sequence.is_admitted = True
                admitted.append(sequence)
        return tuple(admitted)

    def _decode_rows(self) -> list[tuple[Sequence, int]]:
        return [(sequence, 1) for sequence in self.running.values() if not sequence.in_prefill]

    def _prefill_rows(self, wanted: int, most: int) -> list[tuple[Sequence, int]]:
        """Chunks of prompts, oldest first; a prompt's small rest is taken along rather than left for a step."""
        prefilling = sorted(self._prefilling(), key=lambda sequence: sequence.id)
        most -= len(prefilling)  # room for a bridge, whoever needs it
        rows = []
        for sequence in prefilling:
            if wanted <= 0:
                break
            pending = sequence.num_pending
            chunk = pending if pending <= wanted * STRETCH else max(wanted - wanted % GRAIN, 1)
            count = min(chunk, most + 1)
            rows.append((sequence, count))
            wanted -= chunk
            most -= count - 1
        return rows

    def _bridge_rows(self, rows: list[tuple[Sequence, int]]) -> list[tuple[Sequence, int]]:
        """A token of each prompt that waits in a slot between the others: llama.cpp cuts a batch at gaps."""
        slots = {_slot(row) for row in rows}
        if not slots:
            return []
        between = range(min(slots), max(slots))
        return [(self.running[slot], 1) for slot in between if slot in self.running and slot not in slots]

    def _prefilling(self) -> Iterable[Sequence]:
        return (sequence for sequence in self.running.values() if sequence.in_prefill)

    def _release(self, sequence: Sequence) -> int:
        slot = sequence.slot
        assert slot is not None and self.running.pop(slot) is sequence
        heapq.heappush(self._free_slots, slot)
        sequence.slot = None
        return slot

    def check_integrity(self) -> None:
        """Assert the invariants; for tests, and for the engine when it is idle."""
        assert sorted([*self._free_slots, *self.running]) == list(range(self.limits.num_slots))
        assert all(sequence.slot == slot for slot, sequence in self.running.items())
        assert all(sequence.slot is None and sequence.num_computed == 0 for sequence in self.waiting)
        assert not any(sequence.is_finished for sequence in [*self.waiting, *self.running.values()])


def _slot(row: tuple[Sequence, int]) -> int:
    slot = row[0].slot
    assert slot is not None
    return slot
