"""Keeps the kernels' threads apart, a core each, while a worker has all the cores to itself.

Threads that sleep at barriers look half idle, and some schedulers then put two of them on one core: steps took
99 ms there instead of 49, for seconds. Linux only; elsewhere nothing is done.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ocak.memory.devices import cores

TASKS = Path("/proc/self/task")


class Team:
    """The calling thread and those that the kernels started for it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: list[int] = []
        self._is_settled = False  # whether it was tried

    def spread(self) -> None:
        """Give each thread a core of its own, once, if there are as many cores as threads.

        The process's first thread is left alone: what it starts later would inherit its one core.
        """
        if self._is_settled:
            return
        self._is_settled = True
        mine = sorted(cores())
        is_first = threading.current_thread() is threading.main_thread()
        if is_first or len(mine) != self._size or not TASKS.is_dir():
            return
        members = [threading.get_native_id(), *_kernel_threads()]
        if len(members) == self._size:
            self._held = [thread for thread, core in zip(members, mine, strict=True) if _hold(thread, {core})]

    def loosen(self) -> None:
        """Let the threads run wherever the process may."""
        for thread in self._held:
            _hold(thread, cores())
        self._held = []
        self._is_settled = False


def run_anywhere() -> None:
    """Let the calling thread run on every core: one that a held thread starts would inherit its core."""
    if TASKS.is_dir():
        _hold(threading.get_native_id(), cores())


def _kernel_threads() -> list[int]:
    """The threads of this process that Python knows nothing of."""
    known = {thread.native_id for thread in threading.enumerate()}
    return sorted(tid for tid in map(int, os.listdir(TASKS)) if tid not in known)


def _hold(thread: int, allowed: set[int]) -> bool:
    try:
        os.sched_setaffinity(thread, allowed)
    except OSError:  # it has ended, or a sandbox forbids it
        return False
    return True
