"""What the scheduler decides: the next step."""

from __future__ import annotations

from dataclasses import dataclass

from ocak.engine.moves import Move
from ocak.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """What to compute: pairs of a sequence and how many of its pending tokens, ordered by slot."""

    rows: tuple[tuple[Sequence, int], ...]
    moves: tuple[Move, ...]  # to make first, in this order
    admitted: tuple[Sequence, ...]  # for the first time, in this batch
    is_prefill: bool
    adapter: str = ""  # of all its sequences; empty: none

    @property
    def num_tokens(self) -> int:
        return sum(count for _, count in self.rows)
