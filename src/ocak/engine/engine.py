"""Turns sequences into tokens, many at a time: `step()` is schedule, run, apply.

Speaks token ids only; its owner makes text of them and calls `finish` at a stop string. One thread drives it.
Invariants: every sequence that was submitted ends exactly once, by an `Ended` or `Broken` output or by
`finish`; the moment it ends, its slot and cells are there for others.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import replace

from ocak.core.status import EngineStats
from ocak.engine.batch import Batch
from ocak.engine.drafting import Draft
from ocak.engine.mover import Mover
from ocak.engine.outputs import Admitted, Broken, Output, Sampled, Scored
from ocak.engine.pacing import Pacer
from ocak.engine.prefix_cache import Keep
from ocak.engine.runner import Aborted, CellData, Chunk, NoRoom, NoToken, RunFailed, Runner
from ocak.engine.scheduler import Scheduler, SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.speculation import Speculator


class Engine:
    def __init__(
        self,
        runner: Runner,
        limits: SchedulerLimits,
        *,
        step_target_s: float = 0.2,
        speculates: bool = False,
        draft: Draft | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = Scheduler(limits)
        self._mover = Mover(runner, self._scheduler.slots)
        self._pacer = Pacer(step_target_s, limits.batch_tokens, fills_tall=limits.fills_tall)
        self._speculator = Speculator(draft, is_on=speculates and limits.reuse == "parts")
        self._in_prefill: int | None = None  # the sequence that has the running batch to itself
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated = 0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; without a window its prompt must leave room for one token in the context."""
        context = self._scheduler.limits.context
        assert sequence.tokens and (sequence.window or len(sequence.tokens) < context)
        assert sequence.window is None or sequence.window.context <= context
        self._scheduler.add(sequence)

    def finish(self, sequence: Sequence, keep: Keep = "host", num_surplus: int = 0) -> None:
        """End a sequence now: stopped, cancelled or left by its client. Ending it again does nothing.

        What it computed may be kept as a prefix for others: in its slot, and if worth it in host memory. The last
        `num_surplus` tokens came after its end and are unsaid; if it has ended already, they stay in the prefix.
        """
        if num_surplus:
            self._mover.make(self._scheduler.take_back(sequence, num_surplus))
            self._num_generated -= num_surplus
        if sequence.is_finished:
            return
        self._speculator.forget(sequence)
        sequence.is_finished = True
        self._mover.make(self._scheduler.remove(sequence, keep))
        if sequence.sampler is not None:
            sequence.sampler.close()

    def abort(self, sequence_id: int) -> None:
        """Cut the running step short if it prefills this sequence and nobody else; from any thread.

        A step later, by a race, it cuts another's short, which is computed again then.
        """
        if self._in_prefill == sequence_id:
            self._runner.abort()

    def step(self) -> list[Output]:
        """Compute one batch and return what came of it."""
        started = time.perf_counter()
        batch = self._schedule()
        guesses = self._speculator.guess(batch, self._scheduler)
        outputs: list[Output] = [Admitted(sequence) for sequence in batch.admitted]
        try:
            tokens = self._run(batch, guesses)
        except Aborted:
            self._mover.make(self._scheduler.rewind(batch))
        except NoRoom as error:
            outputs += self._make_room(batch, error)
        except RunFailed as error:
            outputs += self._break(batch, str(error))
        else:
            outputs += self._confirm(batch, guesses, tokens) if guesses else self._apply(batch, tokens)
            self._observe(batch, len(guesses), len(tokens) - 1, time.perf_counter() - started)
        self._num_steps += 1
        return outputs

    def tidy(self) -> bool:
        """Do a part of what can wait until there is no work; return whether there may be more."""
        cache = self._scheduler.slots.cache
        before = cache.num_saved
        self._mover.make(cache.save_ahead())
        return cache.num_saved > before

    def _schedule(self) -> Batch:
        scheduler, pacer = self._scheduler, self._pacer
        batch = scheduler.schedule(pacer.prefill_tokens_alone if scheduler.num_present == 1 else self._among)
        self._mover.make(batch.moves)
        self._runner.use_adapter(batch.adapter)
        return batch

    def _among(self, depth: int) -> int:
        return self._pacer.prefill_tokens(depth, max(1, self._scheduler.num_decoding_groups))

    def _observe(self, batch: Batch, num_guessed: int, num_right: int, seconds: float) -> None:
        if batch.is_prefill:
            self._pacer.observe_prefill(self._scheduler.parts(batch), seconds)
            return
        if len(batch.rows) == 1:
            seconds = self._speculator.observe(num_guessed, num_right, seconds)
        self._pacer.observe_decode(seconds)

    def _run(self, batch: Batch, guesses: list[int]) -> list[int | NoToken]:
        chunks = [self._chunk(sequence, count) for sequence, count in batch.rows]
        if guesses:
            (chunk,) = chunks
            chunks = [replace(chunk, tokens=[*chunk.tokens, *guesses], num_guesses=len(guesses))]
        is_alone = batch.is_prefill and len(batch.rows) == 1
        self._in_prefill = batch.rows[0][0].id if is_alone else None
        try:
            return self._runner.run(chunks)
        finally:
            self._in_prefill = None

    def _chunk(self, sequence: Sequence, count: int) -> Chunk:
        start, end = sequence.num_computed, sequence.num_computed + count
        assert sequence.slot is not None
        rows = sequence.rows_to_score(start, end)
        scored = range(rows.start - start, rows.stop - start) if rows else rows
        if end < len(sequence.tokens):
            return Chunk(sequence.slot, start, sequence.tokens[start:end], None, scored)
        if sequence.sampler is None:
            sequence.sampler = self._runner.new_sampler(sequence.sampling, sequence.tokens, sequence.rules)
        is_told = sequence.num_logprobs is not None
        return Chunk(sequence.slot, start, sequence.tokens[start:end], sequence.sampler, scored, 0, is_told)

    def _apply(self, batch: Batch, tokens: list[int | NoToken]) -> list[Output]:
        outputs: list[Output] = []
        place = 0
        self._scheduler.advance(batch)
        for sequence, count in batch.rows:
            self._num_prompt_tokens += sequence.num_of_prompt(count)
            outputs += self._score(sequence, sequence.num_computed - count)
            if sequence.num_pending == 0:
                outputs.append(self._append(sequence, tokens[place], place))
                place += 1
        return outputs

    def _confirm(self, batch: Batch, guesses: list[int], tokens: list[int | NoToken]) -> list[Output]:
        """Take the guesses that were right, and the token behind them; the cells of the others go."""
        ((sequence, count),) = batch.rows
        assert sequence.slot is not None and len(tokens) <= len(guesses) + 1
        self._runner.trim(sequence.slot, sequence.num_computed + count + len(tokens) - 1)
        self._scheduler.advance(batch)
        self._num_prompt_tokens += sequence.num_of_prompt(count)
        num_tokens = sum(not isinstance(token, NoToken) for token in tokens)
        outputs: list[Output] = []
        for place, token in enumerate(tokens):
            if place:
                self._scheduler.confirm(sequence)
            outputs.append(self._append(sequence, token, place, num_behind=num_tokens - 1 - place))
        return outputs

    def _score(self, sequence: Sequence, start: int) -> list[Scored]:
        """Tell what the rows from `start` on say of the prompt's tokens behind them."""
        rows = sequence.rows_to_score(start, sequence.num_computed)
        slot, count = sequence.slot, sequence.num_prompt_logprobs
        if not rows or slot is None or count is None:
            return []
        behind = (sequence.tokens[row + 1] for row in rows)
        told = tuple(self._runner.prompt_logprobs(slot, place, t, count) for place, t in enumerate(behind))
        sequence.num_scored += len(rows)
        return [Scored(sequence, told)]

    def _append(self, sequence: Sequence, token: int | NoToken, place: int, num_behind: int = 0) -> Output:
        if isinstance(token, NoToken):
            self.finish(sequence)
            return Broken(sequence, str(token))
        self._num_generated += 1
        count = sequence.num_logprobs
        logprobs = None if count is None else self._runner.logprobs(place, token, count)
        reason = sequence.append(token, self._scheduler.limits.context)
        if reason is not None:
            self.finish(sequence)
        return Sampled(sequence, token, reason, logprobs, num_behind)

    def _make_room(self, batch: Batch, error: NoRoom) -> list[Output]:
        moves = self._scheduler.make_room()
        if moves is None:
            return self._break(batch, str(error))
        self._mover.make(moves)
        return []

    def _break(self, batch: Batch, message: str) -> list[Output]:
        self._mover.make(self._scheduler.rewind(batch))
        for sequence, _ in batch.rows:
            self.finish(sequence, "nothing")
        return [Broken(sequence, message) for sequence, _ in batch.rows]

    def export(self, root: Hashable, tokens: list[int]) -> tuple[int, CellData]:
        """Return how many of the tokens are computed and cached, and cells that begin with them.

        Raises `RunFailed`, `MemoryError`.
        """
        cache = self._scheduler.slots.cache
        prefix = cache.find(root, tokens)
        if prefix.is_saved:
            return prefix.length, self._runner.saved_data(prefix.pieces[0].key)
        slot, moves = cache.gather(prefix, root, tokens)
        self._mover.make(moves)
        length = min(prefix.length, cache.cells.length(slot))
        if not length:
            return 0, b""
        key = cache.new_key()
        self._runner.save(slot, key)
        data = self._runner.saved_data(key)
        self._runner.forget(key)
        return length, data

    def adopt(self, root: Hashable, tokens: list[int], data: CellData) -> bool:
        """Cache a prefix whose cells were exported before; return whether there was room. Raises `RunFailed`."""
        cache = self._scheduler.slots.cache
        slot, moves = cache.adopt(root, tokens)
        self._mover.make(moves)
        if slot is None:
            return False
        key = cache.new_key()
        self._runner.put_data(key, data)
        try:
            self._runner.restore(key, slot, len(tokens))
        except RunFailed:
            self._mover.make(cache.drop(slot))
            raise
        finally:
            self._runner.forget(key)
        return True

    def stats(self, busy_s: float = 0.0) -> EngineStats:
        """A snapshot; `busy_s` is the caller's measure of its time with the engine."""
        scheduler, guesses = self._scheduler, self._speculator.count
        return EngineStats(
            slots=scheduler.limits.parallel,
            slots_used=len(scheduler.running),
            kv_cells=scheduler.limits.num_cells,
            kv_cells_used=scheduler.slots.cache.num_held,
            kv_cells_cached=scheduler.slots.cache.num_idle,
            saved_tokens=scheduler.slots.cache.num_saved,
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            preemptions=scheduler.num_preemptions,
            steps=self._num_steps,
            busy_s=busy_s,
            decode_s=self._runner.decode_s,
            prompt_tokens=self._num_prompt_tokens,
            generation_tokens=self._num_generated,
            guessed_tokens=guesses.num,
            right_guesses=guesses.num_right,
            drafted_tokens=guesses.num_drafted,
            right_drafts=guesses.num_right_drafts,
            draft_s=guesses.draft_s,
        )

    def check_integrity(self) -> None:
        self._scheduler.check_integrity()
