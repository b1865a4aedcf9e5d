"""How many threads a step should have: one fewer for every core that other processes keep busy.

llama.cpp's threads meet at a barrier after every operation, so one that shares its core holds up all the others:
two threads beside a busy process gave 55 token/s, one gave 69 (16 sequences, 2 cores).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from ocak.memory.devices import cores

WINDOW_S = 0.5
STALE_S = 2.0  # a window this old reaches back to when the engine was idle, and tells of a load that may be over
MARGIN = 0.1  # of a core, so that half a core does not flicker


class ThreadCount:
    """The number of threads for the next step, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._usage = Usage()
        self.value = most

    def refresh(self) -> bool:
        """Look at the cores if it is time; return whether the number changed."""
        others = self._usage.others()
        before = self.value
        if others is not None:
            self.value = threads_beside(others, len(cores()), self._most, before)
        return self.value != before


def threads_beside(others: float, num_cores: int, most: int, current: int) -> int:
    """Return how many threads suit the cores of which others use so many; `current` if it is a close call."""
    num_cores = max(num_cores, most)
    low, high = (max(1, min(most, num_cores - round(others + margin))) for margin in (MARGIN, -MARGIN))
    return min(max(current, low), high)


TASKS = Path("/proc/self/task")


class Usage:
    """What other processes want of this process's cores: what they use, and what its threads wait for.

    A process that shares a core with a thread that is held there gets but half of it. Those of a lower priority
    yield, and do not count.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._seen_at = time.monotonic()
        self._seen_s = self._busy_s()

    def others(self) -> float | None:
        """Return how many cores others wanted since the last look; None before a window passed, or long after."""
        now = time.monotonic()
        passed_s = now - self._seen_at
        if passed_s < WINDOW_S:
            return None
        before, self._seen_s, self._seen_at = self._seen_s, self._busy_s(), now
        return max(0.0, (self._seen_s - before) / passed_s) if passed_s < STALE_S else None

    def _busy_s(self) -> float:
        mine, own = cores(), self._process.cpu_times()
        every = [times for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in mine]
        return sum(times.user + times.system for times in every) - own.user - own.system + _waited_s()


def _waited_s() -> float:
    """Seconds for which this process's threads were ready to run and had no core; 0 where nobody counts them."""
    waited_ns = 0
    for task in os.listdir(TASKS) if TASKS.is_dir() else ():
        try:
            waited_ns += int((TASKS / task / "schedstat").read_text().split()[1])
        except (OSError, IndexError, ValueError):  # it has ended, or the kernel keeps no account
            continue
    return waited_ns / 1e9
