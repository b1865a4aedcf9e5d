"""Finds out whether this machine computes a row the same whatever shares its batch, and in what company.

Kernels are picked by the number of rows, and some add up in another order. In whole tiles of 4 rows some weights
always meet the same kernels, in whole tiles of 16 others do; which, depends on the processor. So it is not
believed but tried, with the model and on the machine that are to keep the promise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ocak.core.errors import LoadFailed
from ocak.core.request import Sampling
from ocak.engine.padding import MOST_TILE, TILE
from ocak.engine.runner import Chunk
from ocak.llama.context import LlamaContext
from ocak.llama.runner import LlamaRunner

LENGTH = 48
CUTS = (range(0), range(4, LENGTH, 4), range(1, 9), (16, 32))  # where the prompt is cut into chunks
TAIL = range(LENGTH - 8, LENGTH)  # or into a beginning and single tokens, while so many sequences do the same:
CROWDS = (2, 8)

Logits = NDArray[np.float32]


def settle_tile(runner: LlamaRunner, context: LlamaContext) -> None:
    """Set the context's tile to the smallest that makes rows equal. Raises `LoadFailed` if none does."""
    for tile in (TILE, MOST_TILE):
        context.tile = tile
        first, *others = _logits_of_one_prompt(runner, context)
        if all(np.array_equal(first, other) for other in others):
            return
    raise LoadFailed(
        "deterministic cannot be promised: on this machine the model's kernels give other last bits to a row "
        "with other rows beside it; leave it out, or take other weights (f16, Q8_0 or Q4_0)"
    )


def _logits_of_one_prompt(runner: LlamaRunner, context: LlamaContext) -> Iterator[Logits]:
    """Compute a prompt's last logits in different chunks, and beside different numbers of others."""
    for cuts in CUTS:
        yield _last_logits(runner, context, cuts, 1)
    for crowd in CROWDS:
        yield _last_logits(runner, context, TAIL, min(crowd, context.num_slots))


def _last_logits(runner: LlamaRunner, context: LlamaContext, cuts: Iterable[int], crowd: int) -> Logits:
    """Compute the first chunk one sequence at a time, the others of all together."""
    tokens = np.random.default_rng(0).integers(0, context.num_vocab, (crowd, LENGTH)).tolist()
    sampler = runner.new_sampler(Sampling(temperature=0), ())
    first, *others = pairwise((0, *cuts, LENGTH))
    for slot in range(crowd):
        runner.run([Chunk(slot, 0, tokens[slot][slice(*first)], sampler)])
    for start, end in others:
        runner.run([Chunk(slot, start, tokens[slot][start:end], sampler) for slot in range(crowd)])
    logits = runner.last_logits(0).copy()
    for slot in range(crowd):
        runner.trim(slot, 0)
    sampler.close()
    return logits
