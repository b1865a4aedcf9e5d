"""Sequence breakers of the DRY sampler, read once: llama.cpp looks through the whole vocabulary for each."""

from __future__ import annotations

import ctypes
import weakref
from functools import lru_cache

from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.llama.vocabulary import Vocabulary

MAX_KEPT = 16  # prototypes; one holds each token of the vocabulary at most a few times for a breaker


class DrySamplers:
    """Makes DRY samplers, from any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._prototype = lru_cache(MAX_KEPT)(self._build)

    def prepare(self, sampling: Sampling) -> None:
        """Do the slow part, up to 20 ms a breaker, so that `new` is quick; on a thread that delays nobody."""
        if sampling.has_dry:
            self._prototype_of(sampling)

    def new(self, sampling: Sampling) -> object:
        """Return a sampler that has seen no token; the caller owns it."""
        return c.llama_sampler_clone(self._prototype_of(sampling).pointer)

    def _prototype_of(self, sampling: Sampling) -> _Prototype:
        return self._prototype(
            sampling.dry_multiplier,
            sampling.dry_base,
            sampling.dry_allowed_length,
            sampling.dry_penalty_last_n,
            sampling.dry_sequence_breakers,
        )

    def _build(
        self, multiplier: float, base: float, allowed_length: int, last_n: int, breakers: tuple[str, ...]
    ) -> _Prototype:
        texts = [text.encode() for text in breakers]
        array = (ctypes.c_char_p * len(texts))(*texts)
        return _Prototype(
            c.llama_sampler_init_dry(
                self._vocabulary.pointer, multiplier, base, allowed_length, last_n, array, len(texts)
            )
        )


class _Prototype:
    """Owns a sampler that is only ever cloned."""

    def __init__(self, pointer: object) -> None:
        self.pointer = pointer
        weakref.finalize(self, c.llama_sampler_free, pointer)
