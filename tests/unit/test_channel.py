"""The socket between the front and a worker: frames arrive whole and in order, whatever the reader does."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest

from ocak.worker.channel import LENGTH, MAX_FRAME_BYTES, Channel, ChannelClosed, VoicedChannel

BIG = 4 * 1024 * 1024  # far beyond what a socket holds


class Note(msgspec.Struct, frozen=True, tag=True):
    number: int
    text: str = ""


DECODER = msgspec.msgpack.Decoder(Note)


@asynccontextmanager
async def channels() -> AsyncGenerator[tuple[Channel[Note], VoicedChannel[Note]], None]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    front, worker = await Channel.open(ours, DECODER), await VoicedChannel.open(theirs, DECODER)
    try:
        yield front, worker
    finally:
        front.close()
        worker.close()


def test_messages_pass_both_ways() -> None:
    async def run() -> None:
        async with channels() as (front, worker):
            front.send(Note(1, "down"))
            worker.send(Note(2, "up"))
            assert await worker.receive() == Note(1, "down")
            assert await front.receive() == Note(2, "up")

    asyncio.run(run())


def test_many_threads_send_at_once_and_no_frame_is_torn() -> None:
    num_threads, num_messages = 8, 200

    async def run() -> None:
        async with channels() as (front, worker):

            def send(thread: int) -> None:
                for number in range(num_messages):
                    worker.send(Note(thread * num_messages + number, "x" * (number * 37)))

            threads = [threading.Thread(target=send, args=(thread,)) for thread in range(num_threads)]
            for thread in threads:
                thread.start()
            came = [await front.receive() for _ in range(num_threads * num_messages)]
            assert all(len(note.text) == note.number % num_messages * 37 for note in came)
            for thread in range(num_threads):
                own = [note.number for note in came if note.number // num_messages == thread]
                assert own == sorted(own) and len(own) == num_messages

    asyncio.run(run())


def test_a_reader_that_sleeps_gets_everything_and_holds_no_sender_up() -> None:
    async def run() -> None:
        async with channels() as (front, worker):
            for number in range(4):
                worker.send(Note(number, "x" * BIG))  # nobody reads: would block if it wrote here
            await asyncio.sleep(0.1)
            assert [(await front.receive()).number for _ in range(4)] == [0, 1, 2, 3]

    asyncio.run(asyncio.wait_for(run(), 30))


def test_sending_to_one_that_has_gone_is_no_error_and_the_reader_is_told() -> None:
    async def run() -> None:
        async with channels() as (front, worker):
            front.close()
            for number in range(100):
                worker.send(Note(number, "x" * 10_000))
            with pytest.raises(ChannelClosed):
                await worker.receive()
            with pytest.raises(ChannelClosed):
                await front.receive()
            front.send(Note(1))

    asyncio.run(run())


def test_a_voice_that_breaks_ends_the_channel_for_both_sides() -> None:
    """Or the worker would go on in silence, until somebody missed its heartbeat."""

    async def run() -> None:
        async with channels() as (front, worker):
            worker.send(Note(1, "\ud800"))  # no UTF-8
            worker.send(Note(2))
            with pytest.raises(ChannelClosed):
                await front.receive()
            with pytest.raises(ChannelClosed):
                await worker.receive()

    asyncio.run(asyncio.wait_for(run(), 10))


@pytest.mark.parametrize(
    "data", [LENGTH.pack(MAX_FRAME_BYTES + 1), LENGTH.pack(3) + b"abc", LENGTH.pack(100) + b"short"]
)
def test_what_is_no_frame_closes_the_channel(data: bytes) -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        channel = await Channel.open(ours, DECODER)
        with theirs:
            theirs.sendall(data)
        with pytest.raises(ChannelClosed):
            await channel.receive()
        channel.close()

    asyncio.run(run())
