"""How long something has been running, seen from another thread: the worker's pulse reports it to the fleet."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Several threads may run at once; `age_s` is the oldest one's."""

    def __init__(self) -> None:
        self._started: dict[int, float] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.get_ident()
        self._started[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._started[thread]

    @property
    def age_s(self) -> float:
        """0 when nothing runs."""
        now = time.monotonic()
        return max((now - started for started in list(self._started.values())), default=0.0)
