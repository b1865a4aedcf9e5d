"""What is in host memory: runs of tokens that slots held, each under a key.

Where a slot can be put together of several runs (cells are shared and go in parts), a run is saved behind those
that are there already, so a beginning that many have in common takes its place once. Elsewhere each begins at 0.
The least recently used goes first; whoever uses a chain of runs uses its beginning last, so that no run outlives
what stands before it. Which tokens they are, the tree knows.
Invariant: what is saved is within the budget.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

WORTH_SAVING = 64  # tokens; fewer are computed as soon as copied twice
MOST_SAVED = 512  # runs, so that a search stays quick


@dataclass(frozen=True, slots=True)
class Piece:
    """What a saved run gives to a prefix, which is then so many tokens long."""

    key: int
    end: int


@dataclass(frozen=True, slots=True)
class Saving:
    """The tokens from `start` on are saved, and what was under the keys is given up for them."""

    start: int
    forgotten: tuple[int, ...]


class Saved:
    """`takes_parts`: a run may be used in part; `is_chained`: a run may begin where others end."""

    def __init__(self, budget: int, *, takes_parts: bool, is_chained: bool) -> None:
        self.budget = budget
        self._takes_parts = takes_parts
        self._is_chained = is_chained
        self._runs: dict[int, range] = {}  # by key, of the tokens on its path; least recently used first

    @property
    def num_tokens(self) -> int:
        return self._count(self._runs)

    def has_room(self, count: int) -> bool:
        """Whether so many tokens could be saved and nothing given up."""
        return self.num_tokens + count <= self.budget and len(self._runs) < MOST_SAVED

    def size(self, key: int) -> int:
        """The number of tokens under the key."""
        return len(self._runs[key])

    def chain(self, common: Mapping[int, int], start: int = 0) -> tuple[Piece, ...]:
        """Return what follows the first `start` tokens of a text; `common` is what each key's path has of it."""
        runs = sorted(
            (run.start, min(common[key], run.stop), key)
            for key, run in self._runs.items()
            if key in common and (self._takes_parts or common[key] >= run.stop)
        )
        pieces: list[Piece] = []
        best = Piece(-1, start)
        for begin, end, key in runs:
            if begin > start:
                if best.end > start:
                    pieces.append(best)
                    start = best.end
                if begin > start:
                    return tuple(pieces)
            if end > best.end:
                best = Piece(key, end)
        return (*pieces, best) if best.end > start else tuple(pieces)

    def touch(self, pieces: Iterable[Piece]) -> None:
        """Note that a chain was used just now."""
        for piece in reversed(list(pieces)):
            self._runs[piece.key] = self._runs.pop(piece.key)

    def save(self, key: int, length: int, common: Mapping[int, int], spared: Collection[int]) -> Saving | None:
        """Note that of so many tokens all are saved under a new key that are not yet; None if not worth it.

        `common` is what each key's path has in common with them. The spared keys are not given up.
        """
        chain = self.chain(common)
        if not self._is_chained and chain and chain[-1].end < length:
            chain = ()
        self.touch(chain)
        start = chain[-1].end if chain else 0
        kept = {*spared, *(piece.key for piece in chain)}
        if not WORTH_SAVING <= length - start <= self.budget - self._count(kept):
            return None
        forgotten = self._make_room(length - start, self._beginnings(start, common, kept), kept)
        if forgotten is None:
            return None
        self._runs[key] = range(start, length)
        self.touch(chain)
        return Saving(start, forgotten)

    def _beginnings(self, start: int, common: Mapping[int, int], kept: Collection[int]) -> list[int]:
        """Keys of what a run from `start` on holds too."""
        runs = [(key, run) for key, run in self._runs.items() if key not in kept]
        return [key for key, run in runs if start <= run.start and run.stop == common.get(key)]

    def _make_room(self, count: int, outdated: list[int], kept: Collection[int]) -> tuple[int, ...] | None:
        """Give up those outdated, and the oldest until there is room for so many tokens; None: there is none."""
        forgotten = list(outdated)
        oldest = [key for key in self._runs if key not in kept and key not in outdated]
        room = self.budget - count - self.num_tokens + self._count(outdated)
        while room < 0 or len(self._runs) - len(forgotten) >= MOST_SAVED:
            if len(forgotten) - len(outdated) == len(oldest):
                return None
            forgotten.append(oldest[len(forgotten) - len(outdated)])
            room += self.size(forgotten[-1])
        for key in forgotten:
            self.remove(key)
        return tuple(forgotten)

    def remove(self, key: int) -> None:
        self._runs.pop(key, None)

    def check_integrity(self, lengths: Mapping[int, int]) -> None:
        """Assert the invariant; `lengths` are those of the keys' paths."""
        assert self.num_tokens <= self.budget and len(self._runs) <= MOST_SAVED
        assert {key: run.stop for key, run in self._runs.items()} == lengths
        assert all(len(run) > 0 and (self._is_chained or run.start == 0) for run in self._runs.values())

    def _count(self, keys: Iterable[int]) -> int:
        return sum(len(self._runs[key]) for key in keys)
