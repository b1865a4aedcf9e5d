"""A llama.cpp context: the KV cells of all slots, and the forward pass over a batch.

Two layouts of the cells. *Split*: each slot has a stream of its own, as long as the context. *Unified*: the slots
share fewer cells. A batch is written into arrays that live as long as the context, so a step copies only tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray

from ocak.core.errors import LoadFailed
from ocak.core.limits import MOST_GUESSES
from ocak.core.rope import RopeOptions
from ocak.engine.padding import MOST_TILE, TILE
from ocak.engine.runner import MOST_SCORED, Aborted, Chunk, NoRoom, RunFailed
from ocak.engine.slot_limits import Reuse
from ocak.llama import library
from ocak.llama.cell_state import CellStates
from ocak.llama.model import LlamaModel
from ocak.llama.rows import Rows

CELL_PADDING = 256  # llama.cpp rounds the cells of a stream up to this
NO_PADDING: Mapping[int, int] = {}
# Whose rotation by nothing changes nothing: a shift rotates every cell of every slot. Quantised ones lose a little
# each time, and with heads of 32 values they end the process, as bf16 does on a CPU (llama.cpp 0c1e57098).
SHIFTING_TYPES = ("f16", "f32")
DECODE_OK, DECODE_NO_ROOM, DECODE_ABORTED = 0, 1, 2
# Asked before every operation of a pass whether to abort, so it must not wait for the interpreter: `strlen` of the
# abort flag is C's own function that tells an empty string from another.
IS_SET = ctypes.cast(ctypes.CDLL(None).strlen, c.ggml_abort_callback)
NEVER = c.ggml_abort_callback()


@dataclass(frozen=True, slots=True)
class ContextOptions:
    context: int  # tokens per sequence
    parallel: int
    kv_cells: int  # all slots together; below context x parallel they are shared
    batch_tokens: int
    threads: int
    kv_type: str
    kv_offload: bool
    flash_attn: str
    keeps_prefixes: bool = True
    rope: RopeOptions = RopeOptions()
    is_uniform: bool = False  # a row is computed by the same kernels, whoever else is in the batch

    @property
    def is_unified(self) -> bool:
        return self.kv_cells < self.context * self.parallel

    @property
    def cells_per_slot(self) -> int:
        """Where rows must fill their tiles, there is room for that behind the last token."""
        return self.context + MOST_TILE if self.is_uniform else self.context

    @property
    def max_outputs(self) -> int:
        """Rows of a batch that may have logits: every slot's, those that fill a tile, and a prompt's; or guesses'.

        Guesses have their batch to themselves. Where rows must fill their tiles, all of a step's may have some.
        """
        if self.is_uniform:
            return self.num_slots * MOST_TILE // TILE + MOST_SCORED + MOST_TILE
        return max(self.num_slots + TILE + MOST_SCORED, MOST_GUESSES + 1)

    @property
    def num_slots(self) -> int:
        """Sequence ids: where cells are shared, some more than run at once, for prefixes that are kept."""
        if not (self.is_unified and self.keeps_prefixes):
            return self.parallel
        return max(self.parallel, min(library.MAX_SEQUENCES - 1, 2 * self.parallel + 16))

    @property
    def num_sequences(self) -> int:
        """Of llama.cpp: the slots, and one more where parts of what they hold are saved (`cell_state.py`)."""
        return min(library.MAX_SEQUENCES, self.num_slots + (self.is_unified and self.keeps_prefixes))


@dataclass(frozen=True, slots=True)
class Output:
    """Where a row with logits is: in the batch, and among those that have some."""

    row: int
    index: int


class LlamaContext:
    def __init__(self, model: LlamaModel, options: ContextOptions) -> None:
        self._options = options
        self.num_vocab = model.vocabulary.size
        self.pointer = c.llama_init_from_model(model.pointer, _params(options))
        if not self.pointer:
            raise LoadFailed(
                f"llama.cpp could not make a context of {options.kv_cells} cells (context {options.context} x "
                f"parallel {options.parallel}, kv_type {options.kv_type}): "
                f"{library.recent_errors() or 'no reason given'}; try a smaller --context or --parallel"
            )
        self.num_slots = options.num_slots
        self.context = options.context
        self.cells_per_slot = options.cells_per_slot
        self.tile = TILE  # rows that kernels take at a time
        self.is_unified = options.is_unified
        self.is_uniform = options.is_uniform
        self.fills_tall = options.flash_attn != "off" and not options.is_uniform
        self.reuse: Reuse = "parts" if model.can_trim else "wholes"
        self.threads = options.threads
        self.batch_tokens = options.batch_tokens
        self.scored_at: dict[int, int] = {}  # by slot, among the logits of the last pass: its first scored row's
        self._logits: NDArray[np.float32] = np.empty((0, 0), np.float32)
        self._logits_address = 0
        self._abort_flag = ctypes.create_string_buffer(2)
        self._let_abort()
        self._memory = c.llama_get_memory(self.pointer)
        spare = self.num_slots if options.num_sequences > self.num_slots else None
        self.states = CellStates(self.pointer, spare)
        self.can_save = spare is not None or not self.is_unified
        self.moves_cells = (
            options.kv_type in SHIFTING_TYPES
            and not model.scales_keys
            and options.rope.is_plain  # rotating by nothing would not be nothing
            and bool(c.llama_memory_can_shift(self._memory))
        )
        self._has_shifted = False  # the next pass rotates the keys first
        self._rows = Rows(options.batch_tokens)

    def fill(
        self, chunks: Sequence[Chunk], padding: Mapping[int, int] = NO_PADDING, num_outputs: int = 0
    ) -> list[Output]:
        """Write the chunks into the batch; return where the logits will be that a sampler waits for.

        A chunk is followed by as many tokens of no meaning as `padding` says of its slot. First rows of other
        chunks get logits too, up to `num_outputs` in all. Scored rows come before the last, see `scored_at`.
        """
        self.scored_at.clear()
        outputs: list[Output] = []
        num_extra = max(0, num_outputs - sum(chunk.sampler is not None for chunk in chunks))
        end = num_before = 0
        for chunk in chunks:
            start, last = end, end + len(chunk.tokens) - 1
            end = last + 1 + padding.get(chunk.slot, 0)
            self._rows.tokens[start : last + 1] = chunk.tokens
            self._rows.tokens[last + 1 : end] = 0
            self._rows.positions[start:end] = range(chunk.start, chunk.start + end - start)
            self._rows.slots[start:end] = chunk.slot
            self._rows.outputs[start:end] = 0
            if chunk.scored:
                self._rows.outputs[start + chunk.scored.start : start + chunk.scored.stop] = 1
                self.scored_at[chunk.slot] = num_before
                num_before += len(chunk.scored)
            if chunk.sampler is not None:
                for row in range(last - chunk.num_guesses, last + 1):
                    self._rows.outputs[row] = 1
                    outputs.append(Output(row, num_before))
                    num_before += 1
            elif num_extra and not chunk.scored:
                self._rows.outputs[start] = 1
                num_extra -= 1
                num_before += 1
        self._rows.batch.n_tokens = end
        return self._fill_tile(outputs, end, num_outputs) if self.is_uniform else outputs

    def _fill_tile(self, outputs: list[Output], end: int, num_outputs: int) -> list[Output]:
        """Have so many rows' logits computed that the last tile of them is full; return where those wanted are."""
        wanted = self._rows.outputs[:end]
        rows = np.flatnonzero(wanted)
        missing = max(num_outputs - len(rows), -len(rows) % self.tile)
        wanted[np.flatnonzero(wanted == 0)[:missing]] = 1
        index = (np.cumsum(wanted)[rows] - 1).tolist()
        self.scored_at = {slot: index[before] for slot, before in self.scored_at.items()}
        return [Output(output.row, index[output.index]) for output in outputs]

    def decode(self) -> None:
        """Run the forward pass over the batch. Raises `NoRoom`, `Aborted` or `RunFailed`."""
        self._abort_flag[0] = b"\0"
        library.abort_wanted.clear()
        status = self._decode()
        if status == DECODE_NO_ROOM:
            raise NoRoom("the KV cache is full")
        if status == DECODE_ABORTED:
            raise Aborted("the pass was cut short")
        if status != DECODE_OK:
            raise RunFailed(f"llama_decode returned {status}: {library.recent_errors()}")
        c.llama_synchronize(self.pointer)

    def _decode(self) -> int:
        """The pass after a shift cannot be aborted: half of the keys would be rotated, and rotated again."""
        if not self._has_shifted:
            return int(c.llama_decode(self.pointer, self._rows.batch))
        self._has_shifted = False
        c.llama_set_abort_callback(self.pointer, NEVER, None)
        try:
            return int(c.llama_decode(self.pointer, self._rows.batch))
        finally:
            self._let_abort()

    def _let_abort(self) -> None:
        c.llama_set_abort_callback(self.pointer, IS_SET, ctypes.cast(self._abort_flag, ctypes.c_void_p))

    @property
    def num_rows(self) -> int:
        return int(self._rows.batch.n_tokens)

    def logits(self) -> NDArray[np.float32]:
        """A view of the last pass's logits: outputs x vocabulary; rows beyond the last output mean nothing."""
        address = ctypes.addressof(c.llama_get_logits(self.pointer).contents)
        if address != self._logits_address:
            size = self._options.max_outputs * self.num_vocab
            flat: NDArray[np.float32] = np.ctypeslib.as_array((ctypes.c_float * size).from_address(address))
            self._logits, self._logits_address = flat.reshape(-1, self.num_vocab), address
        return self._logits

    def abort(self) -> None:
        """Have the pass that runs now end at its next operation; from any thread. CPU only: a GPU goes on."""
        library.abort_wanted.set()
        self._abort_flag[0] = b"\1"

    def trim(self, slot: int, keep: int) -> bool:
        """Remove all cells of the slot but the first; return whether the model's memory can do that."""
        return bool(c.llama_memory_seq_rm(self._memory, slot, keep or -1, -1))

    def shift(self, slot: int, keep: int, count: int) -> None:
        """Remove cells of the slot behind the first; those behind them, which no other slot holds, move up."""
        assert self.moves_cells
        c.llama_memory_seq_rm(self._memory, slot, keep, keep + count)
        c.llama_memory_seq_add(self._memory, slot, keep + count, -1, -count)
        self._has_shifted = True

    def copy(self, source: int, slot: int, count: int) -> None:
        """Give an empty slot the first cells of another: shared in the unified layout, copied in the split one.

        Between streams llama.cpp would copy with the next pass, all that fits into a stream; the source may have
        been overwritten by then.
        """
        if not self._options.is_unified:
            self.states.restore(slot, self.states.save(source), 0, count)
        elif self.reuse == "parts":
            c.llama_memory_seq_cp(self._memory, source, slot, 0, count)
        else:
            c.llama_memory_seq_cp(self._memory, source, slot, -1, -1)

    def use_threads(self, number: int) -> None:
        c.llama_set_n_threads(self.pointer, number, number)

    def close(self) -> None:
        c.llama_free(self.pointer)


def _params(options: ContextOptions) -> object:
    params = c.llama_context_default_params()
    params.n_ctx = (
        pad_cells(options.kv_cells) if options.is_unified else pad_cells(options.cells_per_slot) * options.parallel
    )
    params.n_batch = params.n_ubatch = options.batch_tokens
    params.n_seq_max = options.num_sequences
    params.n_outputs_max = options.max_outputs
    params.n_outputs_max_per_seq = MOST_GUESSES + 1  # of those that are sampled in the graph
    params.n_threads = params.n_threads_batch = options.threads
    params.type_k = params.type_v = library.KV_TYPES[options.kv_type]
    params.flash_attn_type = library.FLASH_ATTENTION[options.flash_attn]
    params.offload_kqv = options.kv_offload
    params.kv_unified = options.is_unified
    params.swa_full = False
    params.no_perf = True
    _set_rope(params, options.rope)
    return params


def _set_rope(params: Any, rope: RopeOptions) -> None:
    """A value that was left open stays at llama.cpp's default, which is the model's own."""
    params.rope_scaling_type = library.ROPE_SCALING[rope.scaling]
    params.rope_freq_base = rope.freq_base
    params.rope_freq_scale = rope.freq_scale
    params.yarn_orig_ctx = rope.yarn_orig_ctx
    params.yarn_ext_factor = rope.yarn_ext_factor
    params.yarn_attn_factor = rope.yarn_attn_factor
    params.yarn_beta_fast = rope.yarn_beta_fast
    params.yarn_beta_slow = rope.yarn_beta_slow


def pad_cells(cells: int) -> int:
    return -(-cells // CELL_PADDING) * CELL_PADDING
