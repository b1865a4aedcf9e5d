"""Kills a worker that must be replaced: it hangs, or its files are no longer what it loaded.

Its end is then noticed as any other's.
"""

from __future__ import annotations

import asyncio
import time

from ocak.fleet.connection import Connection
from ocak.fleet.model_files import ModelFiles

PULSE_S = 0.5
FILES_S = 1.0


async def watch_pulse(connection: Connection) -> None:
    """Kill the worker when its pulse says so."""
    while (reason := connection.pulse.replacement_reason) is None:
        before = time.monotonic()
        await asyncio.sleep(PULSE_S)
        if time.monotonic() - before > 2 * PULSE_S:
            connection.excuse()  # it is this process that was late
    connection.verdict = reason
    connection.kill()


async def watch_files(files: ModelFiles, connection: Connection) -> None:
    """Kill the worker when its files change: what it would answer then is not the model's."""
    while (verdict := await files_verdict(files)) is None:
        await asyncio.sleep(FILES_S)
    connection.verdict = connection.verdict or verdict
    connection.kill()


async def files_verdict(files: ModelFiles) -> str | None:
    """What is wrong with them, if anything; asked beside the loop, for a disk may take its time."""
    path = await asyncio.to_thread(files.changed)
    return None if path is None else f"{path} was changed while it was in use"
