"""Runs a GGUF through llama.cpp, one greedy answer at a time: what a user of the file would see.

Uses only the low-level API of llama-cpp-python, so that nothing stands between the file and the measurement.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np

MODEL_PATH = Path(__file__).resolve().parents[1] / "src/ocak/embedded/ocak-embedded.gguf"

_quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)


@dataclass(frozen=True, slots=True)
class Answer:
    """The text, and whether the model ended it by itself."""

    text: str
    stopped: bool


class GreedyRunner:
    """One model and one context; every answer starts with empty memory."""

    def __init__(self, path: Path, num_threads: int = 1, context: int = 1024) -> None:
        llama_cpp.llama_log_set(_quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise OSError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = context
        params.n_threads = params.n_threads_batch = num_threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._num_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokenise(self, text: str) -> list[int]:
        """Token ids; the names of control tokens become those tokens."""
        data = text.encode()
        room = (llama_cpp.llama_token * (len(data) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), room, len(room), False, True)
        return list(room[:count])

    def answer(self, prompt: str, max_tokens: int = 96) -> Answer:
        """Take the likeliest token until the model ends its answer or there are enough."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        ids, pieces = self.tokenise(prompt), b""
        for _ in range(max_tokens):
            token = self._next(ids)
            if llama_cpp.llama_vocab_is_eog(self._vocab, token):
                return Answer(pieces.decode(errors="replace"), stopped=True)
            pieces += self._piece(token)
            ids = [token]
        return Answer(pieces.decode(errors="replace"), stopped=False)

    def _next(self, ids: list[int]) -> int:
        """Run the tokens and return the likeliest next one."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # kept alive here: the batch only points at it
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self._context, -1), shape=(self._num_vocab,))
        return int(logits.argmax())

    def _piece(self, token: int) -> bytes:
        room = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self._vocab, token, room, len(room), 0, False)
        return room.raw[:count]
