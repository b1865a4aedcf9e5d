"""Picks the rows of a step: chunks of prompts, or a token of every answer. Pure.

Chunks are whole prompts and parts that suit the kernels, in the order of the prompts' turns.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from ocak.engine.padding import TALL, TILE, gaps, neighbours, reach, tiled
from ocak.engine.runner import MOST_SCORED
from ocak.engine.sequence import Sequence

GRAIN = 16  # chunks of whole grains suit the kernels
UNIFORM_ROWS = 48  # of one sequence in a batch, where every row is to be computed by the same kernels: below 64
STRETCH = 1.25  # by how much a chunk may exceed what was wanted to end its prompt
Affordable = Callable[[int], int]  # by its tokens computed so far, how many of a prompt's next ones suit a step
Rows = list[tuple[Sequence, int]]


class Chunks:
    def __init__(self, batch_tokens: int, *, is_uniform: bool) -> None:
        self._batch_tokens = batch_tokens
        self._is_uniform = is_uniform
        self._lets_pass = False  # the first of the prompts, others, in this chunk

    def pick(self, prompts: dict[int, Sequence], affordable: Affordable) -> Rows:
        """Return how many tokens to compute next, of which prompts; there must be one."""
        return (self._uniform_part if self._is_uniform else self._parts)(prompts, affordable)

    def _uniform_part(self, prompts: dict[int, Sequence], affordable: Affordable) -> Rows:
        """A part of the prompt whose turn it is: of several, llama.cpp would run the longer ones' rests apart."""
        sequence = min(prompts.values(), key=lambda sequence: sequence.prefill_turn)
        wanted = affordable(sequence.num_computed)
        return [(sequence, min(wanted, UNIFORM_ROWS, sequence.most_tokens(MOST_SCORED)))]

    def _parts(self, prompts: dict[int, Sequence], affordable: Affordable) -> Rows:
        """Whole prompts in the order of their turns, and a part of the one that no longer fits.

        A prompt's small rest is taken along rather than left for a step. Parts are whole grains: llama.cpp runs
        what several sequences have in common as one pass, and the rest of the longer ones as another. A prompt
        that is scored goes no faster than rows can be, and lets others fill the batch.
        """
        room, scores = self._batch_tokens, MOST_SCORED
        rows: Rows = []
        ordered = self._in_order(prompts, affordable)
        wanted = affordable(ordered[0].num_computed)
        for sequence in ordered:
            most = sequence.most_tokens(scores)
            if most > min(wanted * STRETCH, room):
                part = min(_whole_grains(wanted), room)
                return rows if rows and part < TALL or not part else [*rows, (sequence, part)]
            if most:
                rows.append((sequence, most))
            scores -= len(sequence.rows_to_score(sequence.num_computed, sequence.num_computed + most))
            wanted -= most
            room -= most
        return rows

    def _in_order(self, prompts: dict[int, Sequence], affordable: Affordable) -> list[Sequence]:
        """By their turns; but the first, if it is long, takes turns with those that are ready after one chunk.

        They answer sooner, and the steps that decode meanwhile have more rows.
        """
        ordered = sorted(prompts.values(), key=lambda sequence: sequence.prefill_turn)
        is_long = [one.num_pending > affordable(one.num_computed) * STRETCH for one in ordered]
        self._lets_pass = is_long[0] and not self._lets_pass
        if self._lets_pass:
            ordered = [sequence for _, sequence in sorted(zip(is_long, ordered, strict=True), key=itemgetter(0))]
        return ordered


def decode_rows(decoding: dict[int, Sequence], prompts: dict[int, Sequence]) -> Rows:
    """A token of every answer, and of so many prompts as fill the gaps between the slots and the last tile."""
    deepest = reach(max(sequence.num_computed for sequence in decoding.values()))
    near = {slot for slot, sequence in prompts.items() if sequence.num_computed <= deepest and sequence.is_scored}
    closing = gaps(decoding, near)
    rows = len(decoding) + len(closing)
    lent = [*closing, *neighbours(decoding, near, tiled(rows) - rows)]
    return [(sequence, 1) for sequence in [*decoding.values(), *(prompts[slot] for slot in lent)]]


def _whole_grains(rows: int) -> int:
    grain = next((grain for grain in (TALL, GRAIN, TILE) if rows >= grain), 1)
    return rows - rows % grain
