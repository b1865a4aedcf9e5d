"""Decides which tokens run next. Knows no model, no text, no clock.

Steps that decode, a token of every answer, take turns with steps that prefill, a chunk of the oldest prompts: a
mixed batch would be cut into those two passes by llama.cpp anyway, and run 8 % slower than they do. So no answer
stalls for longer than a chunk. Adapters take turns too (`turns.py`). When the cells run short, cached prefixes go
first; then the newest sequences give their slots back and go on later; nobody else notices. A sequence
whose context is full and that has a window shifts before anything else is decided.
Invariants: what the running sequences hold and are about to compute fits into the cells; a batch never exceeds its
budget and is one adapter's alone; one running sequence is never preempted, so something always makes progress.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ocak.engine.batch import Batch
from ocak.engine.chunks import Affordable, Chunks, decode_rows
from ocak.engine.compaction import Compaction
from ocak.engine.moves import Move
from ocak.engine.padding import full
from ocak.engine.prefix_cache import Keep, Prefix
from ocak.engine.sequence import Sequence
from ocak.engine.slot_limits import Reuse, SlotLimits
from ocak.engine.slots import Slots
from ocak.engine.turns import Turn, Turns
from ocak.engine.waiting import Waiting

PASSED_OVER = 8  # cells of others take as long as one of one's own (0.5B, flash attention on a CPU)


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    parallel: int  # sequences that run at once
    context: int  # tokens per sequence
    num_cells: int  # shared by all; at least `context`
    batch_tokens: int = 512
    num_slots: int = 0  # at least `parallel`; 0: just those
    shares_cells: bool = False  # a copied prefix takes no cells
    reuse: Reuse = "parts"
    keeps_prefixes: bool = False
    host_tokens: int = 0  # of prefixes saved to host memory
    moves_cells: bool = True  # a shift need not compute what stays again
    fills_tall: bool = True  # parts of prompts that are nearly a tall tile are run as one
    is_on_cpu: bool = False  # attention reads the cells one after another
    is_uniform: bool = False  # rows are computed by the same kernels, whoever else is there

    def __post_init__(self) -> None:
        assert self.num_cells >= self.context > 1, "one sequence must fit"
        assert self.batch_tokens >= self.parallel >= 1, "every sequence must be able to decode"

    @property
    def slot_limits(self) -> SlotLimits:
        return SlotLimits(
            num_slots=max(self.num_slots, self.parallel),
            num_cells=self.num_cells,
            shares_cells=self.shares_cells,
            reuse=self.reuse,
            keeps_prefixes=self.keeps_prefixes,
            host_tokens=self.host_tokens,
            is_on_cpu=self.is_on_cpu,
            moves_cells=self.moves_cells,
        )


class Scheduler:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.slots = Slots(limits.slot_limits)
        self.waiting = Waiting()
        self._compaction = Compaction(self.slots)
        self._num_turns = 0
        self._is_crowded = False  # since a preemption; until a sequence ends, nobody is admitted
        self._is_short = False  # of cells: somebody waits for some
        self._turns = Turns()
        self._chunks = Chunks(limits.batch_tokens, is_uniform=limits.is_uniform)
        self.num_preemptions = 0

    @property
    def running(self) -> dict[int, Sequence]:
        return self.slots.running

    @property
    def num_present(self) -> int:
        """Sequences that have not ended."""
        return len(self.waiting) + len(self.running)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_committed(self) -> int:
        """Cells that the running sequences hold or are about to."""
        return self.slots.cache.num_held + sum(sequence.num_next for sequence in self.running.values())

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def schedule(self, affordable: Affordable) -> Batch:
        """Pick the next batch, of about as many tokens as are affordable if they are prompts'."""
        moves = [*self._compaction.moves(), *self._shift_full(), *self._preempt_until_fitting()]
        admitted, seated = self._admit_waiting()
        if self._is_short:
            seated += self.slots.cache.push_out(is_short=True)
        rows, turn = self._next_rows(affordable)
        rows.sort(key=_slot)
        evicted = self._make_room(sum(count for _, count in rows))
        return Batch(tuple(rows), (*moves, *seated, *evicted), admitted, turn.is_prefill, turn.adapter)

    @property
    def num_decoding_groups(self) -> int:
        """How many batches it takes until every answer under way has a token more."""
        return len({sequence.adapter for sequence in self.running.values() if not sequence.in_prefill})

    def _next_rows(self, affordable: Affordable) -> tuple[list[tuple[Sequence, int]], Turn]:
        decoding = {slot: sequence for slot, sequence in self.running.items() if not sequence.in_prefill}
        prompts = {slot: sequence for slot, sequence in self.running.items() if sequence.in_prefill}
        turn = self._turns.next(_adapters(decoding), _adapters(prompts))
        prompts = _of(prompts, turn.adapter)
        if turn.is_prefill:
            return self._chunks.pick(prompts, lambda num_computed: affordable(self.depth(num_computed))), turn
        lenders = {} if self.limits.shares_cells else prompts  # whose cells would come to lie apart
        return decode_rows(_of(decoding, turn.adapter), lenders), turn

    def depth(self, num_computed: int) -> int:
        """How deep a row behind so many tokens is: where cells are shared, others' count a little."""
        others = self.slots.cells.num_used - num_computed if self.limits.shares_cells else 0
        return num_computed + max(0, others) // PASSED_OVER

    def parts(self, batch: Batch) -> list[tuple[int, int]]:
        """What was run of each prompt of a batch that was computed: how many rows, and how deep."""
        starts = ((count, sequence.num_computed - count) for sequence, count in batch.rows)
        fills_tall = self.limits.fills_tall
        return [(full(count, start, fills_tall=fills_tall), self.depth(start)) for count, start in starts]

    def advance(self, batch: Batch) -> None:
        """Note that the batch was computed."""
        for sequence, count in batch.rows:
            assert sequence.slot is not None
            sequence.num_computed += count
            self.slots.grow(sequence.slot, count)
        if not batch.is_prefill:
            self._compaction.scatter(len(batch.rows))

    def confirm(self, sequence: Sequence) -> None:
        """Note that the sequence's pending token was guessed, and so computed already."""
        assert sequence.slot is not None
        sequence.num_computed += 1
        self.slots.grow(sequence.slot, 1)

    def take_back(self, sequence: Sequence, count: int) -> list[Move]:
        """Unsay the last tokens of an answer."""
        sequence.take_back(count)
        return [] if sequence.slot is None else self.slots.cache.trim(sequence.slot, sequence.num_computed)

    def rewind(self, batch: Batch) -> list[Move]:
        """Note that the batch was left half computed; its sequences try again."""
        return [self.slots.rewind(sequence) for sequence, _ in batch.rows]

    def remove(self, sequence: Sequence, keep: Keep = "host") -> list[Move]:
        """Forget a sequence that has finished."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            return []
        self._is_crowded = False
        return self._release(sequence, keep)

    def _release(self, sequence: Sequence, keep: Keep = "host") -> list[Move]:
        self._compaction.give_back(sequence.num_computed)
        return self.slots.release(sequence, keep)

    def make_room(self) -> list[Move] | None:
        """Give cells back after a batch had no room: a cached prefix, else the newest sequence."""
        return self.slots.cache.evict() or self._preempt_newest()

    def _preempt_newest(self) -> list[Move] | None:
        """Send a running sequence back to wait, unless it is the only one.

        It is the newest of the least urgent ones of the tenant that runs most.
        """
        if len(self.running) < 2:
            return None
        held = Counter(sequence.tenant for sequence in self.running.values())
        newest = max(self.running.values(), key=lambda one: (held[one.tenant], one.priority, one.turn))
        moves = self._release(newest)
        newest.restart()
        self.waiting.add(newest)
        self._is_crowded = True
        self.num_preemptions += 1
        return moves

    def _shift_full(self) -> list[Move]:
        """Make room in full contexts. A prompt that shifts lets those pass that were admitted meanwhile."""
        moves: list[Move] = []
        for sequence in [sequence for sequence in self.running.values() if sequence.is_full]:
            if sequence.in_prefill:
                sequence.prefill_turn = self._next_turn()
            moves += self.slots.shift(sequence)
        return moves

    def _next_turn(self) -> int:
        self._num_turns += 1
        return self._num_turns

    def _preempt_until_fitting(self) -> list[Move]:
        """Preempt somebody if the cells are too few; then as many as it takes for the others to grow a while."""
        moves: list[Move] = []
        if not (self._may_not_fit() and self.num_committed > self.limits.num_cells):
            return moves
        while self.num_committed + self._growth(self._share) > self.limits.num_cells:
            released = self._preempt_newest()
            if released is None:
                break
            moves += released
        assert self.num_committed <= self.limits.num_cells, "one sequence always fits"
        return moves

    @property
    def _share(self) -> int:
        """Each one's of the cells, but for a token that is about to be computed."""
        return max(0, self.limits.num_cells // self.limits.parallel - 1)

    def _growth(self, most: int, *others: Sequence) -> int:
        """Cells for so many tokens more of each running sequence, and of others, or for the rest of an answer."""
        sequences = [*self.running.values(), *others]
        return sum(min(most, sequence.may_grow(self.limits.context)) for sequence in sequences)

    def _may_not_fit(self) -> bool:
        """Whether the cells would be too few if none were shared; quick to tell."""
        return sum(sequence.num_wanted for sequence in self.running.values()) > self.limits.num_cells

    def _make_room(self, count: int) -> list[Move]:
        """Evict cached prefixes until so many cells are free."""
        moves: list[Move] = []
        while self.slots.cells.num_free < count:
            evicted = self.slots.cache.evict()
            assert evicted, "the running sequences fit"
            moves += evicted
        return moves

    def _admit_waiting(self) -> tuple[tuple[Sequence, ...], list[Move]]:
        """Seat those whose turn it is; who waits for a prefix that is being computed lets others pass."""
        self._is_short = self._is_crowded and bool(self.waiting)
        if self._is_crowded or not self.waiting:
            return (), []
        admitted: list[Sequence] = []
        moves: list[Move] = []
        passed: set[int] = set()
        while len(self.running) < self.limits.parallel and len(passed) < self.limits.parallel:
            sequence = self.waiting.next(self.running.values(), passed)
            if sequence is None:
                break
            prefix = self.slots.longest_prefix(sequence)
            if prefix is None:
                passed.add(sequence.id)
                continue
            if not self._would_fit(sequence, prefix):
                self._is_short = True
                break
            self.waiting.take(sequence)
            moves += self.slots.take(sequence, prefix)
            if not sequence.is_admitted:
                sequence.is_admitted = True
                sequence.turn = sequence.prefill_turn = self._next_turn()
                sequence.num_cached = prefix.length
                admitted.append(sequence)
        return tuple(admitted), moves

    def _would_fit(self, sequence: Sequence, prefix: Prefix) -> bool:
        if self.limits.num_cells >= self.limits.parallel * self.limits.context:
            return True
        is_shared = self.limits.shares_cells and prefix.holder in self.running
        fresh = sequence.num_wanted - (prefix.num_shared if is_shared else 0)
        growth = self._growth(self._share // 2, sequence) if self.running else 0
        return self.num_committed + fresh + growth <= self.limits.num_cells

    def check_integrity(self) -> None:
        """Assert the invariants; for tests, and for the engine when it is idle."""
        self.slots.check_integrity()
        assert len(self.running) <= self.limits.parallel
        assert all(sequence.slot is None and sequence.num_computed == 0 for sequence in self.waiting)
        assert not any(sequence.is_finished for sequence in [*self.waiting, *self.running.values()])


def _adapters(sequences: dict[int, Sequence]) -> set[str]:
    return {sequence.adapter for sequence in sequences.values()}


def _of(sequences: dict[int, Sequence], adapter: str) -> dict[int, Sequence]:
    return {slot: sequence for slot, sequence in sequences.items() if sequence.adapter == adapter}


def _slot(row: tuple[Sequence, int]) -> int:
    slot = row[0].slot
    assert slot is not None
    return slot
