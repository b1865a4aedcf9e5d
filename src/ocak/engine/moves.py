"""What is to be done to the cells of slots, in the order given. `Slots` decides, the engine has a runner do it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trim:
    """Remove all cells of the slot but the first."""

    slot: int
    keep: int


@dataclass(frozen=True, slots=True)
class Shift:
    """Remove so many cells of the slot behind the first; those behind them move up."""

    slot: int
    keep: int
    count: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Give the slot, which holds nothing, the first cells of another."""

    source: int
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Save:
    """Copy the slot's cells from `start` on to host memory under a key."""

    slot: int
    key: int
    start: int


@dataclass(frozen=True, slots=True)
class Restore:
    """Give the slot those cells saved under the key that come behind what it holds, up to `count` in all."""

    key: int
    slot: int
    count: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Free what was saved under the key."""

    key: int


Move = Trim | Shift | Copy | Save | Restore | Forget
