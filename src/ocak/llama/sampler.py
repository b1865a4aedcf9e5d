"""Logits to a token, by llama.cpp's own samplers. A sequence keeps one chain: its random state and its history.

A plain greedy sequence needs no chain: its token is the largest logit, the first of equals, as llama.cpp's.
What the rules forbid has no logit left when the samplers see it, and has it again when they are done. Where they
leave one token, no sampler is asked, but for those that learn from what they draw.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray

from ocak.core.request import Sampling
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.llama.grammar import GrammarState, LlamaGrammar
from ocak.llama.shapes import Shape, shape_of
from ocak.llama.stages import SamplerStages
from ocak.llama.token_mask import TokenMask
from ocak.llama.vocabulary import Vocabulary

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
MANY = 8  # of so many tokens one must be left, or the samplers are handed just those


class Seat(Protocol):
    """Picks in a sampler's stead, inside the graph."""

    def pick(self, sampler: LlamaSampler, context: object, row: int) -> int: ...


class LlamaSampler:
    """`chain` is None for plain greedy, `last` is the stage that draws. The graph could do as `shape` says."""

    def __init__(
        self, stages: list[object], mask: TokenMask | None, *, learns: bool = False, shape: Shape | None = None
    ) -> None:
        self.last = stages[-1] if stages else None
        self.chain = _chain(stages) if stages else None
        self.shape = shape
        self.seat: Seat | None = None  # which has picked in the pass that just was
        self._mask = mask
        self._learns = learns

    def read(self, tokens: Sequence[int]) -> None:
        """Take tokens that came before the answer, for the samplers that look back."""
        if self.chain is not None:
            for token in tokens:
                c.llama_sampler_accept(self.chain, token)

    def pick(self, context: object, row: int, logits: NDArray[np.float32]) -> int:
        """Return the next token, by the logits of the context's output `row`, of which `logits` is the view.

        Raises `NoToken`.
        """
        if self.seat is not None:
            return self.seat.pick(self, context, row)
        if self._mask is None:
            return self._pick(context, row, logits)
        forbidden = self._mask.forbidden()
        num_allowed = len(forbidden) - int(np.count_nonzero(forbidden))
        if num_allowed == 1 and not self._learns:
            token = self._take(forbidden)
        elif num_allowed <= len(forbidden) // MANY:
            token = self._pick_among(np.flatnonzero(~forbidden), logits)
        else:
            token = self._pick_unless(forbidden, context, row, logits)
        self._mask.accept(token)
        return token

    def close(self) -> None:
        if self.chain is not None:
            c.llama_sampler_free(self.chain)
            self.chain = self.last = None

    def _take(self, forbidden: NDArray[np.bool_]) -> int:
        """Return the only token that is left."""
        token = int(np.argmin(forbidden))
        self.read([token])
        return token

    def _pick_among(self, allowed: NDArray[np.intp], logits: NDArray[np.float32]) -> int:
        """Hand the few that are left to the samplers, instead of the whole vocabulary."""
        if self.chain is None:
            return int(allowed[np.argmax(logits[allowed])])
        candidates = np.zeros(len(allowed), CANDIDATE)
        candidates["id"] = allowed
        candidates["logit"] = logits[allowed]
        data = candidates.ctypes.data_as(ctypes.POINTER(c.llama_token_data))
        array = c.llama_token_data_array(data, len(allowed), -1, False)
        c.llama_sampler_apply(self.chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self.read([token])
        return token

    def _pick_unless(
        self, forbidden: NDArray[np.bool_], context: object, row: int, logits: NDArray[np.float32]
    ) -> int:
        unmasked = logits.copy()
        np.copyto(logits, -np.inf, where=forbidden)
        token = self._pick(context, row, logits)
        logits[:] = unmasked
        return token

    def _pick(self, context: object, row: int, logits: NDArray[np.float32]) -> int:
        if self.chain is None:
            return int(np.argmax(logits))
        return int(c.llama_sampler_sample(self.chain, context, row))


class SamplerFactory:
    """Makes the samplers of a model's sequences."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._num_vocab = vocabulary.size
        self._stages = SamplerStages(vocabulary)

    def prepare(self, sampling: Sampling) -> None:
        """Do what is slow about `new`; from any thread."""
        self._stages.prepare(sampling)

    def new(self, sampling: Sampling, prompt: Sequence[int], rules: TokenRules = NO_RULES) -> LlamaSampler:
        """Return a sampler that knows the prompt."""
        mask = None if rules.is_void else TokenMask(rules, self._num_vocab, _state(rules))
        stages = self._stages.of(sampling, is_masked=mask is not None)
        shape = shape_of(sampling, stages, self._num_vocab) if mask is None else None
        sampler = LlamaSampler(stages, mask, learns=sampling.learns, shape=shape)
        if sampling.looks_back:
            sampler.read(prompt[-sampling.looks_back :])
        return sampler


def _state(rules: TokenRules) -> GrammarState | None:
    if rules.grammar is None:
        return None
    assert isinstance(rules.grammar, LlamaGrammar), "compiled for another runner"
    return GrammarState(rules.grammar)


def _chain(stages: list[object]) -> object:
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    for stage in stages:
        c.llama_sampler_chain_add(chain, stage)
    return chain
