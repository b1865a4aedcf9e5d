"""One worker process: started, spoken to over a socket pair, ended. Knows nothing of models.

The child inherits one end of the pair, so there is no path to guess and no port to take; when either side
ends, the other sees the socket end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress

import msgspec

from ocak.worker.channel import Channel
from ocak.worker.messages import FromWorker

ENVIRONMENT = {
    # OpenMP threads that wait for ever collapse beside any other busy process. These wait for about a millisecond,
    # and a step has one thread less for every busy core: two workers at once gave up to 80 token/s each.
    "GOMP_SPINCOUNT": "100000",
    "OPENBLAS_NUM_THREADS": "1",  # numpy's idle threads would pass for the kernels'
}
END_S = 2.0
FROM_WORKER: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


class WorkerProcess:
    def __init__(self, process: asyncio.subprocess.Process, channel: Channel[FromWorker]) -> None:
        self._process = process
        self.channel = channel
        self.pid = process.pid

    @classmethod
    async def spawn(cls) -> WorkerProcess:
        """Start a worker that waits for its first message."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "ocak.worker", str(theirs.fileno())),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    env=ENVIRONMENT | os.environ,
                    start_new_session=True,  # a terminal's Ctrl-C is for the front
                )
            except OSError:
                ours.close()
                raise
        return cls(process, await Channel.open(ours, FROM_WORKER))

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    def kill(self) -> None:
        """End the process now; a stopped one too."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    async def end(self) -> str:
        """Close the socket, wait for the process, kill it if it lingers; return how it ended."""
        self.channel.close()
        try:
            await asyncio.wait_for(self._process.wait(), END_S)
        except TimeoutError:
            self.kill()
            await self._process.wait()
        return describe_exit(self._process.returncode or 0)


def describe_exit(status: int) -> str:
    """Say what a process's exit status means."""
    if status >= 0:
        return f"the worker exited with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = {"SIGKILL": " (out of memory?)", "SIGBUS": " (was a file of its model cut?)"}.get(name, "")
    return f"the worker was ended by {name}{hint}"
