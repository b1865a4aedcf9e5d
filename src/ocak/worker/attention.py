"""Decides between flash attention and the plain one where the owner leaves it open. Pure.

On a CPU llama.cpp's flash attention has a quick kernel for 64 rows of a prompt or more, and a slow one for fewer.
At depth there is no time for 64: a chunk of 16 rows behind 4,096 tokens took 218 ms with it and 84 without, so a
long prompt either stalled everybody or starved itself. Plain attention costs 5 to 15 % on short contexts, and
memory for the scores of a chunk (0.5B Q4_0, two cores; docs/adr/0009).
"""

from __future__ import annotations

from ocak.llama.context import ContextOptions
from ocak.memory.estimate import KvSettings, kv_bytes, score_bytes
from ocak.memory.gguf_header import GgufHeader

LONG = 4096  # contexts above may hold prompts that go in small chunks
PLAIN_TYPES = ("f16", "f32")  # of values that plain attention can read
SHARE = 0.5  # of the cache's bytes, that the scores may take at most


def flash_attention(sizes: ContextOptions, header: GgufHeader, *, is_on_cpu: bool) -> str:
    """Return `on`, `off`, or `auto` for llama.cpp to decide."""
    is_open = sizes.flash_attn == "auto" and is_on_cpu and not sizes.is_unified
    has_others = sizes.parallel > 1  # alone, a prompt goes in whole batches
    if not (is_open and has_others and sizes.context > LONG and sizes.kv_type in PLAIN_TYPES):
        return sizes.flash_attn
    cache = kv_bytes(header, KvSettings(sizes.kv_cells, sizes.kv_type, sizes.kv_type))
    return "off" if score_bytes(header, sizes.batch_tokens, sizes.context) <= SHARE * cache else "auto"
