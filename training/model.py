"""The network: a small Qwen3-shaped transformer, written so that its weights go into a GGUF as they are.

RMSNorm before each part, rotary positions (halves rotated, as Qwen does), RMSNorm on queries and keys,
grouped-query attention, SwiGLU, and one matrix for both the embedding and the output.
Knows no tokenizer and no data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network. Rows are multiples of 256, so that every GGUF quantisation type applies."""

    num_vocab: int = 2048
    num_layers: int = 4
    hidden: int = 256
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 512
    context: int = 1024
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6


class Attention(nn.Module):
    """Causal grouped-query attention with normalised, rotated queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        query_dim, kv_dim = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self.q = nn.Linear(shape.hidden, query_dim, bias=False)
        self.k = nn.Linear(shape.hidden, kv_dim, bias=False)
        self.v = nn.Linear(shape.hidden, kv_dim, bias=False)
        self.o = nn.Linear(query_dim, shape.hidden, bias=False)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        dim = self.shape.head_dim
        q = rotate(self.q_norm(self.q(x).float().view(rows, length, -1, dim)), cos, sin).transpose(1, 2)
        k = rotate(self.k_norm(self.k(x).float().view(rows, length, -1, dim)), cos, sin).transpose(1, 2)
        v = self.v(x).view(rows, length, -1, dim).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out: Tensor = self.o(mixed.transpose(1, 2).reshape(rows, length, -1))
        return out


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class Layer(nn.Module):
    """Attention, then feed-forward, each added to what it read."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Network(nn.Module):
    """Ids (rows, length) in, final hidden states (rows, length, hidden) out; `logits` turns those into scores."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.num_vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        cos, sin = self.cos[:length, None, :], self.sin[:length, None, :]
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.embedding.weight)

    def _initialise(self) -> None:
        """Normal weights; those that write into the residual stream begin near zero, attention begins smooth."""
        for name, weight in self.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                nn.init.constant_(weight, 0.7)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.002 if name.endswith(("o.weight", "down.weight")) else 0.05)


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (context, head_dim / 2)."""
    half = shape.head_dim // 2
    frequencies = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(shape.context, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (first half, second half) of the last dimension by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
