"""Frames on a stream socket: four bytes of length, then one MessagePack message. No pickle, no unbounded read."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import select
import socket
import struct
import threading
from contextlib import suppress
from typing import Generic, Self, TypeVar

import msgspec

logger = logging.getLogger("ocak.worker")

MAX_FRAME_BYTES = 256 * 1024 * 1024
LENGTH = struct.Struct(">I")

Incoming = TypeVar("Incoming")


class ChannelClosed(ConnectionError):
    """The other side has gone, or sent what is no frame."""


class Channel(Generic[Incoming]):
    """One end of the socket between the front and a worker; `decoder` knows what may arrive."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: msgspec.msgpack.Decoder[Incoming],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()

    @classmethod
    async def open(cls, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Incoming]) -> Self:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, decoder)

    def send(self, message: msgspec.Struct) -> None:
        """Queue one message; it is written as soon as the socket takes it. A closed channel drops it."""
        if self._writer.is_closing():
            return
        self._writer.write(self._frame(message))

    async def receive(self) -> Incoming:
        """Return the next message, or raise `ChannelClosed`."""
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise ChannelClosed(f"a frame of {length} bytes; the limit is {MAX_FRAME_BYTES}")
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError) as error:
            raise ChannelClosed(str(error)) from error

    def close(self) -> None:
        """End the channel now; what was not written is dropped, for nobody may be reading."""
        self._writer.transport.abort()

    def _frame(self, message: msgspec.Struct) -> bytes:
        payload = self._encoder.encode(message)
        return LENGTH.pack(len(payload)) + payload


class VoicedChannel(Channel[Incoming]):
    """A channel that a thread of its own speaks for, so that any thread may send.

    An engine that wrote to the socket itself, or woke the loop to do it, lost half a millisecond after every step
    to those it woke, before the next step had begun. This thread gets the interpreter when that has.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: msgspec.msgpack.Decoder[Incoming],
    ) -> None:
        super().__init__(reader, writer, decoder)
        self._outbox: queue.SimpleQueue[msgspec.Struct | None] = queue.SimpleQueue()
        sock = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))
        threading.Thread(target=self._speak, args=(sock,), name="voice", daemon=True).start()

    def send(self, message: msgspec.Struct) -> None:
        self._outbox.put(message)

    def close(self) -> None:
        super().close()
        self._outbox.put(None)

    def _speak(self, sock: socket.socket) -> None:
        """Write what comes; whatever ends this ends the channel, for a worker that cannot speak is of no use."""
        with sock:
            try:
                while (message := self._outbox.get()) is not None:
                    _write(sock, self._frame(message))
            except OSError:
                logger.info("the other side has gone")
            except Exception:
                # The boundary of the thread: the end of the socket tells both sides.
                logger.exception("a message could not be sent")
            finally:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def _write(sock: socket.socket, data: bytes) -> None:
    """Write all, waiting for the other side to read."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except BlockingIOError:
            room = select.poll()
            room.register(sock, select.POLLOUT)
            room.poll()
