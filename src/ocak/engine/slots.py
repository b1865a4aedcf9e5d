"""Who holds which slot, and from where a new sequence starts.

It starts from the longest prefix that is there of its tenant's: in any slot, busy or idle, or in host memory
(`prefix_cache.py`). Where nothing is kept, the answers of one request still share their prompt while they run.
Who waits for a prefix takes it over the moment it is there; a holder that cannot give parts stops there.
Invariants: a slot has at most one sequence; the account of cells agrees with what every sequence has computed.
"""

from __future__ import annotations

from collections.abc import Hashable

from ocak.engine.moves import Move, Shift, Trim
from ocak.engine.prefix_cache import NO_PREFIX, Keep, Prefix, PrefixCache
from ocak.engine.sequence import Awaited, Sequence
from ocak.engine.slot_limits import SlotLimits

WORTH_WAITING = 16  # tokens that another sequence is about to compute


class Slots:
    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.running: dict[int, Sequence] = {}
        self.cache = PrefixCache(limits, self.running.keys())
        self.cells = self.cache.cells

    def longest_prefix(self, sequence: Sequence) -> Prefix | None:
        """Return the best start for a sequence; None if it is worth waiting for one that is being computed."""
        if not (self.limits.keeps_prefixes or sequence.family):
            return NO_PREFIX
        if sequence.awaited is not None and sequence.awaited.is_coming:
            return None
        found = self.cache.tree.match(self._root(sequence), sequence.tokens, sequence.num_reusable)
        best, coming = self.cache.best(found), NO_PREFIX
        for holder, common in found.items():
            if common > coming.length and self._will_hold(holder, common):
                coming = Prefix(holder, common)
        if coming.length - best.length >= WORTH_WAITING and self.cache.is_worth_it(coming):
            sequence.awaited = self._await(coming)
            return None
        return best if self.cache.is_worth_it(best) else NO_PREFIX

    def _will_hold(self, holder: int, length: int) -> bool:
        """Whether a running sequence's first so many cells can be taken over now or later."""
        if holder not in self.running:
            return False
        return self.limits.reuse == "parts" or self.running[holder].num_computed < length

    def _await(self, coming: Prefix) -> Awaited:
        holder = self.running[coming.holder]
        if self.limits.reuse != "parts":
            holder.stops.add(coming.length)
        return Awaited(holder, coming.length, holder.num_dropped)

    def _root(self, sequence: Sequence) -> Hashable:
        return sequence.root if self.limits.keeps_prefixes else (sequence.root, sequence.family)

    def take(self, sequence: Sequence, prefix: Prefix) -> list[Move]:
        """Seat a sequence on the prefix; return how to make it so."""
        root, tokens = self._root(sequence), sequence.tokens[: sequence.num_shared]
        slot, moves = self.cache.seat(prefix, root, tokens)
        sequence.slot = slot
        sequence.num_computed = prefix.length
        self.running[slot] = sequence
        return [*moves, *self.cache.push_out()]

    def release(self, sequence: Sequence, keep: Keep = "host") -> list[Move]:
        """Take the sequence's slot from it; what it has computed may be kept as a prefix."""
        slot = sequence.slot
        assert slot is not None and self.running.pop(slot) is sequence
        sequence.slot = None
        length = sequence.num_exact
        if keep == "nothing" or not self.limits.keeps_prefixes or not length:
            return self.cache.drop(slot)
        return self.cache.keep(slot, sequence.root, sequence.tokens[:length], keep)

    def shift(self, sequence: Sequence) -> list[Move]:
        """Drop the older half of what a full sequence holds behind its kept tokens.

        What others hold too must not move, and what cannot move at all is no better: it is computed again.
        """
        slot, window = sequence.slot, sequence.window
        assert slot is not None and window is not None and sequence.is_full
        keep, count = window.num_keep, window.step
        sequence.drop(keep, count)
        can_move = self.limits.moves_cells and self.cells.is_private(slot, keep + count)
        if can_move:
            self.cells.cut(slot, keep, count)
            sequence.num_computed -= count
        else:
            self.cells.trim(slot, keep)
            sequence.num_computed = keep
        sequence.has_shifted = can_move
        self.cache.tree.insert(slot, self._root(sequence), sequence.tokens[: sequence.num_shared])
        return [Shift(slot, keep, count) if can_move else Trim(slot, keep)]

    def rewind(self, sequence: Sequence) -> Move:
        """Return how to undo a batch that was left half computed: its cells go, or all where parts cannot."""
        assert sequence.slot is not None
        if self.limits.reuse != "parts":
            self.cells.trim(sequence.slot, 0)
            sequence.restart()
        return Trim(sequence.slot, sequence.num_computed)

    def lose(self, slot: int, key: int | None) -> list[Move]:
        """Start the slot anew: its prefix (saved, if there is a key) could not be brought."""
        self.cells.trim(slot, 0)
        if slot in self.running:
            self.running[slot].restart()
            self.running[slot].num_cached = 0
        else:
            self.cache.drop(slot)
        return [*([] if key is None else [self.cache.forget(key)]), Trim(slot, 0)]

    def grow(self, slot: int, count: int) -> None:
        """Note that so many cells were added to the slot."""
        self.cells.append(slot, count)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        self.cache.check_integrity()
        for slot, sequence in self.running.items():
            assert sequence.slot == slot and not sequence.is_finished
            assert self.cells.length(slot) == sequence.num_computed
