"""How many rows a step should have: with some kernels more rows are quicker than fewer.

The CPU kernels for repacked weights take four rows at a time, and a row left over costs nearly as much as four:
15 decoding sequences took 82 ms a step where 16 took 53 (Q4_0, AVX-512). Prompts that wait in their slots can lend
a token of theirs, and idle slots a token of no meaning. Whether the latter pays depends on weights and machine, so
it is measured while steps go by. Parts of prompts always fill their last tile: 62 rows of one took 113 ms where
64 took 105, 31 took 67 where 32 took 55. Pure: it is told the times.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

TILE = 4
MOST_TILE = 16  # that some kernels take at a time, and the rest by others that add up in another order
TALL = 64  # rows of one prompt from which attention has a quicker kernel: half the time a token at depth 4,096
DEEP = 512  # from here on 48 rows take as long as 64 (0.5B Q4_0: 120 ms and 115; behind 1,024 tokens 172 and 144)
DEPTH = 256  # llama.cpp attends over cells in steps of these
SMOOTHING = 0.3
GAIN = 0.97  # what padding must at least save, to be worth its cells
RETRY = 64  # one step of so many takes the road not taken, for speeds change with the depth of the contexts


def tiled(rows: int) -> int:
    """Return the number of rows at which the last tile is full."""
    return -(-rows // TILE) * TILE


class RowTimes:
    """The smoothed seconds of steps by their number of rows, each a token of another sequence."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._num_choices = 0

    def best(self, rows: int, most: int) -> int:
        """Return how many rows to run where `rows` are needed and `most` could be filled."""
        padded = tiled(rows)
        if padded == rows or padded > most:
            return rows
        unknown = [size for size in (padded, rows) if size not in self._seconds]
        if unknown:
            return unknown[0]
        self._num_choices += 1
        is_quicker = self._seconds[padded] < self._seconds[rows] * GAIN
        return padded if is_quicker != (self._num_choices % RETRY == 0) else rows

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a step of `rows` sequences, a token each."""
        previous = self._seconds.get(rows, seconds)
        self._seconds[rows] = previous + SMOOTHING * (seconds - previous)


def full(rows: int, depth: int, tile: int = TILE, *, fills_tall: bool = True) -> int:
    """Return how many rows are run for a part of a prompt behind so many tokens: its last tile is full.

    Flash attention on a CPU takes 64 rows at once or each alone: at depth 64 are quicker than few less.
    """
    if fills_tall and shortest_filled(depth) <= rows < TALL:
        return TALL
    return -(-rows // tile) * tile


def shortest_filled(depth: int) -> int:
    """Return from how many rows on a part of a prompt is filled up to a tall tile."""
    return TALL * 3 // 4 if depth >= DEEP else TALL


def gaps(busy: Collection[int], others: Collection[int]) -> list[int]:
    """Return those of the other slots that close short gaps between the busy ones.

    llama.cpp cuts a split batch at gaps between sequence ids, and every piece costs a pass over the weights; a
    long gap is cheaper cut than closed.
    """
    short = (range(a + 1, b) for a, b in pairwise(sorted(busy)) if b - a <= TILE)
    return [slot for gap in short for slot in gap if slot in others]


def tile_mates(busy: Collection[int]) -> list[int]:
    """Return the other slots of the busy ones' tiles, where each of a slot's rows is in the tile of its number."""
    tiles = {slot // TILE for slot in busy}
    return [slot for tile in tiles for slot in range(tile * TILE, (tile + 1) * TILE) if slot not in busy]


def neighbours(busy: Collection[int], others: Collection[int], count: int) -> list[int]:
    """Return up to so many of the other slots outside the busy ones, the nearest first, those above before."""
    above = sorted(slot for slot in others if slot > max(busy))
    below = sorted((slot for slot in others if slot < min(busy)), reverse=True)
    return [*above, *below][: max(0, count)]


def reach(depth: int) -> int:
    """Return the depth up to which attention costs what it costs at this one."""
    return -(-(depth + 1) // DEPTH) * DEPTH - 1
