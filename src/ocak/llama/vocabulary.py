"""The model's tokens: text to ids and ids to bytes. Thread-safe: llama.cpp only reads the vocabulary."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llama_cpp import llama_cpp as c

NO_TOKEN = -1  # LLAMA_TOKEN_NULL
PIECE_BYTES = 256


@dataclass(frozen=True, slots=True)
class InfillTokens:
    prefix: int
    suffix: int
    middle: int


class Vocabulary:
    """`vocab` stays valid as long as the model it came from."""

    def __init__(self, vocab: object) -> None:
        self.pointer = vocab
        self.size: int = c.llama_vocab_n_tokens(vocab)
        self.infill = _infill_tokens(vocab)
        self._pieces: dict[int, bytes] = {}
        self._written: dict[int, bytes] = {}

    @cached_property
    def end_tokens(self) -> frozenset[int]:
        """Those that end an answer; a worker looks them up while it loads, a dry run never does."""
        return frozenset(t for t in range(self.size) if c.llama_vocab_is_eog(self.pointer, t))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the ids of `text`; `add_special` puts the model's BOS (and EOS) where it wants them."""
        data = text.encode()
        room = len(data) + 2  # no token is shorter than a byte
        ids = (ctypes.c_int32 * room)()
        count = c.llama_tokenize(self.pointer, data, len(data), ids, room, add_special, parse_special)
        if count < 0:
            ids = (ctypes.c_int32 * -count)()
            count = c.llama_tokenize(self.pointer, data, len(data), ids, -count, add_special, parse_special)
        return ids[:count]

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token as text; special tokens have none."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.read_piece(token, is_special=False)
        return piece

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of a whole run of tokens, special tokens written out."""
        for token in set(tokens) - self._written.keys():
            self._written[token] = self.read_piece(token, is_special=True)
        return b"".join(map(self._written.__getitem__, tokens)).decode("utf-8", "replace")

    def special_text(self, token: int) -> str:
        """Return how a special token such as BOS is written; empty when the model has none."""
        return "" if token == NO_TOKEN else self.text([token])

    @property
    def bos_text(self) -> str:
        return self.special_text(c.llama_vocab_bos(self.pointer))

    @property
    def eos_text(self) -> str:
        return self.special_text(c.llama_vocab_eos(self.pointer))

    @property
    def adds_bos(self) -> bool:
        return bool(c.llama_vocab_get_add_bos(self.pointer))

    def read_piece(self, token: int, *, is_special: bool) -> bytes:
        """Return the bytes of a token; those of a special one only if `is_special`."""
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        length = c.llama_token_to_piece(self.pointer, token, buffer, PIECE_BYTES, 0, is_special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = c.llama_token_to_piece(self.pointer, token, buffer, -length, 0, is_special)
        return buffer.raw[:length]


def _infill_tokens(vocab: object) -> InfillTokens | None:
    found = InfillTokens(c.llama_vocab_fim_pre(vocab), c.llama_vocab_fim_suf(vocab), c.llama_vocab_fim_mid(vocab))
    return None if NO_TOKEN in (found.prefix, found.suffix, found.middle) else found
