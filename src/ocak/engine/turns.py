"""Whose turn the next batch is, and whether it decodes or prefills: adapters take turns. Pure.

llama.cpp computes a batch with one set of adapters, so sequences of different adapters never share one. A round
is a decoding batch of every adapter that has answers under way, then one prefilling batch, of the adapter that
has prefilled longest ago. With one adapter, or none, that is decode and prefill in turns.
Invariant: of k adapters that decode, each does in any k + 1 batches; of p that prefill, each does in any
p * (k + 1) batches.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

NEVER = -1


@dataclass(frozen=True, slots=True)
class Turn:
    adapter: str
    is_prefill: bool


class Turns:
    def __init__(self) -> None:
        self._num_turns = 0
        self._decoded_at: dict[str, int] = {}  # by adapter the number of its last decoding turn
        self._prefilled_at: dict[str, int] = {}
        self._last_prefill = NEVER

    def next(self, decoding: Collection[str], prefilling: Collection[str]) -> Turn:
        """Return the next turn, given the adapters of the sequences in either state; there must be one."""
        is_owed = any(self._decoded_at.get(adapter, NEVER) < self._last_prefill for adapter in decoding)
        is_prefill = bool(prefilling) and not is_owed
        taken = self._prefilled_at if is_prefill else self._decoded_at
        adapter = min(prefilling if is_prefill else decoding, key=lambda name: (taken.get(name, NEVER), name))
        if is_prefill:
            self._last_prefill = self._num_turns
        taken[adapter] = self._num_turns
        self._num_turns += 1
        return Turn(adapter, is_prefill)
