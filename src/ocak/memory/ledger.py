"""Who holds how many bytes on which device. Pure: it is told what other programs leave.

A model's bytes are reserved before its load begins and released when its process has gone, so two loads at once
never count on the same memory.
Invariant: a reservation is made only if it and all others fit within the limits, and what other programs leave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

Bytes = Mapping[str, int]  # by device
HOST = "cpu"


class Ledger:
    def __init__(self, limits: Bytes) -> None:
        self.limits = dict(limits)
        self._held: dict[str, Bytes] = {}

    def held(self, key: str) -> Bytes:
        """What is reserved under a key; nothing if it is not known."""
        return self._held.get(key, {})

    @property
    def total(self) -> Bytes:
        """All reservations together."""
        total: Counter[str] = Counter()
        for sizes in self._held.values():
            total.update(sizes)
        return total

    def missing(self, key: str, needed: Bytes, left: Bytes) -> Bytes:
        """Return how many bytes are not there for `key`, by device; empty if it fits. It may hold some already.

        `left` is what other programs leave to all models together.
        """
        free = {device: self.free(device, left) + self.held(key).get(device, 0) for device in needed}
        return {device: size - free[device] for device, size in needed.items() if size > free[device]}

    def free(self, device: str, left: Bytes) -> int:
        """Bytes that could be reserved now; less than none where other programs took what was reserved."""
        limit = self.limits.get(device, 0)
        return min(limit, left.get(device, limit)) - self.total.get(device, 0)

    def reserve(self, key: str, needed: Bytes, left: Bytes) -> None:
        """Hold bytes for `key`, instead of what it held before; only if nothing is `missing`."""
        assert not self.missing(key, needed, left), f"{key} does not fit"
        self._held[key] = dict(needed)

    def release(self, key: str) -> None:
        """Give back what `key` holds, if anything."""
        self._held.pop(key, None)
