"""Decides from a header how much host memory the tokens take: in llama.cpp, and as tables for grammars. Pure.

Source: by how much a process's resident memory grows when llama.cpp, and then llguidance, read the vocabulary-only
GGUFs of llama.cpp's repository (0c1e57098; 30,522 to 262,144 tokens); constants by least squares. With tables,
none of 17 is off by more than 6 %, nor by more than 3.5 MiB.
"""

from __future__ import annotations

import struct
from typing import Final

from ocak.memory.gguf_header import GgufHeader, LargeArray

UNIGRAM: Final = "t5"  # a model that keeps the texts of its tokens in a tree
LENGTH_BYTES: Final = 8  # before each string


def vocabulary_bytes(header: GgufHeader, *, has_tables: bool) -> int:
    """Bytes resident while the model is loaded; `has_tables` where answers may have to follow grammars."""
    num_tokens, letters = _strings(header, "tokenizer.ggml.tokens")
    num_merges, _ = _strings(header, "tokenizer.ggml.merges")
    if num_tokens and has_tables:  # which hold each token once for every set of tokens that it is in
        return 4_080_000 + 653 * num_tokens + 24 * letters + 141 * num_merges
    if header.metadata.get("tokenizer.ggml.model") == UNIGRAM:
        return 528 * num_tokens
    return (268 if num_merges else 160) * num_tokens + 64 * num_merges


def _strings(header: GgufHeader, key: str) -> tuple[int, int]:
    """How many strings an array has, and their bytes together, by how much room it takes in the file."""
    value = header.metadata.get(key)
    if not isinstance(value, tuple | LargeArray):
        return 0, 0
    count = value.length if isinstance(value, LargeArray) else len(value)
    start, end = header.spans[key]
    entry = struct.calcsize("<Q") + len(key) + struct.calcsize("<IIQ")  # key, types, length
    return count, end - start - entry - count * LENGTH_BYTES
