"""Decides whether a draft model pays, and how many tokens it is to guess: from its times and its right guesses.

It must read whatever it guesses behind. Where that costs more than its guesses can win, it is left alone, and
tried again on the latest tokens once a small share of the time since has saved up what a trial takes. Pure: it is
told the times.
"""

from __future__ import annotations

from ocak.engine.payoff import GAIN, GUESSES, StepTimes, smoothed

FIRST_SHARE = 0.7  # of right guesses, before any was seen: its owner chose it for that
MEMORY = 0.05  # weight of the latest guess in the share of right ones
TRIAL = 3  # guesses of a trial
TRIAL_TOKENS = 32  # at the end of the sequence, that it reads at most for a trial
BUDGET = 0.01  # of the time of steps, saved up for trials while it does not pay
SURE = 1 / 4  # of what may be won, to read much for it: answers end early, and a few right guesses are luck
FLOOR = 16  # tokens read at once that tell the speed of reading
FIRST_CHUNK = 64  # before that was measured
FIRST_TOKEN = 1 / 8  # of a step, for a guess, before one was made
FIRST_READ = 1 / 4  # of a guess, for a token read with many others, before any was
FEW = 2  # tokens that are read as quickly as one: the last guess and the token behind it


class DraftPay:
    def __init__(self, step_target_s: float, most_guesses: int) -> None:
        self._step_target_s = step_target_s
        self._counts = sorted({*(count for count in (1, *GUESSES) if count < most_guesses), most_guesses})
        self._share = FIRST_SHARE
        self._token_s: float | None = None
        self._read_s: float | None = None
        self._saved_s = 0.0
        self.is_trial = False  # what was planned last

    def plan(self, times: StepTimes, num_behind: int, num_left: int, rival: float = 1.0) -> int:
        """Return how many tokens to draft; 0: none.

        `num_behind` tokens are to be read first, the answer has at most `num_left` to go, and without the draft a
        step gives `rival` tokens in the time of one.
        """
        self.is_trial = False
        if times.alone_s is None:
            return 0
        token_s, read_s = self._times(times.alone_s)
        catching_up_s = max(0, num_behind - FEW) * read_s
        count, speed = times.best(self._share, self._counts, token_s / times.alone_s)
        won_s = num_left * times.alone_s * (1 / rival - 1 / speed)
        if speed > rival and catching_up_s < SURE * won_s:
            return count
        num_tried = min(TRIAL, self._counts[-1])
        reading_s = min(catching_up_s, TRIAL_TOKENS * read_s)
        trial_s = reading_s + num_tried * token_s + (times.cost(num_tried) - 1) * times.alone_s
        self.is_trial = rival <= GAIN and trial_s <= self._saved_s
        return num_tried if self.is_trial else 0

    def chunk(self, times: StepTimes) -> int:
        """How many tokens may be read beside a step without making it longer than its target."""
        if times.alone_s is None or self._read_s is None:
            return FIRST_CHUNK
        return max(FLOOR, int((self._step_target_s - times.alone_s) / self._read_s))

    def observe_read(self, num_tokens: int, seconds: float) -> None:
        """Learn from a pass of the draft over so many tokens."""
        seconds = max(seconds, 1e-6)
        if num_tokens <= FEW:
            self._token_s = smoothed(self._token_s, seconds)
        elif num_tokens >= FLOOR:
            self._read_s = smoothed(self._read_s, seconds / num_tokens)

    def observe_guesses(self, num_guessed: int, num_right: int) -> None:
        """Learn from the first guess that was wrong, and those before it."""
        for is_right in [True] * num_right + [False] * (num_right < num_guessed):
            self._share += MEMORY * (is_right - self._share)

    def settle(self, draft_s: float, step_s: float, alone_s: float | None) -> None:
        """Take what a step's trial cost from the savings, or save up for the next."""
        if self.is_trial:
            self._saved_s -= draft_s + max(0.0, step_s - (alone_s or step_s))
        elif not draft_s:
            self._saved_s += BUDGET * step_s
        self.is_trial = False

    def _times(self, alone_s: float) -> tuple[float, float]:
        """Seconds for a guess, and for a token read with many others."""
        token_s = FIRST_TOKEN * alone_s if self._token_s is None else self._token_s
        return token_s, FIRST_READ * token_s if self._read_s is None else self._read_s
