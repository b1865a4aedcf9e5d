"""Has a runner make the moves that `Slots` decided, and tells it what could not be made.

Invariant: nothing is built upon a prefix that was not brought: whoever was to start from it computes it anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from ocak.engine.moves import Copy, Forget, Move, Restore, Save, Shift, Trim
from ocak.engine.runner import RunFailed, Runner
from ocak.engine.slots import Slots


class Mover:
    def __init__(self, runner: Runner, slots: Slots) -> None:
        self._runner = runner
        self._slots = slots

    def make(self, moves: Iterable[Move]) -> None:
        """Make the moves, in order."""
        lost: set[int] = set()  # slots that lack what the next moves count on
        for move in moves:
            match move:
                case Trim(slot, keep):
                    self._runner.trim(slot, keep)
                case Shift(slot, keep, count):
                    self._runner.shift(slot, keep, count)
                case Save(slot, key, start):
                    self._save(slot, key, start)
                case Forget(key):
                    self._runner.forget(key)
                case Copy(_, slot, _) | Restore(_, slot, _):
                    if slot not in lost and not self._bring(move, lost):
                        lost.add(slot)

    def _save(self, slot: int, key: int, start: int) -> None:
        try:
            self._runner.save(slot, key, start)
        except (RunFailed, MemoryError):
            self.make([self._slots.cache.forget(key)])

    def _bring(self, move: Copy | Restore, lost: set[int]) -> bool:
        """Return whether the slot has its prefix now; if not, it is to begin anew."""
        key = move.key if isinstance(move, Restore) else None
        try:
            if isinstance(move, Restore):
                self._runner.restore(move.key, move.slot, move.count)
                return True
            if move.source not in lost:
                self._runner.copy(move.source, move.slot, move.count)
                return True
        except (RunFailed, MemoryError):
            pass
        self.make(self._slots.lose(move.slot, key))
        return False
