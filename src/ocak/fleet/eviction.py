"""Decides which models make room for another. Pure: a snapshot in, keys out.

Expired ones go first, then those of lower priority, then the least recently used; by cost, instead of the last,
those whose bytes are the cheapest to bring back for the time they lay idle. Nobody is sent away in vain: what is
not needed in the end stays.
Invariant: a pinned model is never chosen, a busy one only if idle ones are not enough, and then it drains first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ocak.core.residence import Priority
from ocak.memory.ledger import Bytes

Order = Literal["lru", "cost"]
RANK: dict[Priority, int] = {"low": 0, "normal": 1, "high": 2, "pinned": 3}
STAY_S = 10.0  # a model that has just been loaded for somebody is not drained for another at once


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model, as it is now; times are of one clock."""

    key: str
    held: Bytes
    used_at: float  # when its last request began or ended
    loaded_at: float
    priority: Priority = "normal"
    is_busy: bool = False
    keep_alive_s: float | None = None  # idle for longer, it has expired; None: never
    load_s: float = 1.0  # what its load took

    def is_expired(self, now: float) -> bool:
        return not self.is_busy and self.keep_alive_s is not None and now - self.used_at >= self.keep_alive_s


def victims(missing: Bytes, residents: Iterable[Resident], now: float, order: Order = "lru") -> list[str] | None:
    """Return who is unloaded for so many missing bytes, by device, the first first; None if it cannot be done."""
    able = [one for one in residents if one.priority != "pinned" and _helps(one, missing)]
    idle = [one for one in able if not one.is_busy]
    settled = [one for one in able if not one.is_busy or now - one.loaded_at >= STAY_S]
    return _enough(missing, idle, now, order) or _enough(missing, settled, now, order)


def expired(residents: Iterable[Resident], now: float) -> list[str]:
    """Return who has been idle for longer than it is kept."""
    return [one.key for one in residents if one.priority != "pinned" and one.is_expired(now)]


def _enough(missing: Bytes, able: Sequence[Resident], now: float, order: Order) -> list[str] | None:
    """Take them in order until nothing is missing, then leave out who was not needed, the dearest first."""
    chosen: list[Resident] = []
    for one in sorted(able, key=_by(order, now)):
        if not _still(missing, chosen):
            break
        chosen.append(one)
    if _still(missing, chosen):
        return None
    for one in reversed(tuple(chosen)):
        rest = [other for other in chosen if other is not one]
        if not _still(missing, rest):
            chosen = rest
    return [one.key for one in chosen]


def _by(order: Order, now: float) -> Callable[[Resident], tuple[object, ...]]:
    def place(one: Resident) -> tuple[object, ...]:
        idle_s = now - one.used_at
        worth = idle_s if order == "lru" else idle_s * sum(one.held.values()) / max(one.load_s, 1e-3)
        return (not one.is_expired(now), one.is_busy, RANK[one.priority], -worth, one.key)

    return place


def _helps(one: Resident, missing: Bytes) -> bool:
    return any(one.held.get(device, 0) > 0 for device in missing)


def _still(missing: Bytes, gone: Iterable[Resident]) -> bool:
    gone = tuple(gone)
    return any(sum(one.held.get(device, 0) for one in gone) < size for device, size in missing.items())
