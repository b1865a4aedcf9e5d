"""What of earlier prompts and answers is there still: in slots that a sequence has left, and in host memory.

A slot that a sequence has left keeps its cells until the slot or its cells are needed; the least recently used
goes first. What an answer that ended by itself leaves is saved to host memory (`saved.py`) before its slot is used
otherwise, and comes back when it is asked for again: copying is quicker than computing. Where cells are shared it
goes there sooner: attention passes over the cells of all, so many idle ones slow those who run.
Which slots are busy it is shown; by whom, it does not know.
Invariant: the tree and the account of cells agree with what every idle slot holds.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, count
from typing import Literal

from ocak.engine.cells import Cells, SplitCells, UnifiedCells
from ocak.engine.moves import Copy, Forget, Move, Restore, Save, Trim
from ocak.engine.prefix_tree import PrefixTree
from ocak.engine.saved import Piece, Saved
from ocak.engine.slot_limits import SlotLimits

Keep = Literal["nothing", "slot", "host"]  # of a sequence that ends: how far its cells may live on
WORTH_COPYING = 32  # tokens
MOST_IDLE = 2048  # shared cells that only idle slots hold (docs/adr/0006)


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt that is there already: what a slot gives of it, and behind it what was saved."""

    holder: int
    num_shared: int
    pieces: tuple[Piece, ...] = ()

    @property
    def length(self) -> int:
        return self.pieces[-1].end if self.pieces else self.num_shared

    @property
    def is_saved(self) -> bool:
        """Whether all of it is under one key."""
        return self.num_shared == 0 and len(self.pieces) == 1


NO_PREFIX = Prefix(-1, 0)


class PrefixCache:
    def __init__(self, limits: SlotLimits, busy: Collection[int]) -> None:
        self._limits = limits
        self._busy = busy  # slots
        self.cells: Cells = (UnifiedCells if limits.shares_cells else SplitCells)(limits.num_cells)
        self.tree = PrefixTree()
        self._idle: dict[int, Keep] = {}  # slots that hold cells and no sequence, least recently used first
        takes_parts = limits.reuse == "parts"
        self._combines = limits.shares_cells and takes_parts  # what slots hold with what is saved
        self._saved = Saved(limits.saved_tokens, takes_parts=takes_parts, is_chained=self._combines)
        self._keys = count(limits.num_slots)  # keys and slots share the tree

    @property
    def num_held(self) -> int:
        """Cells of the busy slots; shared ones count once."""
        return self.cells.num_held(self._busy)

    @property
    def num_idle(self) -> int:
        """Cells that only idle slots hold."""
        return self.cells.num_used - self.num_held

    @property
    def num_saved(self) -> int:
        """Tokens in host memory."""
        return self._saved.num_tokens

    def find(self, root: Hashable, tokens: list[int]) -> Prefix:
        """Return the most that is there of the tokens."""
        return self.best(self.tree.match(root, tokens))

    def best(self, found: Mapping[int, int]) -> Prefix:
        """The longest prefix, of holders that have so much in common with a text; what slots hold comes first."""
        best = NO_PREFIX
        for holder, common in found.items():
            held = self.cells.length(holder)
            length = min(common, held) if self._limits.reuse == "parts" or held <= common else 0
            if length > best.length or (length == best.length > 0 and holder in self._idle):
                best = Prefix(holder, length)
        base = best if self._combines else NO_PREFIX
        longer = replace(base, pieces=self._fitting(self._saved.chain(found, base.num_shared), base))
        least = WORTH_COPYING if self._combines else 1
        return longer if longer.length - best.length >= least else best

    def _fitting(self, pieces: tuple[Piece, ...], base: Prefix) -> tuple[Piece, ...]:
        """Those of the pieces that can be put behind the base: while they come, all that are saved need room."""
        if not pieces or len(self._busy) == self._limits.num_slots:
            return ()
        if not self._limits.shares_cells:
            return pieces
        room = self._limits.num_cells - self.cells.num_held(self._busy, base.holder, base.num_shared)
        sizes = accumulate(self._saved.size(piece.key) for piece in pieces)
        return tuple(piece for piece, size in zip(pieces, sizes, strict=True) if size <= room)

    def is_worth_it(self, prefix: Prefix) -> bool:
        """Whether taking the prefix over is quicker than computing it."""
        return self._limits.shares_cells or prefix.length >= WORTH_COPYING or self._is_own(prefix, prefix.holder)

    def seat(self, prefix: Prefix, root: Hashable, tokens: list[int]) -> tuple[int, list[Move]]:
        """Put the prefix of the tokens into a slot; return it and how."""
        slot = self._choose(prefix)
        self._touch(prefix)
        moves = [] if self._is_own(prefix, slot) else self._save(slot, {piece.key for piece in prefix.pieces})
        self._idle.pop(slot, None)
        moves += self.trim(slot, prefix.num_shared if slot == prefix.holder else 0)
        moves += [*self._share(prefix, slot), *self._restore(prefix.pieces, slot)]
        self.tree.insert(slot, root, tokens)
        return slot, moves

    def _share(self, prefix: Prefix, slot: int) -> list[Move]:
        """Share or copy what another slot gives of the prefix."""
        if not prefix.num_shared or slot == prefix.holder:
            return []
        self.cells.copy(prefix.holder, slot, prefix.num_shared)
        return [Copy(prefix.holder, slot, prefix.num_shared)]

    def _restore(self, pieces: tuple[Piece, ...], slot: int) -> list[Move]:
        """Put the pieces behind what the slot holds."""
        moves: list[Move] = []
        for piece in pieces:
            while self._limits.shares_cells and self.cells.num_free < self._saved.size(piece.key):
                assert self._idle, "the pieces fit"
                moves += self.evict({piece.key for piece in pieces})
            self.cells.append(slot, piece.end - self.cells.length(slot))
            moves.append(Restore(piece.key, slot, piece.end))
        return moves

    def keep(self, slot: int, root: Hashable, tokens: list[int], keep: Keep) -> list[Move]:
        """Take a slot that is no longer busy, of whose cells the first are these tokens'."""
        self.tree.insert(slot, root, tokens)
        self._idle[slot] = keep
        return [*self.trim(slot, len(tokens)), *self.push_out()]

    def gather(self, prefix: Prefix, root: Hashable, tokens: list[int]) -> tuple[int, list[Move]]:
        """Put together what slots and host memory have of the tokens; return the slot that has it, and how."""
        if not prefix.pieces:
            return prefix.holder, []
        slot, moves = self.seat(prefix, root, tokens[: prefix.length])
        self._idle[slot] = "host"
        return slot, moves

    def adopt(self, root: Hashable, tokens: list[int]) -> tuple[int | None, list[Move]]:
        """Take a slot for tokens that were computed elsewhere, None if there is no room for them now.

        Return it and what is to be made first; the cells themselves are the caller's to bring.
        """
        if len(self._busy) == self._limits.num_slots or self._limits.num_cells - self.num_held < len(tokens):
            return None, []
        moves: list[Move] = []
        while self._idle and self.cells.num_free < len(tokens):
            moves += self.evict()
        slot = self._choose(NO_PREFIX)
        moves += [*self._save(slot), *self.drop(slot)]
        if self.cells.num_free < len(tokens):
            return None, moves
        self.cells.append(slot, len(tokens))
        self.tree.insert(slot, root, tokens)
        self._idle[slot] = "host"
        return slot, moves

    def new_key(self) -> int:
        return next(self._keys)

    def forget(self, key: int) -> Forget:
        """Give a saved prefix up."""
        self._saved.remove(key)
        self.tree.remove(key)
        return Forget(key)

    def evict(self, spared: Collection[int] = ()) -> list[Move]:
        """Drop the cached prefix that was not used for the longest time; nothing if there is none."""
        oldest = next(iter(self._idle), None)
        return [] if oldest is None else [*self._save(oldest, spared), *self.drop(oldest)]

    def save_ahead(self) -> list[Move]:
        """Save the next idle prefix that is not yet, if there is room: then its slot is given up at once."""
        for slot in self._idle:
            if self._saved.has_room(self.cells.length(slot)) and (moves := self._save(slot)):
                return moves
        return []

    def push_out(self, *, is_short: bool = False) -> list[Move]:
        """Send idle prefixes out of shared cells: if they are many or cells short, and host memory holds as many.

        All of them, for attention goes up to the highest cell in use: holes below would save nothing.
        """
        limits = self._limits
        has_reason = limits.shares_cells and self._busy and limits.saved_tokens >= limits.num_cells
        if not has_reason or self.num_idle <= (0 if is_short else MOST_IDLE):
            return []
        idle = [slot for slot, keep in self._idle.items() if keep == "host"]
        return [move for slot in idle for move in (*self._save(slot), *self.drop(slot))]

    def trim(self, slot: int, keep: int) -> list[Move]:
        """Take all cells but the first from the slot."""
        if self.cells.length(slot) == keep:
            return []
        self.cells.trim(slot, keep)
        return [Trim(slot, keep)]

    def drop(self, slot: int) -> list[Move]:
        """Give up what the slot holds."""
        self._idle.pop(slot, None)
        self.tree.remove(slot)
        return self.trim(slot, 0)

    def _choose(self, prefix: Prefix) -> int:
        """The slot for a new sequence: the prefix's own if it holds little more, an empty one, or the oldest."""
        if self._is_own(prefix, prefix.holder):
            return prefix.holder
        empty = next((slot for slot in range(self._limits.num_slots) if self._is_empty(slot)), None)
        if empty is not None:
            return empty
        return next(iter(self._idle))

    def _is_own(self, prefix: Prefix, slot: int) -> bool:
        """Whether the slot is cached and holds the prefix and little else: an answer that was told otherwise."""
        is_holder = slot == prefix.holder and slot in self._idle
        return is_holder and self.cells.length(slot) <= prefix.num_shared + prefix.num_shared // 2

    def _is_empty(self, slot: int) -> bool:
        return slot not in self._busy and slot not in self._idle

    def _touch(self, prefix: Prefix) -> None:
        """Note that the prefix was used just now."""
        self._saved.touch(prefix.pieces)
        if prefix.holder in self._idle:
            self._idle[prefix.holder] = self._idle.pop(prefix.holder)

    def _save(self, slot: int, spared: Collection[int] = ()) -> list[Move]:
        """Save what the slot holds if it is worth it, at the cost of the oldest saved but the spared."""
        if self._idle.get(slot) != "host":
            return []
        root, tokens = self.tree.path(slot)
        holders = self.tree.match(root, tokens)
        del holders[slot]
        if any(common == len(tokens) and self._idle.get(holder) == "host" for holder, common in holders.items()):
            return []  # another holds it too
        key = self.new_key()
        saving = self._saved.save(key, len(tokens), holders, spared)
        if saving is None:
            return []
        self.tree.insert(key, root, tokens)
        return [*map(self.forget, saving.forgotten), Save(slot, key, saving.start)]

    def check_integrity(self) -> None:
        """Assert the invariant."""
        self.cells.check_integrity()
        self.tree.check_integrity()
        assert not self._idle.keys() & set(self._busy)
        for slot in self._idle:
            assert self.cells.length(slot) == len(self.tree.path(slot)[1]) > 0
        self._saved.check_integrity(self.tree.lengths(self._limits.num_slots))
