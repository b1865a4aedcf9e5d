"""Sizes prompt chunks, so that a token is never further behind the last than a target. Pure: it is told the times.

A long chunk makes every decoding sequence wait, and a cancelled prompt hold its slot. Speed differs by model,
machine and depth, so it is measured: the smoothed times of a prompt token, and of the step that decodes between
two chunks.
"""

from __future__ import annotations

FLOOR = 16  # fewer rows would lose the batched kernels, and the measure with them
FIRST = 64  # before anything has been measured
SMOOTHING = 0.3
ALONE = 5  # targets that a step may last while nobody waits for a token, or for anything
TALL = 64  # rows of one prompt from which attention has a quicker kernel: half the time a token at depth 4,096
SURPRISE = 1.5  # one step that took longer than so many times the expected counts for no more


class Pacer:
    def __init__(self, target_s: float, ceiling: int) -> None:
        self._target_s = target_s
        self._ceiling = max(ceiling, FLOOR)
        self._decode_s = 0.0
        self._token_s: float | None = None

    @property
    def prefill_tokens(self) -> int:
        """How many prompt tokens the next step may hold."""
        return self.prefill_tokens_among(1)

    def prefill_tokens_among(self, num_decodes: int) -> int:
        """As many as leave time for so many steps that decode before the next chunk."""
        if self._token_s is None:
            return min(FIRST, self._ceiling)
        affordable = int((self._target_s - num_decodes * self._decode_s) / self._token_s)
        return max(FLOOR, min(self._ceiling, affordable))

    @property
    def prefill_tokens_alone(self) -> int:
        """As many as suit a prompt that has the engine to itself; it can be cancelled within its step."""
        if self._token_s is None:
            return min(FIRST, self._ceiling)
        affordable = int(ALONE * self._target_s / self._token_s)
        return min(self._ceiling, max(TALL, affordable - affordable % TALL))

    def observe(self, num_prefill: int, seconds: float) -> None:
        """Learn from a step of `num_prefill` prompt tokens, or one that decoded."""
        if num_prefill == 0:
            self._decode_s += SMOOTHING * (min(seconds, self._target_s / 2) - self._decode_s)
        elif num_prefill >= FLOOR:
            token_s = max(seconds, 1e-6) / num_prefill
            previous = token_s if self._token_s is None else self._token_s
            self._token_s = previous + SMOOTHING * (min(token_s, previous * SURPRISE) - previous)
