"""llama.cpp as an embedder: passes over whole texts, and one vector, or score, of each.

The cells are unified: only so does llama.cpp compute a pass in one piece, whatever the lengths of its texts, which
pooling over all tokens needs. A model that pools the last token and reads left to right gives its vectors in a
short pass over the last tokens alone; no other row is an output then, and the whole vocabulary is not scored for
every token of every text.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llama_cpp import llama_cpp as c

from ocak.core.embedding import Pooling
from ocak.core.errors import LoadFailed
from ocak.engine.embedding_runner import Vector
from ocak.engine.runner import Aborted, Chunk, NoRoom, RunFailed
from ocak.llama import library
from ocak.llama.context import DECODE_ABORTED, DECODE_NO_ROOM, DECODE_OK, IS_SET, pad_cells
from ocak.llama.model import LlamaModel
from ocak.llama.rows import Rows
from ocak.llama.threads import ThreadCount

POOLING_TYPES: dict[Pooling, int] = {"mean": 1, "cls": 2, "last": 3, "rank": 4}  # llama_pooling_type
PROBABILITIES = ("qwen3", "qwen3vl")  # whose scores llama.cpp makes probabilities itself


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    pooling: Pooling
    context: int  # the longest text, in tokens
    num_slots: int  # texts in one pass
    batch_tokens: int
    threads: int
    can_split: bool  # it reads left to right and pools the last token, so a text may come in parts
    kv_type: str
    kv_offload: bool
    flash_attn: str

    @property
    def num_cells(self) -> int:
        return max(self.batch_tokens, self.context)

    @property
    def num_rows(self) -> int:
        """Of the longest pass, up to a multiple of the slots: else llama.cpp ends the process when it pools."""
        longest = self.batch_tokens if self.can_split else self.num_cells
        return -(-longest // self.num_slots) * self.num_slots


class EmbeddingContext:
    """Implements `engine.embedder.EmbeddingRunner`. Used by one thread, but for `abort`."""

    def __init__(self, model: LlamaModel, options: EmbeddingOptions) -> None:
        self.pointer = c.llama_init_from_model(model.pointer, _params(options))
        if not self.pointer:
            raise LoadFailed(
                f"llama.cpp could not make a context for texts of {options.context} tokens: "
                f"{library.recent_errors() or 'no reason given'}; try a smaller --context"
            )
        self._memory = c.llama_get_memory(self.pointer)
        is_encoder = bool(c.llama_model_has_encoder(model.pointer)) or not self._memory
        if options.can_split and (is_encoder or not c.llama_get_causal_attn(self.pointer)):
            raise LoadFailed(f"{model.architecture} models read both ways, so pooling last is not served for them")
        self._can_split = options.can_split
        self._run_pass = c.llama_encode if is_encoder else c.llama_decode
        self.num_cells = int(c.llama_n_ctx(self.pointer)) if self._memory else 0
        self.length = _vector_length(model, options.pooling)
        self._threads = ThreadCount(options.threads)
        self._abort_flag = ctypes.create_string_buffer(2)
        c.llama_set_abort_callback(self.pointer, IS_SET, ctypes.cast(self._abort_flag, ctypes.c_void_p))
        self._rows = Rows(options.num_rows)
        self.decode_s = 0.0

    def run(self, chunks: Sequence[Chunk], ends: Sequence[int]) -> list[Vector]:
        if self._threads.refresh():
            c.llama_set_n_threads(self.pointer, self._threads.value, self._threads.value)
        self._abort_flag[0] = b"\0"
        library.abort_wanted.clear()
        started = time.perf_counter()
        try:
            self._compute(chunks, frozenset(ends))
        finally:
            self.decode_s += time.perf_counter() - started
        return [self._vector(slot) for slot in ends]

    def abort(self) -> None:
        library.abort_wanted.set()
        self._abort_flag[0] = b"\1"

    def clear(self, slot: int) -> None:
        if self._memory:
            c.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def close(self) -> None:
        c.llama_free(self.pointer)

    def _compute(self, chunks: Sequence[Chunk], ends: frozenset[int]) -> None:
        """One pass, or where the last token tells all, one over the others and one over the last ones."""
        if not self._can_split:
            self._pass(chunks, is_output=True)
            return
        before = [_without_last(chunk) if chunk.slot in ends else chunk for chunk in chunks]
        if before := [chunk for chunk in before if chunk.tokens]:
            self._pass(before, is_output=False)
        if last := [_last(chunk) for chunk in chunks if chunk.slot in ends]:
            self._pass(last, is_output=True)

    def _pass(self, chunks: Sequence[Chunk], *, is_output: bool) -> None:
        end = 0
        for chunk in chunks:
            start, end = end, end + len(chunk.tokens)
            self._rows.tokens[start:end] = chunk.tokens
            self._rows.positions[start:end] = range(chunk.start, chunk.start + end - start)
            self._rows.slots[start:end] = chunk.slot
        self._rows.outputs[:end] = is_output
        self._rows.batch.n_tokens = end
        c.llama_set_embeddings(self.pointer, is_output)
        _check(self._run_pass(self.pointer, self._rows.batch))
        c.llama_synchronize(self.pointer)

    def _vector(self, slot: int) -> Vector:
        pointer = c.llama_get_embeddings_seq(self.pointer, slot)
        if not pointer:
            raise RunFailed("llama.cpp made no vector of the text")
        view: Vector = np.ctypeslib.as_array(pointer, (self.length,))
        return view.copy()


def _params(options: EmbeddingOptions) -> object:
    params = c.llama_context_default_params()
    params.n_ctx = pad_cells(max(options.num_cells, options.num_rows))
    params.n_batch = params.n_ubatch = options.num_rows
    params.n_seq_max = options.num_slots
    params.n_outputs_max = options.num_slots if options.can_split else 0  # 0: every row
    params.n_threads = params.n_threads_batch = options.threads
    params.type_k = params.type_v = library.KV_TYPES[options.kv_type]
    params.flash_attn_type = library.FLASH_ATTENTION[options.flash_attn]
    params.offload_kqv = options.kv_offload
    params.kv_unified = True
    params.swa_full = False
    params.no_perf = True
    params.embeddings = True
    params.pooling_type = POOLING_TYPES[options.pooling]
    return params


def _vector_length(model: LlamaModel, pooling: Pooling) -> int:
    if pooling == "rank":
        return int(c.llama_model_n_cls_out(model.pointer))
    return int(c.llama_model_n_embd_out(model.pointer))


def _check(status: int) -> None:
    if status == DECODE_ABORTED:
        raise Aborted("the pass was cut short")
    if status == DECODE_NO_ROOM:
        raise NoRoom("the KV cache is full")
    if status != DECODE_OK:
        raise RunFailed(f"llama.cpp returned {status}: {library.recent_errors()}")


def _without_last(chunk: Chunk) -> Chunk:
    return Chunk(chunk.slot, chunk.start, chunk.tokens[:-1], None)


def _last(chunk: Chunk) -> Chunk:
    return Chunk(chunk.slot, chunk.start + len(chunk.tokens) - 1, chunk.tokens[-1:], None)
