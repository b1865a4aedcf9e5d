"""llama.cpp's infill sampler, for text in the middle of other text, and the models that it would crash with."""

from __future__ import annotations

import ctypes
from functools import cached_property

from llama_cpp import llama_cpp as c

from ocak.core.errors import InvalidRequest
from ocak.llama.vocabulary import NO_TOKEN, Vocabulary

MOST_BYTES = 512  # of a token's text: for a longer one llama.cpp 0c1e57098 resizes a buffer to less than nothing


class InfillSamplers:
    """Makes infill samplers, from any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    def check(self) -> None:
        """Raise `InvalidRequest` if the model cannot be sampled so; slow the first time."""
        if self._flaw:
            raise InvalidRequest(f"samplers names infill, and this model {self._flaw}", param="samplers")

    def new(self) -> object:
        """Return a sampler; the caller owns it, and has checked."""
        return c.llama_sampler_init_infill(self._vocabulary.pointer)

    @cached_property
    def _flaw(self) -> str:
        vocab = self._vocabulary.pointer
        if c.llama_vocab_eot(vocab) == c.llama_vocab_eos(vocab) == NO_TOKEN:
            return "has no token that ends an answer"
        buffer = ctypes.create_string_buffer(MOST_BYTES)
        for token in range(self._vocabulary.size):
            if c.llama_token_to_piece(vocab, token, buffer, MOST_BYTES, 0, False) < 0:
                return f"has tokens of more than {MOST_BYTES} bytes, such as {token}"
        return ""
