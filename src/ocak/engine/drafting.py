"""Guesses by a second, smaller model, whose cells are kept in step with the sequence that is guessed for.

What it has read and the sequence begins with is kept, the rest is read anew: after a wrong guess, a shift, another
sequence; nothing is kept for another tenant, who could tell by the time. Much is read in chunks, a step each.
A draft that fails is not asked again; answers never notice.
Invariant: the drafter's first cells hold the tokens in `_held`; what is behind them goes with the next pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Protocol

from ocak.engine.draft_pay import TRIAL_TOKENS, DraftPay
from ocak.engine.payoff import StepTimes
from ocak.engine.runner import RunFailed
from ocak.engine.sequence import Sequence

logger = logging.getLogger("ocak.engine")


class Drafter(Protocol):
    """A model that guesses, and the cells of one sequence."""

    @property
    def context(self) -> int:
        """Tokens that it has cells for."""
        ...

    @property
    def most_tokens(self) -> int:
        """Tokens that it reads at once."""
        ...

    def read(self, start: int, tokens: Tokens[int]) -> int:
        """Compute tokens from a position on, in place of all that was there and behind; return the likeliest next.

        Raises `RunFailed`.
        """
        ...


class Draft:
    """A drafter, what it has read, and whether it pays."""

    def __init__(
        self,
        drafter: Drafter,
        pay: DraftPay,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._drafter = drafter
        self._pay = pay
        self._clock = clock
        self._held: list[int] = []
        self._root: Hashable = None  # of the sequence that they were read of
        self._compared: tuple[int, int] | None = None  # the last sequence's id, and what it had dropped by then
        self._num_equal = 0  # tokens at its beginning that they were found to begin with
        self._is_off = False
        self._ended: int | None = None  # the sequence for which it guessed nothing but the end
        self._step_s = 0.0  # its time in this step
        self.seconds = 0.0

    def guess(self, sequence: Sequence, room: int, times: StepTimes, rival: float) -> list[int]:
        """Return what the draft says comes next, at most `room` tokens; none where another way promises more.

        See `DraftPay.plan`. None either while it still reads what came before, a chunk each time.
        """
        tokens = sequence.tokens
        most = min(room, self._drafter.context - len(tokens))
        if self._is_off or most <= 0:
            return []
        self._note_end(sequence)
        if sequence.root != self._root:
            self._held, self._root = [], sequence.root
        start = self._kept(sequence)
        num_behind = len(tokens) - start
        num_left = sequence.max_tokens - sequence.num_generated
        count = min(most, self._pay.plan(times, num_behind, num_left, rival))
        if count == 0:
            return []
        try:
            if self._pay.is_trial and num_behind > TRIAL_TOKENS:
                self._compared = None
                return self._guess(sequence, 0, tokens[-min(TRIAL_TOKENS, self._drafter.most_tokens) :], count)
            chunk = min(self._pay.chunk(times), self._drafter.most_tokens)
            if num_behind <= min(chunk, TRIAL_TOKENS):
                return self._guess(sequence, start, tokens[start:], count)
            self._read(start, tokens[start : start + chunk])
            return []
        except RunFailed as error:
            logger.warning("the draft model failed and is not used any more: %s", error)
            self._is_off = True
            return []

    def settle(self, num_guessed: int, num_right: int, seconds: float, alone_s: float | None) -> float:
        """Learn what became of its guesses in a step; return how long the step was without it."""
        draft_s, self._step_s = self._step_s, 0.0
        self.seconds += draft_s
        self._pay.observe_guesses(num_guessed, num_right)
        self._pay.settle(draft_s, seconds - draft_s, alone_s)
        return seconds - draft_s

    def forget(self, sequence: Sequence) -> None:
        """Note that the sequence has ended."""
        if self._compared is not None and self._compared[0] == sequence.id:
            self._compared = None

    def _kept(self, sequence: Sequence) -> int:
        """How many of the tokens it has read; the last is read again, for what comes behind it."""
        compared = (sequence.id, sequence.num_dropped)
        known = min(self._num_equal, len(self._held)) if compared == self._compared else 0
        self._num_equal = known + _num_common(self._held[known:], sequence.tokens[known:])
        self._compared = compared
        return min(self._num_equal, len(sequence.tokens) - 1)

    def _guess(self, sequence: Sequence, start: int, tokens: list[int], count: int) -> list[int]:
        """Read the tokens from a position on, and return what comes behind them."""
        token = self._read(start, tokens)
        guesses: list[int] = []
        while token not in sequence.end_tokens:
            guesses.append(token)
            if len(guesses) == count:
                return guesses
            token = self._read(len(self._held), [token])
        self._ended = None if guesses else sequence.id
        return guesses

    def _read(self, start: int, tokens: list[int]) -> int:
        del self._held[start:]
        started = self._clock()
        try:
            token = self._drafter.read(start, tokens)
        finally:
            seconds = self._clock() - started
            self._step_s += seconds
        self._held += tokens
        self._pay.observe_read(len(tokens), seconds)
        return token

    def _note_end(self, sequence: Sequence) -> None:
        """Where the draft saw the answer's end and it goes on, that was a wrong guess."""
        if self._ended == sequence.id:
            self._pay.observe_guesses(1, 0)
        self._ended = None


def _num_common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(slots=True)
class FakeDrafter:
    """Says after some tokens whatever a test wants."""

    says: Callable[[list[int]], int]
    context: int = 10_000
    most_tokens: int = 512
    num_left: int = 1_000_000  # passes before it fails
    cells: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # of its passes

    def read(self, start: int, tokens: Tokens[int]) -> int:
        assert 0 <= start <= len(self.cells), "a gap in the positions"
        assert 0 < len(tokens) <= self.most_tokens and start + len(tokens) <= self.context
        self.num_left -= 1
        if self.num_left < 0:
            raise RunFailed("the draft's pass failed")
        self.cells[start:] = tokens
        self.starts.append(start)
        return self.says(self.cells)
