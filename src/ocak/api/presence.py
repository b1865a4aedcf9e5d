"""Cancels the work for a client that has left or stopped reading.

`async with present(exchange, stall_s):` runs the block in the current task and cancels it when the client closes
the connection, or leaves a write unread for `stall_s`; the block then ends with `ClientLeft`. A stream that is
silent for a while gets a comment, so that no proxy takes it for dead.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from ocak.api.exchange import ClientLeft, Exchange

CHECKS_PER_STALL = 4
COMMENT = b": still here\n\n"


class present:  # noqa: N801 - used as a verb, like asyncio.timeout
    def __init__(self, exchange: Exchange, stall_s: float) -> None:
        self._exchange = exchange
        self._stall_s = stall_s
        self._num_writes = 0

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._loop = asyncio.get_running_loop()
        self._task = task
        self._watcher = self._loop.create_task(self._watch())
        self._check = self._check_later()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        self._check.cancel()
        if self._exchange.has_left and not self._task.uncancel():
            raise ClientLeft from error

    async def _watch(self) -> None:
        while (await self._exchange.receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _check_later(self) -> asyncio.TimerHandle:
        return self._loop.call_later(self._stall_s / CHECKS_PER_STALL, self._check_now)

    def _check_now(self) -> None:
        since = self._exchange.blocked_since
        if since is not None and self._loop.time() - since >= self._stall_s:
            self._exchange.abort()
            self._leave()
            return
        if since is None and self._exchange.num_writes == self._num_writes:
            self._comment = self._loop.create_task(self._write_comment())
        self._num_writes = self._exchange.num_writes
        self._check = self._check_later()

    async def _write_comment(self) -> None:
        if self._exchange.is_streaming and self._exchange.blocked_since is None:
            await self._exchange.write(COMMENT)

    def _leave(self) -> None:
        if not self._exchange.has_left and not self._exchange.is_complete:
            self._exchange.has_left = True
            self._task.cancel()
