"""Decides which tokens run next. Knows no model, no text, no clock.

Steps that decode, a token of every answer, take turns with steps that prefill, a chunk of the oldest prompts: a
mixed batch would be cut into those two passes by llama.cpp anyway, and run 8 % slower than they do. So no answer
stalls for longer than a chunk. When the cells run short, the newest sequence gives its slot back and is computed
again later; nobody else notices.
Invariants: a slot has at most one sequence; the tokens of all running sequences fit into the cells; a batch
never exceeds its budget; the oldest sequence always makes progress.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from ocak.engine.padding import lenders, tiled
from ocak.engine.sequence import Sequence

GRAIN = 32  # chunks of whole grains suit the kernels
STRETCH = 1.25  # by how much a chunk may exceed what was wanted to end its prompt


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
    is_prefill: bool

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
        self._has_prefilled = False  # in the last batch
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
        """Pick the next batch, of about `prefill_tokens` if they are prompts'; also the slots to clear first."""
        cleared = self._preempt_until_fitting()
        admitted = self._admit_waiting()
        decoding = {slot: sequence for slot, sequence in self.running.items() if not sequence.in_prefill}
        prompts = {slot: sequence for slot, sequence in self.running.items() if sequence.in_prefill}
        self._has_prefilled = bool(prompts) and not (decoding and self._has_prefilled)
        if self._has_prefilled:
            rows = self._prefill_rows(prompts, prefill_tokens)
        else:
            rows = _decode_rows(decoding, prompts)
        rows.sort(key=_slot)
        return Batch(tuple(rows), admitted, self._has_prefilled), cleared

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

    def _prefill_rows(self, prompts: dict[int, Sequence], wanted: int) -> list[tuple[Sequence, int]]:
        """Whole prompts as long as they fit, oldest first, else a part of the oldest.

        A prompt's small rest is taken along rather than left for a step; parts of several prompts would be cut
        into many small passes.
        """
        room = self.limits.batch_tokens
        rows: list[tuple[Sequence, int]] = []
        for sequence in sorted(prompts.values(), key=lambda sequence: sequence.id):
            pending = sequence.num_pending
            if pending > min(wanted * STRETCH, room):
                part = min(max(wanted - wanted % GRAIN, 1), room)
                return rows or [(sequence, part)]
            rows.append((sequence, pending))
            wanted -= pending
            room -= pending
        return rows

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


def _decode_rows(decoding: dict[int, Sequence], prompts: dict[int, Sequence]) -> list[tuple[Sequence, int]]:
    """A token of every answer, and of so many prompts as fill the gaps between the slots and the last tile."""
    lent = lenders(decoding, prompts, tiled(len(decoding))) if decoding else []
    return [(sequence, 1) for sequence in [*decoding.values(), *(prompts[slot] for slot in lent)]]


def _slot(row: tuple[Sequence, int]) -> int:
    slot = row[0].slot
    assert slot is not None
    return slot
