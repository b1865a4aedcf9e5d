"""What the fleet is told of a model, and what a model's owner asks of the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ocak.core.residence import Priority
from ocak.fleet.process import WorkerProcess
from ocak.memory.needs import Needs
from ocak.worker.messages import LoadOptions


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve under `key`; `estimated_bytes` is what it was expected to take before loading."""

    key: str
    options: LoadOptions
    estimated_bytes: int = 0
    besides_bytes: int = 0  # of adapters and a draft model
    priority: Priority = "normal"
    keep_alive_s: float | None = None  # idle for longer, it is unloaded; None: never
    preload: bool = True  # loaded from the start, if there is room


class Landlord(Protocol):
    """Who gives room and workers to models."""

    async def worker(self) -> WorkerProcess:
        """Return a worker without a model. Raises `OSError`."""
        ...

    async def make_room(self, key: str, needs: Needs) -> None:
        """Reserve what a model needs; for one that is asked for, others may have to go. Raises `DoesNotFit`."""
        ...

    def release(self, key: str) -> None:
        """Take the room back: the process has gone."""
        ...
