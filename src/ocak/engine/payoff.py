"""Tells how many guesses win the most tokens a second, from what steps took and how often guesses are right.

A few rows more are cheap beside the weights that a step reads; how cheap is measured. Pure: it is told the times.
"""

from __future__ import annotations

from collections.abc import Iterable

from ocak.core.limits import MOST_GUESSES

GUESSES = (3, 7, MOST_GUESSES)  # with the last token they fill the kernels' tiles
SMOOTHING = 0.3
FALLING = 0.6  # the same for a time below the mean
ROW_COST = 1 / 32  # of a step, for a row more; believed until it is measured
SETTLED = 5  # steps without guesses; after so many the next one is due after 2**5 with them, at first sooner
GAIN = 1.1  # what guessing must at least win


def smoothed(before: float | None, seconds: float) -> float:
    """Return the running mean; what disturbs a pass makes it slower, so slow ones count for less."""
    if before is None:
        return seconds
    weight = FALLING if seconds < before else SMOOTHING
    return before + weight * (min(seconds, 2 * before) - before)


class StepTimes:
    """What a step of one sequence lasts, by its rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._num_alone = 0  # steps without guesses
        self._num_since = 0  # steps with guesses since the last of those

    @property
    def alone_s(self) -> float | None:
        """A step without guesses; None before the first."""
        return self._seconds.get(1)

    @property
    def is_stale(self) -> bool:
        """Whether a step without guesses is due: all is judged by it, and the first ones may have been slow."""
        return self._num_since >= 1 << min(self._num_alone, SETTLED)

    def observe(self, num_guessed: int, seconds: float) -> None:
        """Learn from a step of one sequence."""
        self._num_alone += num_guessed == 0
        self._num_since = self._num_since + 1 if num_guessed else 0
        self._seconds[num_guessed + 1] = smoothed(self._seconds.get(num_guessed + 1), seconds)

    def best(self, share: float, counts: Iterable[int], guess_cost: float = 0.0) -> tuple[int, float]:
        """Return how many guesses to run, and the tokens that promises in the time of a step without any.

        `share` of them are right, and to make one costs so much of a step. 0 and 1.0 where guessing does not pay.
        """
        if self.alone_s is None:
            return 0, 1.0
        speeds = {n: num_tokens(share, n) / (self.cost(n) + n * guess_cost) for n in counts}
        best = max(speeds, key=speeds.__getitem__)
        return (best, speeds[best]) if speeds[best] > GAIN else (0, 1.0)

    def cost(self, num_guesses: int) -> float:
        """Steps without guesses that a step with so many lasts."""
        seconds, alone_s = self._seconds.get(num_guesses + 1), self.alone_s
        return 1 + num_guesses * ROW_COST if seconds is None or not alone_s else seconds / alone_s


def num_tokens(share: float, count: int) -> float:
    """The tokens that a step with so many guesses gives: the right ones, and one more."""
    return count + 1 if share >= 1 else (1 - share ** (count + 1)) / (1 - share)
