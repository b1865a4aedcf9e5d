"""Turns sequences into vectors, many in one pass: `step()` is schedule, run, apply, as the `Engine`'s.

A sequence that wants a vector never decodes: it is at its end when its prompt is computed. So a pass takes whole
sequences, in the order of `Waiting`, up to a budget of tokens; a longer one has a pass to itself, or where the
model reads left to right and looks at the last token alone, goes in parts, beside others.
Speaks token ids only; driven by one thread. Invariants: every sequence that was submitted ends exactly once, by an
`EmbeddedOutput` or `Broken` output or by `finish`; only the one that goes in parts holds cells between two steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from ocak.core.status import EngineStats
from ocak.engine.embedding_runner import EmbeddingRunner, Vector
from ocak.engine.outputs import Admitted, Broken
from ocak.engine.prefix_cache import Keep
from ocak.engine.runner import Aborted, Chunk, RunFailed
from ocak.engine.sequence import Sequence
from ocak.engine.waiting import Waiting


@dataclass(frozen=True, slots=True)
class EmbedderLimits:
    num_slots: int  # sequences in one pass
    context: int  # the longest sequence
    batch_tokens: int  # of a pass, unless one sequence alone is longer
    num_cells: int  # where a pass of tokens, and the longest sequence, have room
    can_split: bool  # whether a sequence may go in parts


@dataclass(frozen=True, slots=True)
class EmbeddedOutput:
    """The sequence has its vector, as the model made it."""

    sequence: Sequence
    vector: Vector


EmbedderOutput = Admitted | EmbeddedOutput | Broken


class Embedder:
    def __init__(self, runner: EmbeddingRunner, limits: EmbedderLimits) -> None:
        self.limits = limits
        self._runner = runner
        self._waiting = Waiting()
        self._partial: Sequence | None = None  # begun, not at its end
        self._unwanted: set[int] = set()  # of the pass that runs, those that were cancelled
        self._in_pass: frozenset[int] = frozenset()
        self._num_in_pass = 0  # of the last one
        self._num_steps = 0
        self._num_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or self._partial is not None

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; it must fit the context."""
        assert 1 <= sequence.num_prompt <= self.limits.context
        self._waiting.add(sequence)

    def finish(self, sequence: Sequence, keep: Keep = "nothing", num_surplus: int = 0) -> None:
        """End a sequence now; ending it again does nothing. Nothing of it is worth keeping, or surplus."""
        if sequence.is_finished:
            return
        sequence.is_finished = True
        if sequence is self._partial:
            self._drop(sequence)
            self._partial = None
        elif sequence.slot is None:
            self._waiting.remove(sequence)

    def abort(self, sequence_id: int) -> None:
        """Cut the running pass short if everybody in it is unwanted by now; from any thread.

        By a race it may cut the next one short, which is computed again then.
        """
        in_pass = self._in_pass
        if sequence_id in in_pass:
            self._unwanted.add(sequence_id)
            if self._unwanted >= in_pass:
                self._runner.abort()

    def step(self) -> list[EmbedderOutput]:
        """Compute one pass and return what came of it."""
        rows = self._schedule()
        outputs: list[EmbedderOutput] = [Admitted(sequence) for sequence, _ in rows if not sequence.is_admitted]
        for sequence, _ in rows:
            sequence.is_admitted = True
        try:
            vectors = self._run(rows)
        except Aborted:
            self._rewind(rows)
        except RunFailed as error:
            outputs += self._break(rows, str(error))
        else:
            outputs += self._apply(rows, vectors)
        self._num_steps += 1
        self._num_in_pass = len(rows)
        return outputs

    def tidy(self) -> bool:
        """Nothing can wait until there is no work."""
        return False

    def _schedule(self) -> list[tuple[Sequence, int]]:
        """Pick the sequences of the next pass, each with how many of its tokens, ordered by slot."""
        rows: list[tuple[Sequence, int]] = []
        room = self.limits.batch_tokens
        if self._partial is not None:
            room = min(room, self.limits.num_cells - self._partial.num_computed)
            share = room // 2 if self._waiting else room  # nobody waits until a long one is through
            rows.append((self._partial, min(self._partial.num_pending, max(1, share))))
            room -= rows[0][1]
        while len(rows) < self.limits.num_slots:
            sequence = self._waiting.next(sequence for sequence, _ in rows)
            count = 0 if sequence is None else self._fitting(sequence, room, is_first=not rows)
            if sequence is None or not count:
                break
            self._seat(sequence, rows)
            rows.append((sequence, count))
            room -= count
        if self._partial is not None:  # what the others leave is its own
            rows[0] = (self._partial, min(self._partial.num_pending, rows[0][1] + max(0, room)))
        return sorted(rows, key=lambda row: row[0].slot or 0)

    def _fitting(self, sequence: Sequence, room: int, *, is_first: bool) -> int:
        """How many of the sequence's tokens go into a pass with so much room left."""
        if sequence.num_prompt <= room:
            return sequence.num_prompt
        if self.limits.can_split:
            return room if self._partial is None else 0
        return sequence.num_prompt if is_first else 0

    def _seat(self, sequence: Sequence, rows: list[tuple[Sequence, int]]) -> None:
        self._waiting.take(sequence)
        taken = {other.slot for other, _ in rows}
        sequence.slot = next(slot for slot in range(self.limits.num_slots) if slot not in taken)

    def _run(self, rows: list[tuple[Sequence, int]]) -> list[Vector]:
        chunks = [self._chunk(sequence, count) for sequence, count in rows]
        ends = [chunk.slot for chunk, (seq, count) in zip(chunks, rows, strict=True) if count == seq.num_pending]
        self._unwanted.clear()
        self._in_pass = frozenset(sequence.id for sequence, _ in rows)
        try:
            return self._runner.run(chunks, ends)
        finally:
            self._in_pass = frozenset()

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        assert sequence.slot is not None
        start = sequence.num_computed
        return Chunk(sequence.slot, start, sequence.tokens[start : start + count], None)

    def _apply(self, rows: list[tuple[Sequence, int]], vectors: list[Vector]) -> list[EmbedderOutput]:
        outputs: list[EmbedderOutput] = []
        left = iter(vectors)
        self._partial = None
        for sequence, count in rows:
            sequence.num_computed += count
            self._num_tokens += count
            if sequence.num_pending:
                self._partial = sequence
                continue
            sequence.is_finished = True
            self._drop(sequence)
            outputs.append(EmbeddedOutput(sequence, next(left)))
        return outputs

    def _rewind(self, rows: list[tuple[Sequence, int]]) -> None:
        """Start them all again: how far the pass came is not worth knowing."""
        self._partial = None
        for sequence, _ in rows:
            self._drop(sequence)
            self._waiting.add(sequence)

    def _break(self, rows: list[tuple[Sequence, int]], message: str) -> list[EmbedderOutput]:
        self._partial = None
        for sequence, _ in rows:
            self._drop(sequence)
            sequence.is_finished = True
        return [Broken(sequence, message) for sequence, _ in rows]

    def _drop(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._runner.clear(sequence.slot)
        sequence.slot = None
        sequence.num_computed = 0

    def stats(self, busy_s: float = 0.0) -> EngineStats:
        """A snapshot; `busy_s` is the caller's measure of its time with the engine."""
        held = self._num_in_pass if self.has_work else 0
        return EngineStats(
            slots=self.limits.num_slots,
            slots_used=held,
            running=held,
            waiting=len(self._waiting),
            steps=self._num_steps,
            busy_s=busy_s,
            decode_s=self._runner.decode_s,
            prompt_tokens=self._num_tokens,
        )

    def check_integrity(self) -> None:
        """Assert the invariants."""
        assert all(s.slot is None and s.num_computed == 0 and not s.is_finished for s in self._waiting)
        if self._partial is not None:
            assert self._partial.slot is not None and 0 < self._partial.num_computed < self._partial.num_prompt
