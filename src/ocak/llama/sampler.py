"""Logits to a token, by llama.cpp's own samplers. A sequence keeps one chain: its random state and its penalties.

A plain greedy sequence needs no chain: its token is the largest logit, the first of equals, as llama.cpp's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.llama.vocabulary import Vocabulary

MIN_KEEP = 1


class LlamaSampler:
    """`chain` is None for plain greedy."""

    def __init__(self, sampling: Sampling, vocabulary: Vocabulary, prompt: Sequence[int]) -> None:
        is_plain = sampling.is_greedy and not sampling.has_penalties and not sampling.logit_bias
        self.chain = None if is_plain else _build(sampling, vocabulary)
        if self.chain is not None and sampling.has_penalties:
            for token in prompt[-sampling.penalty_window or len(prompt) :]:
                c.llama_sampler_accept(self.chain, token)

    def close(self) -> None:
        if self.chain is not None:
            c.llama_sampler_free(self.chain)
            self.chain = None


def _build(sampling: Sampling, vocabulary: Vocabulary) -> object:
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    for sampler in _stages(sampling, vocabulary):
        c.llama_sampler_chain_add(chain, sampler)
    return chain


def _stages(sampling: Sampling, vocabulary: Vocabulary) -> list[object]:
    """In llama.cpp's order: bias, penalties, top-k, top-p, min-p, temperature, draw."""
    stages: list[object] = []
    if sampling.logit_bias:
        stages.append(_logit_bias(sampling.logit_bias, vocabulary.size))
    if sampling.has_penalties and sampling.penalty_window:
        stages.append(
            c.llama_sampler_init_penalties(
                vocabulary.size,
                sampling.penalty_window,
                sampling.repetition_penalty,
                sampling.frequency_penalty,
                sampling.presence_penalty,
            )
        )
    if sampling.is_greedy:
        return [*stages, c.llama_sampler_init_greedy()]
    if sampling.top_k:
        stages.append(c.llama_sampler_init_top_k(sampling.top_k))
    if sampling.top_p < 1:
        stages.append(c.llama_sampler_init_top_p(sampling.top_p, MIN_KEEP))
    if sampling.min_p > 0:
        stages.append(c.llama_sampler_init_min_p(sampling.min_p, MIN_KEEP))
    stages.append(c.llama_sampler_init_temp(sampling.temperature))
    assert sampling.seed is not None, "the worker draws a seed for every request"
    return [*stages, c.llama_sampler_init_dist(sampling.seed)]


def _logit_bias(bias: dict[int, float], num_vocab: int) -> object:
    pairs = [c.llama_logit_bias(token, value) for token, value in bias.items()]
    array = (c.llama_logit_bias * len(pairs))(*pairs)
    return c.llama_sampler_init_logit_bias(num_vocab, len(pairs), ctypes.cast(array, c.llama_logit_bias_p))
