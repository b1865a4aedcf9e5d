"""A text that grows while it is read, for a thread that waits for it.

Knows no model: it is fed from the loop. Invariant: the loop never waits for the reader, and a reader who leaves
ends the answer.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import aclosing
from types import TracebackType

from ocak.core.events import Delta, Event, Finished, FinishReason, Usage

Submit = Callable[[Coroutine[None, None, None]], Future[None]]


class TextStream:
    """Iterates over pieces of text. After the last one `finish_reason` and `usage` are there; until then None."""

    def __init__(self, events: AsyncGenerator[Event, None], submit: Submit) -> None:
        self._arrived: queue.SimpleQueue[Delta | Finished | BaseException] = queue.SimpleQueue()
        self._is_over = False
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self._pumping = submit(_pump(events, self._arrived))

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        while not self._is_over:
            match self._next_arrival():
                case Delta(text):
                    if text:
                        return text
                case Finished(reason, usage):
                    self._is_over = True
                    self.finish_reason, self.usage = reason, usage
                case asyncio.CancelledError():
                    self._is_over = True
                case BaseException() as error:
                    self._is_over = True
                    raise error
        raise StopIteration

    def close(self) -> None:
        """End the answer within a step; waits for nothing. Reading on gives nothing more."""
        self._is_over = True
        self._pumping.cancel()

    def _next_arrival(self) -> Delta | Finished | BaseException:
        try:
            return self._arrived.get()
        except KeyboardInterrupt:
            self.close()
            raise

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_pumping"):
            self._pumping.cancel()


async def _pump(
    events: AsyncGenerator[Event, None], arrived: queue.SimpleQueue[Delta | Finished | BaseException]
) -> None:
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Delta | Finished):
                    arrived.put(event)
    except BaseException as error:
        # The boundary of the task: whoever reads must hear of its end, whatever it was.
        arrived.put(error)
        raise
