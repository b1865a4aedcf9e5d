"""A model that guesses for another, on llama.cpp: one sequence, the likeliest token each time."""

from __future__ import annotations

from collections.abc import Sequence

from ocak.engine.runner import Chunk, RunFailed
from ocak.llama.context import LlamaContext
from ocak.llama.model import LlamaModel

SLOT = 0


class Likeliest:
    """In place of a sampler: asks for the logits behind a chunk."""

    def close(self) -> None: ...


LIKELIEST = Likeliest()


class LlamaDrafter:
    """Implements `engine.drafting.Drafter`, for a model with `num_vocab` tokens. Used by the same thread."""

    def __init__(self, model: LlamaModel, context: LlamaContext, num_vocab: int, num_bytes: int = 0) -> None:
        self._model = model
        self.cells = context
        self.name = model.name
        self.num_bytes = num_bytes  # of its weights and cells
        self._num_known = model.vocabulary.size
        self._num_shared = min(num_vocab, self._num_known)
        self._num_cells = 0

    @property
    def context(self) -> int:
        return self.cells.context

    @property
    def most_tokens(self) -> int:
        return self.cells.batch_tokens

    def read(self, start: int, tokens: Sequence[int]) -> int:
        """As the protocol says; a token that only the target knows is read as another: a guess may be wrong."""
        if start < self._num_cells and not self.cells.trim(SLOT, start):
            raise RunFailed("its memory gives no single cell back")
        known = [token if token < self._num_known else 0 for token in tokens]
        [output] = self.cells.fill([Chunk(SLOT, start, known, LIKELIEST)])
        self.cells.decode()
        self._num_cells = start + len(tokens)
        return int(self.cells.logits()[output.index, : self._num_shared].argmax())

    def close(self) -> None:
        self.cells.close()
        self._model.close()
