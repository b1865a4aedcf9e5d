"""Guesses the next tokens of a sequence by looking up what followed the same tokens before, and when that pays.

The guesses are run beside the last token, and the sampler picks at each place for as long as it agrees with them:
so what is picked is what would have been picked one by one. A few rows more are cheap beside the weights that a
step reads; how cheap is measured. How often guesses are right is seen without running them, by what comes next.
Pure: it is told the times.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from ocak.engine.sequence import Sequence

LENGTHS = (3, 2)  # of the runs of tokens that are looked up, the longest first
GUESSES = (3, 7, 15)  # with the last token they fill the kernels' tiles
MOST_GUESSES = GUESSES[-1]
MEMORY = 0.2  # weight of the latest guess in the share of right ones
FIRST_SHARE = 0.5  # of right guesses, before any was seen
SMOOTHING = 0.3
ROW_COST = 1 / 32  # of a step, for a row more; believed until it is measured
GAIN = 1.1  # what guessing must at least win


class Lookup:
    """What followed each run of tokens the last time, in one growing list of tokens."""

    def __init__(self, tokens: Tokens[int]) -> None:
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._found: int | None = None  # where what followed the latest tokens begins
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Tokens[int]) -> None:
        """Take the tokens that came."""
        for token in tokens:
            self._tokens.append(token)
            self._found = self._note()

    def guess(self, count: int) -> list[int]:
        """Return what followed, up to so many tokens; where that reaches the end it begins anew."""
        if self._found is None:
            return []
        period = len(self._tokens) - self._found
        return [self._tokens[self._found + place % period] for place in range(count)]

    def _note(self) -> int | None:
        """Remember where the latest runs end; return where the longest of them ended before."""
        end = len(self._tokens)
        found = None
        for length in (length for length in LENGTHS if length <= end):
            run = tuple(self._tokens[-length:])
            before = self._follows.get(run)
            self._follows[run] = end
            found = before if found is None else found
        return found


class _Guesser:
    """One sequence: its look-up, and how often it was right."""

    def __init__(self, sequence: Sequence) -> None:
        self.lookup = Lookup(sequence.tokens)
        self.num_dropped = sequence.num_dropped
        self.share = FIRST_SHARE

    def update(self, sequence: Sequence) -> None:
        """Read the tokens that came, and see whether they were what would have been guessed."""
        for token in sequence.tokens[len(self.lookup) :]:
            if guess := self.lookup.guess(1):
                self.share += MEMORY * ((guess[0] == token) - self.share)
            self.lookup.extend((token,))


class Speculator:
    """Decides what to guess for a sequence that decodes alone."""

    def __init__(self) -> None:
        self._guessers: dict[int, _Guesser] = {}
        self._seconds: dict[int, float] = {}  # of a step, by its rows
        self.num_guessed = 0
        self.num_right = 0

    def guess(self, sequence: Sequence, room: int) -> list[int]:
        """Return the next tokens as they might be, none where guessing would not pay; at most `room`."""
        guesser = self._guesser(sequence)
        guesser.update(sequence)
        most = min(room, sequence.max_tokens - sequence.num_generated - 1)
        guesses = guesser.lookup.guess(min(self._best(guesser.share), most))
        ends = (place for place, token in enumerate(guesses) if token in sequence.end_tokens)
        return guesses[: next(ends, len(guesses))]

    def observe(self, num_guessed: int, num_right: int, seconds: float) -> None:
        """Learn from a step of one sequence."""
        rows = num_guessed + 1
        before = self._seconds.get(rows, seconds)
        self._seconds[rows] = before + SMOOTHING * (min(seconds, 2 * before) - before)
        self.num_guessed += num_guessed
        self.num_right += num_right

    def forget(self, sequence: Sequence) -> None:
        """Note that the sequence has ended."""
        self._guessers.pop(sequence.id, None)

    def _guesser(self, sequence: Sequence) -> _Guesser:
        known = self._guessers.get(sequence.id)
        if known is None or known.num_dropped != sequence.num_dropped or len(known.lookup) > len(sequence.tokens):
            share = FIRST_SHARE if known is None else known.share
            known = self._guessers[sequence.id] = _Guesser(sequence)
            known.share = share
        return known

    def _best(self, share: float) -> int:
        """How many guesses win the most tokens a second, if they are right that often; 0: none."""
        alone = self._seconds.get(1)
        if alone is None:
            return 0
        speeds = {count: _tokens(share, count) / self._cost(count + 1, alone) for count in GUESSES}
        best = max(speeds, key=speeds.__getitem__)
        return best if speeds[best] > GAIN else 0

    def _cost(self, rows: int, alone: float) -> float:
        """Steps of one row that a step of so many lasts."""
        seconds = self._seconds.get(rows)
        return 1 + (rows - 1) * ROW_COST if seconds is None else seconds / alone


def _tokens(share: float, count: int) -> float:
    """The tokens that a step with so many guesses gives: the right ones, and one more."""
    return count + 1 if share >= 1 else (1 - share ** (count + 1)) / (1 - share)
