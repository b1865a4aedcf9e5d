"""Sizes prompt chunks, so that a token is never further behind the last than a target. Pure: it is told the times.

A long chunk makes every decoding sequence wait, and a cancelled prompt hold its slot. Speed differs by model and
machine, so it is measured: the smoothed time of a step that decodes, what a row of a chunk costs by itself, and
what for every token before it. Tall chunks are told from short ones: behind 1,024 tokens flash attention on a
CPU takes 57 ms for a chunk of 16 rows, 172 for 48, and 144 for 64, from which it has a quicker kernel (0.5B Q4_0).
"""

from __future__ import annotations

from collections.abc import Sequence as Parts

from ocak.engine.padding import TALL, shortest_filled

FLOOR = 16  # fewer rows would lose the batched kernels
DEEP_FLOOR = 8  # where attention is most of a row's cost fewer lose nothing: 16 rows take twice as long as 8
SMOOTHING = 0.3
CONVINCED = 0.7  # smoothing where chunks are misjudged in one direction: the machine's speed has changed
ALONE = 5  # targets that a step may last while nobody waits for a token, or for anything
SURPRISE = 1.5  # one step that took longer than so many times the expected counts for no more
SLACK = 0.25  # of the target, by which the shortest tall chunk may miss it
GAIN = 1.25  # what a row of a short chunk takes at least then, in rows of a tall one
BASE_SHARE = 0.1  # of what is misjudged at `DEPTH`, for which a row's own time is blamed
DEPTH = 1024  # tokens before a row, in which depth is counted: then its cost is like the row's own
DEEP_AT_FIRST = 0.5  # of a row's own time, what depth is taken to cost until it is learnt: a small model's


class ChunkCost:
    """What chunks take: a time a row, and one a row and token before it; the latter less for tall chunks.

    Each is corrected by its share in how the last chunk was misjudged. A row's own time mostly by shallow chunks:
    what deep ones take tells of depth, and of their own kind.
    """

    def __init__(self) -> None:
        self._row_s = 0.0
        self._deep_s = {True: 0.0, False: 0.0}  # a row at `DEPTH` in addition, in tall and in short chunks
        self.deviation = 0.0  # by which share of what was expected chunks came sooner or later
        self._bias = 0.0  # the same, the sooner against the later

    @property
    def is_known(self) -> bool:
        return self._row_s > 0 or any(self._deep_s.values())

    def row_s(self, depth: int, *, is_tall: bool) -> float:
        """Seconds of a row behind so many tokens; in short chunks no less than in tall ones."""
        deep_s = self._deep_s[True] if is_tall else max(self._deep_s.values())
        return max(1e-9, self._row_s + depth / DEPTH * deep_s)

    def is_deep(self, depth: int) -> bool:
        """Whether what stands before a row costs more than the row itself."""
        return depth / DEPTH * self._deep_s[False] > self._row_s > 0

    def observe(self, parts: Parts[tuple[int, int]], seconds: float) -> None:
        """Learn from a chunk of so many rows, each behind so many tokens, by prompt."""
        is_tall = min(rows for rows, _ in parts) >= TALL
        rows = sum(rows for rows, _ in parts)
        deep = sum(rows * depth for rows, depth in parts) / DEPTH
        if not self.is_known:
            self._row_s = seconds / (rows + DEEP_AT_FIRST * deep)
            self._deep_s = dict.fromkeys(self._deep_s, DEEP_AT_FIRST * self._row_s)
            return
        expected = self._row_s * rows + self._deep_s[is_tall] * deep
        error = min(seconds, expected * SURPRISE) - expected
        step = self._rate(error / max(expected, 1e-9)) * error / (BASE_SHARE * rows * rows + deep * deep)
        self._row_s = max(0.0, self._row_s + BASE_SHARE * step * rows)
        self._deep_s[is_tall] = max(0.0, self._deep_s[is_tall] + step * deep)

    def _rate(self, miss: float) -> float:
        """How much of an error is learnt: little where errors cancel out, most where they go on."""
        miss = max(-1.0, min(1.0, miss))
        self._bias += SMOOTHING * (miss - self._bias)
        self.deviation += SMOOTHING * (abs(miss) - self.deviation)
        conviction = abs(self._bias) / max(self.deviation, 1e-9)
        return SMOOTHING + (CONVINCED - SMOOTHING) * conviction**2


class Pacer:
    def __init__(self, target_s: float, ceiling: int, *, fills_tall: bool = False) -> None:
        self._fills_tall = fills_tall  # tall chunks have a kernel that is quicker by far
        self._target_s = target_s
        self._ceiling = max(ceiling, FLOOR)
        self._decode_s = 0.0
        self._cost = ChunkCost()

    def prefill_tokens(self, depth: int, num_decodes: int = 1) -> int:
        """How many tokens of a prompt the next step may hold, behind so many.

        As many as leave time for so many steps that decode before the next chunk.
        """
        affordable = self._rows_in(self._target_s - num_decodes * self._decode_s, depth)
        floor = DEEP_FLOOR if self._cost.is_deep(depth) else FLOOR
        return max(floor, min(self._ceiling, affordable))

    def prefill_tokens_alone(self, depth: int) -> int:
        """As many as suit a prompt that has the engine to itself; it can be cancelled within its step."""
        affordable = self._rows_in(ALONE * self._target_s, depth)
        return min(self._ceiling, max(TALL, affordable - affordable % TALL))

    def _rows_in(self, seconds: float, depth: int) -> int:
        """The rows of a chunk that lasts so long; the shortest tall one may take a little more."""
        if not self._cost.is_known:
            return TALL
        tall_s, short_s = (self._cost.row_s(depth, is_tall=is_tall) for is_tall in (True, False))
        surely = seconds * (1 - self._cost.deviation)
        rows = int(surely / tall_s)
        if rows >= TALL:
            return rows
        is_near = TALL * tall_s <= seconds + SLACK * self._target_s
        most_short = shortest_filled(depth) - 1
        is_better = short_s > GAIN * tall_s or (self._fills_tall and most_short < TALL - 1)
        return TALL if is_near and is_better else min(int(surely / short_s), most_short)

    def observe_decode(self, seconds: float) -> None:
        """Learn from a step that decoded."""
        self._decode_s += SMOOTHING * (min(seconds, self._target_s / 2) - self._decode_s)

    def observe_prefill(self, parts: Parts[tuple[int, int]], seconds: float) -> None:
        """Learn from a chunk: of each prompt in it, how many rows behind how many tokens."""
        if sum(rows for rows, _ in parts) >= DEEP_FLOOR:
            self._cost.observe(parts, max(seconds, 1e-6))
