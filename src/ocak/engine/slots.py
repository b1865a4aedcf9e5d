"""Who holds which slot, and what the free ones still know.

A slot that a sequence has left keeps its cells as a cached prefix until the slot or its cells are needed; the
least recently used goes first. A new sequence starts from the longest prefix that any slot of its tenant holds,
running or cached. Where nothing is kept, the answers of one request still share their prompt while they run.
Who waits for a prefix takes it over the moment it is there; a holder that cannot give parts stops there.
What an answer that ended by itself leaves is saved to host memory before its slot is used otherwise, within a
budget, and comes back when it is asked for again: copying is quicker than computing.
Invariants: a slot has at most one sequence; the account of cells and the tree agree with what every slot holds;
what is saved is within its budget.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Literal

from ocak.engine.cells import Cells, SplitCells, UnifiedCells
from ocak.engine.moves import Copy, Forget, Move, Restore, Save, Shift, Trim
from ocak.engine.prefix_tree import PrefixTree
from ocak.engine.sequence import Awaited, Sequence
from ocak.engine.slot_limits import SlotLimits

Keep = Literal["nothing", "slot", "host"]  # of a sequence that ends: how far its cells may live on
WORTH_WAITING = 16  # tokens that another sequence is about to compute
WORTH_COPYING = 32  # tokens
WORTH_SAVING = 64  # tokens; fewer are computed as soon as copied twice
MOST_SAVED = 512  # prefixes, so that a search stays quick


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt that is there already: in a slot, or saved under a key."""

    holder: int
    length: int


NO_PREFIX = Prefix(-1, 0)


class Slots:
    def __init__(self, limits: SlotLimits) -> None:
        self.limits = limits
        self.running: dict[int, Sequence] = {}
        self.cells: Cells = (UnifiedCells if limits.shares_cells else SplitCells)(limits.num_cells)
        self._tree = PrefixTree()
        self._cached: dict[int, Keep] = {}  # slots that hold cells and no sequence, least recently used first
        self._saved: dict[int, int] = {}  # by key the length, least recently used first
        self._keys = count(limits.num_slots)  # keys and slots share the tree

    @property
    def num_held(self) -> int:
        """Cells of the running sequences; shared ones count once."""
        return self.cells.num_held(self.running)

    @property
    def num_cached(self) -> int:
        """Cells that only slots without a sequence hold."""
        return self.cells.num_used - self.num_held

    @property
    def num_saved(self) -> int:
        """Tokens in host memory."""
        return sum(self._saved.values())

    def longest_prefix(self, sequence: Sequence) -> Prefix | None:
        """Return the best start for a sequence; None if it is worth waiting for one that is being computed."""
        if not (self.limits.keeps_prefixes or sequence.family):
            return NO_PREFIX
        if sequence.awaited is not None and sequence.awaited.is_coming:
            return None
        best, coming = NO_PREFIX, NO_PREFIX
        root = self._root(sequence)
        for holder, common in self._tree.match(root, sequence.tokens, sequence.num_reusable).items():
            held = self._saved.get(holder) or self.cells.length(holder)
            length = min(common, held) if self.limits.reuse == "parts" or held <= common else 0
            if length > best.length or (length == best.length > 0 and holder in self._cached):
                best = Prefix(holder, length)
            if common > coming.length and self._will_hold(holder, common):
                coming = Prefix(holder, common)
        if coming.length - best.length >= WORTH_WAITING and self._is_worth_it(coming):
            sequence.awaited = self._await(coming)
            return None
        return best if self._is_worth_it(best) else NO_PREFIX

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

    def _is_worth_it(self, prefix: Prefix) -> bool:
        return self.limits.shares_cells or prefix.length >= WORTH_COPYING or self._is_own(prefix, prefix.holder)

    def take(self, sequence: Sequence, prefix: Prefix) -> list[Move]:
        """Seat a sequence on the prefix; return how to make it so."""
        slot = self._choose(prefix)
        self._touch(prefix.holder)
        moves = [] if self._is_own(prefix, slot) else self._save(slot, prefix.holder)
        self._cached.pop(slot, None)
        moves += self.trim(slot, prefix.length if slot == prefix.holder else 0)
        if prefix.length and slot != prefix.holder:
            moves.append(self._bring(prefix, slot))
        sequence.slot = slot
        sequence.num_computed = prefix.length
        self.running[slot] = sequence
        self._tree.insert(slot, self._root(sequence), sequence.tokens[: sequence.num_shared])
        return moves

    def release(self, sequence: Sequence, keep: Keep = "host") -> list[Move]:
        """Take the sequence's slot from it; what it has computed may be kept as a prefix."""
        slot = sequence.slot
        assert slot is not None and self.running.pop(slot) is sequence
        sequence.slot = None
        length = sequence.num_exact
        if keep == "nothing" or not self.limits.keeps_prefixes or not length:
            return self.drop(slot)
        self._tree.insert(slot, sequence.root, sequence.tokens[:length])
        self._cached[slot] = keep
        return self.trim(slot, length)

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
        self._tree.insert(slot, self._root(sequence), sequence.tokens[: sequence.num_shared])
        return [Shift(slot, keep, count) if can_move else Trim(slot, keep)]

    def rewind(self, sequence: Sequence) -> Move:
        """Return how to undo a batch that was left half computed: its cells go, or all where parts cannot."""
        assert sequence.slot is not None
        if self.limits.reuse != "parts":
            self.cells.trim(sequence.slot, 0)
            sequence.restart()
        return Trim(sequence.slot, sequence.num_computed)

    def forget(self, key: int) -> Forget:
        """Give a saved prefix up."""
        del self._saved[key]
        self._tree.remove(key)
        return Forget(key)

    def lose(self, slot: int, key: int | None) -> list[Move]:
        """Start the slot's sequence anew: its prefix (saved, if there is a key) could not be brought."""
        sequence = self.running[slot]
        self.cells.trim(slot, 0)
        sequence.restart()
        sequence.num_cached = 0
        return [*([] if key is None else [self.forget(key)]), Trim(slot, 0)]

    def held_prefix(self, root: Hashable, tokens: list[int]) -> Prefix:
        """Return the most that a slot or a saved prefix has of the tokens, to be kept elsewhere."""
        best = NO_PREFIX
        for holder, common in self._tree.match(root, tokens).items():
            held = self._saved.get(holder) or self.cells.length(holder)
            length = min(common, held) if self.limits.reuse == "parts" or held <= common else 0
            if length > best.length:
                best = Prefix(holder, length)
        return best

    def is_saved(self, holder: int) -> bool:
        return holder in self._saved

    def adopt(self, root: Hashable, tokens: list[int]) -> tuple[int | None, list[Move]]:
        """Take a slot for tokens that were computed elsewhere, None if there is no room for them now.

        Return it and what is to be made first; the cells themselves are the caller's to bring.
        """
        if len(self.running) == self.limits.num_slots or self.limits.num_cells - self.num_held < len(tokens):
            return None, []
        moves: list[Move] = []
        while self._cached and self.cells.num_free < len(tokens):
            moves += self.evict()
        slot = self._choose(NO_PREFIX)
        moves += [*self._save(slot), *self.drop(slot)]
        if self.cells.num_free < len(tokens):
            return None, moves
        self.cells.append(slot, len(tokens))
        self._tree.insert(slot, root, tokens)
        self._cached[slot] = "host"
        return slot, moves

    def new_key(self) -> int:
        return next(self._keys)

    def grow(self, slot: int, count: int) -> None:
        """Note that so many cells were added to the slot."""
        self.cells.append(slot, count)

    def evict(self) -> list[Move]:
        """Drop the cached prefix that was not used for the longest time; nothing if there is none."""
        oldest = next(iter(self._cached), None)
        return [] if oldest is None else [*self._save(oldest), *self.drop(oldest)]

    def _choose(self, prefix: Prefix) -> int:
        """The slot for a new sequence: the prefix's own if it holds little more, an empty one, or the oldest."""
        if self._is_own(prefix, prefix.holder):
            return prefix.holder
        empty = next((slot for slot in range(self.limits.num_slots) if self._is_empty(slot)), None)
        if empty is not None:
            return empty
        return next(iter(self._cached))

    def _is_own(self, prefix: Prefix, slot: int) -> bool:
        """Whether the slot is cached and holds the prefix and little else: an answer that was told otherwise."""
        is_holder = slot == prefix.holder and slot in self._cached
        return is_holder and self.cells.length(slot) <= prefix.length + prefix.length // 2

    def _is_empty(self, slot: int) -> bool:
        return slot not in self.running and slot not in self._cached

    def _bring(self, prefix: Prefix, slot: int) -> Move:
        """Copy, share or restore a prefix into an empty slot."""
        if prefix.holder in self._saved:
            self.cells.append(slot, prefix.length)
            return Restore(prefix.holder, slot, prefix.length)
        self.cells.copy(prefix.holder, slot, prefix.length)
        return Copy(prefix.holder, slot, prefix.length)

    def _touch(self, holder: int) -> None:
        """Note that the holder was used just now."""
        if holder in self._cached:
            self._cached[holder] = self._cached.pop(holder)
        elif holder in self._saved:
            self._saved[holder] = self._saved.pop(holder)

    def _save(self, slot: int, spared: int = -1) -> list[Move]:
        """Save what the slot holds if it is worth it, at the cost of the oldest saved ones but the spared."""
        length = self.cells.length(slot)
        budget = self.limits.host_tokens - self._saved.get(spared, 0)
        if self._cached.get(slot) != "host" or not WORTH_SAVING <= length <= budget:
            return []
        root, tokens = self._tree.path(slot)
        holders = self._tree.match(root, tokens)
        del holders[slot]
        if any(common == length and self._lasts(holder) for holder, common in holders.items()):
            return []  # another holds it too
        beginnings = [key for key, common in holders.items() if common == self._saved.get(key) and key != spared]
        moves: list[Move] = [self.forget(key) for key in beginnings]
        while self.num_saved + length > self.limits.host_tokens or len(self._saved) >= MOST_SAVED:
            moves.append(self.forget(next(key for key in self._saved if key != spared)))
        key = next(self._keys)
        self._saved[key] = length
        self._tree.insert(key, root, tokens)
        return [*moves, Save(slot, key)]

    def _lasts(self, holder: int) -> bool:
        return holder in self._saved or self._cached.get(holder) == "host"

    def trim(self, slot: int, keep: int) -> list[Move]:
        """Take all cells but the first from the slot."""
        if self.cells.length(slot) == keep:
            return []
        self.cells.trim(slot, keep)
        return [Trim(slot, keep)]

    def drop(self, slot: int) -> list[Move]:
        """Give up what the slot holds."""
        self._cached.pop(slot, None)
        self._tree.remove(slot)
        return self.trim(slot, 0)

    def check_integrity(self) -> None:
        """Assert the invariants."""
        self.cells.check_integrity()
        self._tree.check_integrity()
        assert not self._cached.keys() & self.running.keys()
        for slot, sequence in self.running.items():
            assert sequence.slot == slot and not sequence.is_finished
            assert self.cells.length(slot) == sequence.num_computed
        for slot in self._cached:
            assert self.cells.length(slot) == len(self._tree.path(slot)[1]) > 0
        assert self.num_saved <= self.limits.host_tokens
        assert all(len(self._tree.path(key)[1]) == length for key, length in self._saved.items())
