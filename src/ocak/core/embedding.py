"""What a caller asks of an embedding model or a cross-encoder, and what comes back: `Started`, then `Embedded`.

Invariant: a vector travels as little-endian float32, so that the front needs no array library to hand it on.
"""

from __future__ import annotations

import sys
from array import array
from typing import Literal

import msgspec

from ocak.core.events import Started, Usage
from ocak.core.request import DEFAULT_TENANT, TextPrompt, TokenPrompt, prompt_bytes

Pooling = Literal["mean", "cls", "last", "rank"]  # llama.cpp's names; `rank` is a cross-encoder's score
ModelKind = Literal["text", "embedding", "rerank"]
INPUTS_IN_A_PASS = 64  # at least, if they are short: the tokens of a pass are bounded by themselves
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last", "rank")


class Pair(msgspec.Struct, frozen=True, tag="pair"):
    """A question and a text that may answer it: what a cross-encoder reads at once."""

    query: str
    document: str


EmbedInput = TextPrompt | TokenPrompt | Pair


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One input, one vector; of a `Pair` the vector is its score alone, from 0 to 1."""

    id: str
    model: str
    input: EmbedInput
    dimensions: int | None = None  # the first so many, normalised anew; None: all
    tenant: str = DEFAULT_TENANT
    priority: int = 0  # lower ones go first, among the tenant's own
    is_patient: bool = False  # one of a list that waits for its turn: it leaves others room in the queue


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """The end of a request: its vector, of length 1 in Euclid's sense, or its score."""

    vector: bytes
    usage: Usage


EmbedEvent = Started | Embedded


def input_bytes(given: EmbedInput) -> int:
    """A bound on the input's tokens that needs no tokenizer."""
    if isinstance(given, Pair):
        return prompt_bytes(TextPrompt(given.query)) + prompt_bytes(TextPrompt(given.document))
    return prompt_bytes(given)


def floats(vector: bytes) -> list[float]:
    """Read the numbers of a vector."""
    numbers = array("f")
    numbers.frombytes(vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
