"""Write models whose next token follows from the last one alone, along one cycle through the whole vocabulary.

Such text never repeats itself, so a look-up finds nothing in it, and two models of different shapes can be made to
agree as often as is wanted. The blocks are computed like any others, but what they add is nothing: the residual
stays the embedding, and the row of the head that belongs to the token behind it is that embedding.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.shape_model import Shape, Tensor, tensors, write

DRAFT = Shape(layers=4, hidden=256, heads=4, kv_heads=2, feed_forward=1024)
FIRST, LAST = 1_000, 150_000  # the tokens of the cycle: ordinary words of the Qwen2 vocabulary
SILENT = ("attn_output.weight", "ffn_down.weight")


def write_cycle(vocab_path: Path, out_path: Path, shape: Shape, agreement: float) -> None:
    """Write a model that agrees with all others of its kind on this share of the tokens."""
    write(vocab_path, out_path, shape, lambda num_vocab: _tensors(shape, num_vocab, agreement))


def following(agreement: float) -> NDArray[np.int64]:
    """What follows each token of the cycle, counted from its first; other tokens are never said."""
    rng = np.random.default_rng(0)
    order = rng.permutation(LAST - FIRST)
    follows = np.empty_like(order)
    follows[order] = np.roll(order, -1)
    wrong = np.flatnonzero(rng.random(len(order)) >= agreement)
    follows[wrong] = np.roll(follows[wrong], 1)
    return follows


def _tensors(shape: Shape, num_vocab: int, agreement: float) -> Iterator[Tensor]:
    embedding = np.empty(0, np.float16)
    for name, array in tensors(shape, num_vocab, np.random.default_rng(1)):
        if name == "token_embd.weight":
            embedding = array
        yield name, np.zeros_like(array) if name.endswith(SILENT) else array
    head = np.zeros_like(embedding)
    head[FIRST + following(agreement)] = embedding[FIRST:LAST]
    yield "output.weight", head
