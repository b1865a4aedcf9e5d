"""What the embedder asks of whoever executes its passes, and a fake that the tests share."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ocak.engine.runner import Chunk, RunFailed

Vector = NDArray[np.float32]


class EmbeddingRunner(Protocol):
    """Executes passes. Chunks come ordered by slot, at most one a slot."""

    @property
    def decode_s(self) -> float:
        """Seconds spent inside the model's forward passes so far."""
        ...

    def run(self, chunks: Rows[Chunk], ends: Rows[int]) -> list[Vector]:
        """Compute every chunk; return the vectors of the slots whose sequences end here. Raises `RunFailed`."""
        ...

    def abort(self) -> None:
        """Have the pass that runs now, if any, raise `Aborted`; from any thread."""
        ...

    def clear(self, slot: int) -> None:
        """Remove all that the slot holds."""
        ...


@dataclass(slots=True)
class FakeEmbeddingRunner:
    """A model whose vectors tell every token that was computed: a wrong cell, or a missing one, changes them.

    It keeps the tokens of each slot and asserts what a real one needs: no gap in the positions, no stranger's
    cells, no more of them than there are, and whole sequences alone where it cannot split.
    """

    num_cells: int
    can_split: bool = False
    cells: dict[int, list[int]] = field(default_factory=dict)
    passes: list[list[Chunk]] = field(default_factory=list)
    failures: list[RunFailed | None] = field(default_factory=list)  # raised by the next runs, one each
    before: Callable[[], None] | None = None  # called within each pass
    decode_s: float = 0.0
    num_aborts: int = 0

    def run(self, chunks: Rows[Chunk], ends: Rows[int]) -> list[Vector]:
        assert [chunk.slot for chunk in chunks] == sorted({chunk.slot for chunk in chunks}), "not ordered by slot"
        self.passes.append(list(chunks))
        for chunk in chunks:
            held = self.cells.setdefault(chunk.slot, [])
            assert chunk.start == len(held), "a gap, or a stranger's cells"
            assert chunk.tokens and (self.can_split or chunk.slot in ends), "a part where none may be"
            held.extend(chunk.tokens)
        assert sum(map(len, self.cells.values())) <= self.num_cells, "more cells than there are"
        if self.before is not None:
            self.before()
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        return [fake_vector(self.cells[slot]) for slot in ends]

    def abort(self) -> None:
        self.num_aborts += 1

    def clear(self, slot: int) -> None:
        self.cells.pop(slot, None)


def fake_vector(tokens: Rows[int]) -> Vector:
    """What the fake makes of a sequence, whatever else is in its passes."""
    return np.array([len(tokens), zlib.crc32(repr(list(tokens)).encode()) % 9973], np.float32)
