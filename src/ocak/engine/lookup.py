"""Remembers what followed each run of tokens in one sequence, and how often that came again.

How often it would have been a right guess is seen without running it, by what comes next. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from ocak.engine.sequence import Sequence

LENGTHS = (3, 2)  # of the runs of tokens that are looked up, the longest first
MEMORY = 0.2  # weight of the latest guess in the share of right ones
FIRST_SHARE = 0.5  # of right guesses, before any was seen


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


class History:
    """One sequence: its look-up, and how often it was right."""

    def __init__(self, sequence: Sequence, share: float = FIRST_SHARE) -> None:
        self.lookup = Lookup(sequence.tokens)
        self.num_dropped = sequence.num_dropped
        self.share = share

    def is_of(self, sequence: Sequence) -> bool:
        """Whether the sequence only grew since."""
        return self.num_dropped == sequence.num_dropped and len(self.lookup) <= len(sequence.tokens)

    def update(self, sequence: Sequence) -> None:
        """Read the tokens that came, and see whether they were what would have been guessed."""
        for token in sequence.tokens[len(self.lookup) :]:
            if guess := self.lookup.guess(1):
                self.share += MEMORY * ((guess[0] == token) - self.share)
            self.lookup.extend((token,))
