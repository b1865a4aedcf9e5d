"""Decides from a header how much host memory the tokens take: in llama.cpp, and as tables for grammars. Pure.

Source: by how much a process's resident memory grows when llama.cpp, and then llguidance, read the vocabulary-only
GGUFs of llama.cpp's repository (0c1e57098; 30,522 to 262,144 tokens); constants by least squares.
"""

from __future__ import annotations

import struct
from typing import Final

from ocak.memory.gguf_header import GgufHeader, LargeArray

TOKEN: Final = 160  # bytes in llama.cpp, of a token that is found by its text
MERGED_TOKEN: Final = 268  # of one that others are merged into
MERGE: Final = 64
TOKEN_OF_TREE: Final = 528  # of a unigram model, which keeps all texts in a tree
TABLES_TOKEN: Final = 670  # in the tables, one token's entries in all sets of tokens
TABLES_LETTER: Final = 7.2  # and each byte of its text
UNIGRAM: Final = "t5"
_LENGTH_BYTES: Final = 8  # before each string


def vocabulary_bytes(header: GgufHeader, *, has_tables: bool) -> int:
    """Bytes resident while the model is loaded; `has_tables` where answers may have to follow grammars."""
    num_tokens, letters = _strings(header, "tokenizer.ggml.tokens")
    num_merges, _ = _strings(header, "tokenizer.ggml.merges")
    if header.metadata.get("tokenizer.ggml.model") == UNIGRAM:
        each = TOKEN_OF_TREE
    else:
        each = MERGED_TOKEN if num_merges else TOKEN
    tables = num_tokens * TABLES_TOKEN + round(letters * TABLES_LETTER) if has_tables else 0
    return num_tokens * each + num_merges * MERGE + tables


def _strings(header: GgufHeader, key: str) -> tuple[int, int]:
    """How many strings an array has, and their bytes together, by how much room it takes in the file."""
    value = header.metadata.get(key)
    if not isinstance(value, tuple | LargeArray):
        return 0, 0
    count = value.length if isinstance(value, LargeArray) else len(value)
    start, end = header.spans[key]
    entry = struct.calcsize("<Q") + len(key) + struct.calcsize("<IIQ")  # key, types, length
    return count, end - start - entry - count * _LENGTH_BYTES
