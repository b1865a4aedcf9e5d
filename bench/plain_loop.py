"""The ceiling: a plain batching loop on llama.cpp, in one process, with no HTTP and no text.

    python -m bench.plain_loop MODEL --clients 16 --requests 64
    python -m bench.plain_loop MODEL --prefixes 2 --prefix-tokens 1024 --prompt-tokens 64 --output-tokens 32

Continuous batching in the split layout: every sequence that decodes adds one row, what
is left of the batch goes to prompts, and the rows are ordered by slot. Greedy, by argmax.
A shared prefix is computed once, in a slot that keeps it; who begins with it waits for it, and copies it.
Prints one JSON object. ``GOMP_SPINCOUNT`` is left at the library's default.
"""

import time
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from bench import loops
from bench.load import Load
from bench.loops import Figures

BATCH_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's own tokens, and the slot that keeps the prefix before them, if there is one."""

    tokens: list[int]
    keeper: int | None


@dataclass(slots=True)
class Slot:
    """One sequence: the tokens still to be run, how many were, how many are to come (none: it keeps a prefix)."""

    pending: list[int]
    to_generate: int
    position: int = 0
    rows: int = 0

    @property
    def in_prefill(self) -> bool:
        """Whether more than the last sampled token has to be run."""
        return len(self.pending) > 1

    @property
    def asks(self) -> bool:
        """Whether a token is to follow this batch."""
        return self.rows == len(self.pending) and self.to_generate > 0


class PlainLoop:
    """Runs a load through ``clients`` slots."""

    def __init__(self, model_path: str, load: Load, num_threads: int) -> None:
        self._load = load
        prompts, cut = load.prompts(), load.prefix_tokens
        self._num_keepers = max(1, load.prefixes) if cut else 0
        self._waiting = [Request(prompt[cut:], self._keeper(number)) for number, prompt in enumerate(prompts)]
        keepers = [Slot(prompt[:cut], to_generate=0) for prompt in prompts[: self._num_keepers]]
        self._slots: list[Slot | None] = [*[None] * load.clients, *keepers]
        self._open(model_path, num_threads)
        self.decode_s = 0.0
        self.num_rows = 0

    def run(self) -> float:
        """Run everything; returns the seconds it took."""
        started = time.perf_counter()
        while self._admit():
            self._schedule()
            self._run_batch()
            self._apply()
        return time.perf_counter() - started

    def _keeper(self, number: int) -> int | None:
        """Prompts take turns with the prefixes."""
        return self._load.clients + number % self._num_keepers if self._num_keepers else None

    def _admit(self) -> bool:
        """Seat whose prefix is there, in order; return whether anything is left to run."""
        for index in range(self._load.clients):
            ready = next((request for request in self._waiting if self._is_ready(request)), None)
            if self._slots[index] is None and ready:
                self._waiting.remove(ready)
                self._seat(index, ready)
        return any(slot and slot.pending for slot in self._slots)

    def _is_ready(self, request: Request) -> bool:
        keeper = None if request.keeper is None else self._slots[request.keeper]
        return keeper is None or not keeper.pending

    def _seat(self, index: int, request: Request) -> None:
        """A copy between streams is of whole sequences; a keeper holds nothing but the prefix."""
        if request.keeper is not None:
            lib.llama_memory_seq_cp(self._memory, request.keeper, index, -1, -1)
        self._slots[index] = Slot(request.tokens, self._load.output_tokens, self._load.prefix_tokens)

    def _schedule(self) -> None:
        """Decide how many rows each slot gets: decoding first, then prompts in slot order."""
        held = [slot for slot in self._slots if slot]
        room = BATCH_TOKENS
        for slot in sorted(held, key=lambda slot: slot.in_prefill):
            slot.rows = min(len(slot.pending), room)
            room -= slot.rows

    def _run_batch(self) -> None:
        self._batch.n_tokens = 0
        for index, slot in enumerate(self._slots):
            if slot and slot.rows:
                self._add_rows(index, slot)
        before = time.perf_counter()
        if lib.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.decode_s += time.perf_counter() - before
        self.num_rows += self._batch.n_tokens

    def _add_rows(self, index: int, slot: Slot) -> None:
        start = self._batch.n_tokens
        end = start + slot.rows
        self._token[start:end] = slot.pending[: slot.rows]
        self._position[start:end] = np.arange(slot.position, slot.position + slot.rows)
        self._output[start:end] = 0
        self._output[end - 1] = slot.asks
        for row in range(start, end):
            self._batch.seq_id[row][0] = index
        self._batch.n_tokens = end

    def _apply(self) -> None:
        row = -1
        for index, slot in enumerate(self._slots):
            if slot is None:
                continue
            row += slot.rows
            asks = slot.asks
            slot.position += slot.rows
            del slot.pending[: slot.rows]
            if asks:
                self._take_token(index, slot, row)

    def _take_token(self, index: int, slot: Slot, row: int) -> None:
        logits = lib.llama_get_logits_ith(self._context, row)
        slot.pending = [int(np.ctypeslib.as_array(logits, (self._num_vocab,)).argmax())]
        slot.to_generate -= 1
        if slot.to_generate == 0:
            lib.llama_memory_seq_rm(self._memory, index, -1, -1)
            self._slots[index] = None

    def _open(self, model_path: str, num_threads: int) -> None:
        lib.llama_backend_init()
        model = lib.llama_model_load_from_file(model_path.encode(), lib.llama_model_default_params())
        self._num_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        self._context = lib.llama_init_from_model(model, self._context_params(num_threads))
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._token = _view(self._batch.token)
        self._position = _view(self._batch.pos)
        self._output = _view(self._batch.logits)
        _view(self._batch.n_seq_id)[:] = 1

    def _context_params(self, num_threads: int) -> lib.llama_context_params:
        load, params = self._load, lib.llama_context_default_params()
        params.n_seq_max = params.n_outputs_max = len(self._slots)
        params.n_ctx = len(self._slots) * _cells(load)
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_threads = params.n_threads_batch = num_threads
        params.kv_unified = False
        return params


def _cells(load: Load) -> int:
    """Cells a slot: what it needs, at least the 1,024 that the servers are given."""
    return max(1024, load.prefix_tokens + load.prompt_tokens + load.output_tokens)


def _view(pointer: Any) -> NDArray[Any]:
    """A numpy array over one of the batch's C arrays."""
    return np.ctypeslib.as_array(pointer, (BATCH_TOKENS,))


def run(model_path: str, load: Load, num_threads: int) -> Figures:
    """Run the load and tell what it took."""
    loop = PlainLoop(model_path, load, num_threads)
    wall_s = loop.run()
    return {
        "tokens_per_s": load.requests * load.output_tokens / wall_s,
        "wall_s": wall_s,
        "decode_share": loop.decode_s / wall_s,
        "computed": loop.num_rows - load.requests * (load.output_tokens - 1),
    }


if __name__ == "__main__":
    loops.main("a plain batching loop on llama.cpp", run)
