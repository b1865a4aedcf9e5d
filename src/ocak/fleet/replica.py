"""One model's worker through its life: started, loaded, watched, and replaced when it ends or hangs.

    unloaded → loading → ready → restarting → loading …          failed(reason): the first load cannot succeed

Owns the state; others ask `ready()`, never read the state to act on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass

from ocak.core.errors import LoadFailed, ModelUnavailable
from ocak.core.status import EngineStats, LoadStatus, MemoryStatus, ModelInfo, ModelState, ModelStatus
from ocak.fleet.connection import Connection
from ocak.fleet.model_files import ModelFiles
from ocak.fleet.policy import early_ends, restart_delay_s
from ocak.fleet.process import WorkerProcess
from ocak.worker.channel import ChannelClosed
from ocak.worker.messages import LoadOptions

logger = logging.getLogger("ocak.fleet")

WATCH_S = 0.5
WATCH_FILES_S = 1.0
RETRY_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model to serve under `key`; `estimated_bytes` is what it was expected to take before loading."""

    key: str
    options: LoadOptions
    estimated_bytes: int = 0


class Replica:
    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._state: ModelState = "unloaded"
        self._error: str | None = None
        self._connection: Connection | None = None
        self._changed = asyncio.Condition()
        self._info: ModelInfo | None = None
        self._loads = 0
        self._progress = 0.0
        self._restarts = 0
        self._loaded_at: float | None = None

    async def supervise(self) -> None:
        """Keep a worker with the model loaded until cancelled, or until loading proves impossible."""
        try:
            await self._supervise()
        except Exception as error:
            # The boundary of the task: a state that nobody keeps any more must not look alive.
            logger.exception("%s: supervision failed", self.spec.key)
            await self._enter("failed", f"{type(error).__name__}: {error}")

    async def _supervise(self) -> None:
        num_early = 0
        while True:
            started = time.monotonic()
            try:
                reason = await self._live_once()
            except LoadFailed as error:
                reason = error.message
                if not self._loads:
                    return await self._enter("failed", reason)
            except OSError as error:
                reason = f"no worker could be started: {error.strerror or error}"
            num_early = early_ends(num_early, time.monotonic() - started)
            delay_s = restart_delay_s(num_early, has_ever_been_ready=bool(self._loads))
            if delay_s is None:
                return await self._enter("failed", f"{reason}; it failed {num_early} times in a row")
            logger.warning("%s: %s; starting another in %.1f s", self.spec.key, reason, delay_s)
            self._restarts += 1
            await self._enter("restarting", reason)
            await asyncio.sleep(delay_s)

    async def ready(self, wait_s: float) -> Connection:
        """Return a worker that serves, waiting for it if need be. Raises `ModelUnavailable`."""
        if self.is_ready and self._connection is not None:
            return self._connection
        try:
            async with asyncio.timeout(wait_s), self._changed:
                await self._changed.wait_for(lambda: self._state in ("ready", "failed"))
        except TimeoutError:
            raise self._unavailable() from None
        if self._state == "failed" or self._connection is None:
            raise self._unavailable()
        return self._connection

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served now: loaded, and the worker's loop turns."""
        connection = self._connection
        return self._state == "ready" and connection is not None and connection.pulse.is_alive

    @property
    def num_in_flight(self) -> int:
        return self._connection.num_in_flight if self._connection else 0

    def status(self) -> ModelStatus:
        connection = self._connection
        info = self._info if self._state == "ready" else None
        reserved = info.weights_bytes + info.kv_bytes + info.draft_bytes if info else 0
        return ModelStatus(
            key=self.spec.key,
            provider="llama",
            kind=info.kind if info else "text",
            state="unresponsive" if self._state == "ready" and not self.is_ready else self._state,
            error=self._error,
            loaded_at=self._loaded_at if info else None,
            memory=MemoryStatus(
                estimated=self.spec.estimated_bytes,
                reserved=reserved,
                resident=connection.rss_bytes if connection else 0,
            ),
            device=info.gpu or "cpu" if info else "cpu",
            worker_pid=connection.pid if connection else None,
            restarts=self._restarts,
            load=LoadStatus(
                count=self._loads, progress=self._progress, last_seconds=info.load_s if info else None
            ),
            engine=connection.stats if connection else EngineStats(),
            info=info,
        )

    async def _live_once(self) -> str:
        """Run one worker from its start to its end; return why it ended. Raises `LoadFailed`."""
        self._progress = 0.0
        await self._enter("loading")
        files = await asyncio.to_thread(ModelFiles, self.spec.options)
        connection = Connection(await WorkerProcess.spawn())
        self._connection = connection
        watches = [
            asyncio.create_task(watch) for watch in (self._watch(connection), _watch_files(files, connection))
        ]
        try:
            self._info = await connection.load(self.spec.options, self._on_progress)
            self._loads += 1
            self._loaded_at = time.time()
            await self._enter("ready")
            await connection.serve()
        except ChannelClosed:
            if connection.pulse.is_template_stuck:
                raise LoadFailed(connection.verdict or "") from None
            connection.verdict = connection.verdict or await _verdict(files)
        except asyncio.CancelledError:
            connection.verdict = "the model is being unloaded"
            raise
        finally:
            for watch in watches:
                watch.cancel()
            self._connection = None
            self._state = "restarting"
            how = await connection.end()
        return connection.verdict or how

    async def _watch(self, connection: Connection) -> None:
        """Kill the worker when its pulse says so; its end is then noticed as any other's."""
        while (reason := connection.pulse.replacement_reason) is None:
            before = time.monotonic()
            await asyncio.sleep(WATCH_S)
            if time.monotonic() - before > 2 * WATCH_S:
                connection.excuse()  # it is this process that was late
        connection.verdict = reason
        connection.kill()

    def _on_progress(self, progress: float) -> None:
        self._progress = progress

    async def _enter(self, state: ModelState, error: str | None = None) -> None:
        self._state = state
        self._error = error
        log = logger.error if state == "failed" else logger.info
        log("%s: %s%s", self.spec.key, state, f" ({error})" if error else "")
        async with self._changed:
            self._changed.notify_all()

    def _unavailable(self) -> ModelUnavailable:
        detail = f": {self._error}" if self._error else ""
        retry_after_s = None if self._state == "failed" else RETRY_AFTER_S
        return ModelUnavailable(
            f"model {self.spec.key!r} is {self._state}{detail}", param="model", retry_after_s=retry_after_s
        )


async def _watch_files(files: ModelFiles, connection: Connection) -> None:
    """Kill the worker when its files change: what it would answer then is not the model's."""
    while (verdict := await _verdict(files)) is None:
        await asyncio.sleep(WATCH_FILES_S)
    connection.verdict = connection.verdict or verdict
    connection.kill()


async def _verdict(files: ModelFiles) -> str | None:
    """What is wrong with them, if anything; asked beside the loop, for a disk may take its time."""
    path = await asyncio.to_thread(files.changed)
    return None if path is None else f"{path} was changed while it was in use"


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
