"""Starts the network with an induction head, so that recall need not be discovered before it can be trained.

Two heads are set by hand before training; everything else is random, and all of it is trained afterwards:
- in the first layer, a head that looks at the previous token and copies part A of its embedding into part B
  of the residual stream; it needs a direction common to all embeddings, which gives it constant queries and keys;
- in the second layer, a head whose query is part A of its own token and whose keys are part B of earlier ones: it
  looks at what came after earlier copies of its token, and raises the score of that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import Attention, Layer, Network, Shape

COMMON = 0.4
GAIN = 0.2
SHARPNESS = 2.0
FAST_PAIRS = range(5)
SLOW_PAIRS = range(22, 32)


@torch.no_grad()
def plant_induction(network: Network) -> None:
    """Overwrite the first head of the first two layers, and give the embeddings their common direction."""
    shape = network.shape
    frame = torch.linalg.qr(torch.randn(shape.hidden, shape.hidden)).Q.T
    common, rest = frame[0], frame[1:]
    part_a, part_b, copied = rest[:64], rest[64:128], rest[: shape.head_dim]
    weight = network.embedding.weight
    weight += COMMON * common - torch.outer(weight @ common, common)
    first, second, *_ = (layer.attention for layer in network.layers if isinstance(layer, Layer))
    _set_head(first, queries=_position(shape, 1.0, common), keys=_position(shape, 0.0, common))
    _set_values(first, read=part_a, write=part_b)
    _set_head(second, queries=_content(shape, part_a), keys=_content(shape, part_b))
    _set_values(second, read=copied, write=copied)


def _position(shape: Shape, distance: float, common: Tensor) -> Tensor:
    """A constant query or key, (head_dim, hidden), turned back by `distance` positions."""
    half = shape.head_dim // 2
    vector = torch.zeros(shape.head_dim)
    for pair in FAST_PAIRS:
        angle = torch.tensor(-distance * shape.rope_base ** (-pair / half))
        vector[pair], vector[pair + half] = angle.cos(), angle.sin()
    return torch.outer(vector, common)


def _content(shape: Shape, part: Tensor) -> Tensor:
    """A query or key, (head_dim, hidden), that holds a part of the stream where rotation is slow."""
    half = shape.head_dim // 2
    matrix = torch.zeros(shape.head_dim, shape.hidden)
    slow = list(SLOW_PAIRS)
    matrix[slow] = part[: len(slow)]
    matrix[[pair + half for pair in slow]] = part[len(slow) : 2 * len(slow)]
    return matrix


def _set_head(attention: Attention, queries: Tensor, keys: Tensor) -> None:
    size = attention.shape.head_dim
    attention.q.weight[:size], attention.k.weight[:size] = queries, keys
    used = queries.abs().sum(dim=1) > 0
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight[used] = SHARPNESS


def _set_values(attention: Attention, read: Tensor, write: Tensor) -> None:
    size = attention.shape.head_dim
    attention.v.weight[:size] = read
    attention.o.weight[:, :size] = GAIN * write.T
