"""The way between a front and a worker that live on one event loop: messages pass as they are."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar, cast

import msgspec

from ocak.worker.channel import ChannelClosed
from ocak.worker.messages import FromWorker, ToWorker

Incoming = TypeVar("Incoming")
Messages = asyncio.Queue[msgspec.Struct | None]  # None: closed


class End(Generic[Incoming]):
    """Has what `worker.channel.VoicedChannel` has."""

    def __init__(self, inbox: Messages, outbox: Messages) -> None:
        self._inbox = inbox
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()

    def send(self, message: msgspec.Struct) -> None:
        """Hand the message over, from any thread; nobody reads it once the pipe is closed."""
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    async def receive(self) -> Incoming:
        """Return the next message, or raise `ChannelClosed`."""
        message = await self._inbox.get()
        if message is None:
            self._inbox.put_nowait(None)  # for whoever asks again
            raise ChannelClosed("the pipe is closed")
        return cast(Incoming, message)

    def close(self) -> None:
        """Close both ends."""
        self._inbox.put_nowait(None)
        self._outbox.put_nowait(None)


def pipe() -> tuple[End[FromWorker], End[ToWorker]]:
    """Return the front's end and the worker's."""
    up, down = Messages(), Messages()
    return End(up, down), End(down, up)
