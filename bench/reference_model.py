"""A model in this process, through llama.cpp alone: tokenises, and explains two different answers.

Greedy answers of one request may differ where two tokens have nearly equal logits, since
the shape of a batch moves logits by rounding. ``explain`` shows the gap at the place where
two answers part, which tells such a near-tie from another request's memory.
"""

import ctypes
from dataclasses import dataclass

import llama_cpp as lib
import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two answers part: the logit lead of the best token over the other answer's token."""

    common_text: str
    gap: float
    is_explained: bool

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding alone can have made the difference."""
        return self.is_explained and self.gap <= NEAR_TIE


NEAR_TIE = 0.1
CELLS = 1024
_SILENCE = lib.llama_log_callback(lambda level, text, user_data: None)


class ReferenceModel:
    """One sequence, one thread, greedy."""

    def __init__(self, path: str) -> None:
        lib.llama_log_set(_SILENCE, None)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        self._vocab = lib.llama_model_get_vocab(self._model)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.n_threads_batch = CELLS, 1, 1
        self._context = lib.llama_init_from_model(self._model, params)

    def prompt(self, question: str) -> list[int]:
        """The token ids of a chat with one question, by the template that the model carries."""
        template = bytes(lib.llama_model_chat_template(self._model, None)).decode()
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        messages = [{"role": "user", "content": question}]
        text = environment.from_string(template).render(messages=messages, add_generation_prompt=True)
        return self.tokenise(text)

    def tokenise(self, text: str) -> list[int]:
        """Token ids, with the special tokens that ``text`` names and those the model adds."""
        raw, room = text.encode(), len(text.encode()) + 8
        ids = (lib.llama_token * room)()
        count = lib.llama_tokenize(self._vocab, raw, len(raw), ids, room, True, True)
        return list(ids[:count])

    def explain(self, prompt: list[int], first: str, second: str) -> Parting:
        """Follow the greedy answer until it leaves one of the two; both must be full answers."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        text, logits = b"", self._logits(prompt)
        while not lib.llama_vocab_is_eog(self._vocab, int(logits.argmax())) and len(text) < 4 * CELLS:
            best = int(logits.argmax())
            piece = self._piece(best)
            agreed = [full for full in (first, second) if full.encode().startswith(text + piece)]
            if len(agreed) < 2:
                return self._parting(text, logits, first if first not in agreed else second)
            text, logits = text + piece, self._logits([best])
        return self._parting(text, logits, max(first, second, key=len))

    def _parting(self, text: bytes, logits: NDArray[np.float32], other: str) -> Parting:
        """The best token that continues the other answer, or ends it, against the best of all."""
        rest = other.encode()[len(text) :]
        for token in np.argsort(logits)[::-1][:20]:
            ends = not rest and bool(lib.llama_vocab_is_eog(self._vocab, int(token)))
            piece = self._piece(int(token))
            if ends or (piece and rest.startswith(piece)):
                return Parting(text.decode(errors="replace"), float(logits.max() - logits[token]), True)
        return Parting(text.decode(errors="replace"), float("inf"), False)

    def _logits(self, tokens: list[int]) -> NDArray[np.float32]:
        array = (lib.llama_token * len(tokens))(*tokens)
        if lib.llama_decode(self._context, lib.llama_batch_get_one(array, len(tokens))) != 0:
            raise RuntimeError("llama_decode failed")
        num_vocab = lib.llama_vocab_n_tokens(self._vocab)
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, -1), (num_vocab,)).copy()

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_token_to_piece(self._vocab, token, buffer, 256, 0, False)
        return buffer.raw[:length]
