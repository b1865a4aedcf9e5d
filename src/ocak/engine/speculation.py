"""Guesses the next tokens of a sequence that decodes alone, where that pays: by look-up, or by a draft model.

The guesses are run beside the last token, and the sampler picks at each place for as long as it agrees with them:
so what is picked is what would have been picked one by one. The way that promises more tokens a second is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

from ocak.engine.batch import Batch
from ocak.engine.drafting import Draft
from ocak.engine.lookup import FIRST_SHARE, History
from ocak.engine.payoff import GUESSES, StepTimes
from ocak.engine.scheduler import Scheduler
from ocak.engine.sequence import Sequence


@dataclass(slots=True)
class GuessCount:
    """Tokens that were guessed, and of them those that were right; of both, the draft's."""

    num: int = 0
    num_right: int = 0
    num_drafted: int = 0
    num_right_drafts: int = 0
    draft_s: float = 0.0  # inside the draft's passes


class Speculator:
    """Decides what to guess for a sequence that decodes alone."""

    def __init__(self, draft: Draft | None = None, *, is_on: bool = True) -> None:
        self._is_on = is_on
        self._draft = draft
        self._histories: dict[int, History] = {}
        self._times = StepTimes()
        self._is_drafted = False  # what was guessed last
        self.count = GuessCount()

    def guess(self, batch: Batch, scheduler: Scheduler) -> list[int]:
        """Return guesses to run beside the batch; none unless it is of one sequence that decodes, the only one."""
        alone = _lone_answer(batch, scheduler) if self._is_on else None
        return [] if alone is None else self.guess_for(*alone)

    def guess_for(self, sequence: Sequence, room: int) -> list[int]:
        """Return the next tokens as they might be, none where guessing would not pay; at most `room`."""
        room = min(room, sequence.max_tokens - sequence.num_generated - 1)
        history = self._history(sequence)
        history.update(sequence)
        self._is_drafted = False
        if self._times.is_stale:
            return []
        count, speed = self._times.best(history.share, GUESSES)
        found = _before_end(history.lookup.guess(min(count, room)), sequence)
        drafted = []
        if self._draft is not None:
            drafted = self._draft.guess(sequence, room, self._times, speed if found else 1.0)
        self._is_drafted = bool(drafted)
        return drafted or found

    def observe(self, num_guessed: int, num_right: int, seconds: float) -> float:
        """Learn from a step of one sequence; return how long it was without the draft."""
        num_drafted, num_right_drafts = (num_guessed, num_right) if self._is_drafted else (0, 0)
        if self._draft is not None:
            seconds = self._draft.settle(num_drafted, num_right_drafts, seconds, self._times.alone_s)
            self.count.draft_s = self._draft.seconds
        self._times.observe(num_guessed, seconds)
        self.count.num += num_guessed
        self.count.num_right += num_right
        self.count.num_drafted += num_drafted
        self.count.num_right_drafts += num_right_drafts
        return seconds

    def forget(self, sequence: Sequence) -> None:
        """Note that the sequence has ended."""
        self._histories.pop(sequence.id, None)
        if self._draft is not None:
            self._draft.forget(sequence)

    def _history(self, sequence: Sequence) -> History:
        known = self._histories.get(sequence.id)
        if known is None or not known.is_of(sequence):
            known = History(sequence, FIRST_SHARE if known is None else known.share)
            self._histories[sequence.id] = known
        return known


def _lone_answer(batch: Batch, scheduler: Scheduler) -> tuple[Sequence, int] | None:
    """Return a sequence that decodes while nobody else does, and how many guesses it has room for."""
    if batch.is_prefill or len(scheduler.running) != 1 or not batch.rows:
        return None
    sequence = batch.rows[0][0]
    if not sequence.is_scored or sequence.in_prefill:
        return None
    # Without a window the token that fills the context is the last.
    context = scheduler.limits.context - 1 if sequence.window is None else sequence.window.context
    spare = min(scheduler.slots.cells.num_free, scheduler.limits.batch_tokens) - 1
    return sequence, min(spare, context - len(sequence.tokens))


def _before_end(guesses: list[int], sequence: Sequence) -> list[int]:
    ends = (place for place, token in enumerate(guesses) if token in sequence.end_tokens)
    return guesses[: next(ends, len(guesses))]
