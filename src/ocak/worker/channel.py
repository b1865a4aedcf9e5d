"""Frames on a stream socket: four bytes of length, then one MessagePack message. No pickle, no unbounded read."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Generic, TypeVar

import msgspec

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
    async def open(cls, sock: socket.socket, decoder: msgspec.msgpack.Decoder[Incoming]) -> Channel[Incoming]:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        return cls(reader, writer, decoder)

    def send(self, message: msgspec.Struct) -> None:
        """Queue one message; it is written as soon as the socket takes it. A closed channel drops it."""
        if self._writer.is_closing():
            return
        payload = self._encoder.encode(message)
        self._writer.write(LENGTH.pack(len(payload)) + payload)

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
