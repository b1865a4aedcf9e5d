"""`python -m ocak.worker FD`: a worker on the socket that the front has left open as file descriptor FD."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys

import msgspec

from ocak.telemetry import logs
from ocak.worker.channel import VoicedChannel
from ocak.worker.messages import ToWorker

PR_SET_PDEATHSIG = 1
SWITCH_INTERVAL_S = 0.0005  # after a step the engine waits no longer for a thread that has the interpreter
TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


async def _serve(sock: socket.socket) -> None:
    channel = await VoicedChannel.open(sock, TO_WORKER)
    from ocak.worker.service import Worker  # imports llama.cpp: after the socket is open

    await Worker(channel).run()
    os._exit(0)  # at once: a load or a step may be under way in another thread


def _end_with_parent() -> None:
    """Have Linux end this process when the front's ends: a stopped process does not see its socket end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    logs.set_up("warning")
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, they are the front's to handle
        signal.signal(number, signal.SIG_IGN)
    _end_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    asyncio.run(_serve(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()
