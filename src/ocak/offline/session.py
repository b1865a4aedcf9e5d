"""An event loop in a thread of its own, on which a model is loaded and served while the caller's threads wait.

Invariants: what was handed in before the end is told of it; nothing is handed in after it. A session that was left
open ends with the interpreter.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ocak.core.errors import ModelUnavailable
from ocak.offline.provider import CLOSED, InProcessProvider

T = TypeVar("T")

FORKED = "the model was loaded before this process was forked off; load it here, or start processes with spawn"
_open: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    def __init__(self, key: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"ocak {key}", daemon=True)
        self._lock = threading.Lock()  # of `_is_closed`, and so of the order of what is handed in
        self._is_closed = False
        self._pid = os.getpid()
        self._thread.start()
        _open.add(self)
        self.provider = self.run(_provider(key))

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start `work` on the loop; from any other thread. Raises `ModelUnavailable` after the end."""
        with self._lock:
            if self._is_closed or os.getpid() != self._pid:
                work.close()
                raise ModelUnavailable(CLOSED if self._is_closed else FORKED)
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns. Ctrl-C cancels it and is raised again."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End every answer, free the model, and wait for that. Closing it again does nothing."""
        self.abandon()
        if self._pid == os.getpid():
            self._thread.join()

    def abandon(self) -> None:
        """Have it close by itself; waits for nothing."""
        with self._lock:
            if self._is_closed or self._pid != os.getpid():
                return
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await self.provider.close()
        await asyncio.gather(*others, return_exceptions=True)


async def _provider(key: str) -> InProcessProvider:
    return InProcessProvider(key)


def _close_all() -> None:
    for session in list(_open):
        session.close()


atexit.register(_close_all)
