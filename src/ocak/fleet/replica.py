"""One model's worker through its life: started, loaded, watched, replaced when it ends or hangs, and unloaded.

    unloaded → planning → loading → ready → draining → unloaded
                  ↑___ restarting ←___|        failed(reason): the first load cannot succeed

A model that found no room is unloaded too, and says why.
Owns the state; others ask `ready()`, never read the state to act on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from ocak.core.errors import DoesNotFit, LoadFailed, ModelUnavailable
from ocak.core.residence import ModelState, Priority
from ocak.core.status import EngineStats, LoadStatus, MemoryStatus, ModelInfo, ModelStatus
from ocak.fleet.connection import Connection
from ocak.fleet.eviction import Resident
from ocak.fleet.model_files import ModelFiles
from ocak.fleet.policy import early_ends, restart_delay_s
from ocak.fleet.spec import Landlord, ModelSpec
from ocak.fleet.stage import Stage
from ocak.fleet.watch import files_verdict, watch_files, watch_pulse
from ocak.memory.ledger import Bytes
from ocak.memory.needs import Needs
from ocak.worker.channel import ChannelClosed

logger = logging.getLogger("ocak.fleet")

RETRY_AFTER_S = 5.0
IDLE_POLL_S = 0.02
ENDED = ("ready", "failed", "unloaded")  # states in which nothing is under way


class Replica:
    def __init__(self, spec: ModelSpec, landlord: Landlord) -> None:
        self.spec = spec
        self.priority: Priority = spec.priority
        self._landlord = landlord
        self._stage = Stage(spec.key, is_expected=spec.preload)
        self._is_asked = False  # somebody waits for it
        self._life: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._needs: Needs | None = None
        self._planned: ModelFiles | None = None  # of which the needs are
        self._info: ModelInfo | None = None
        self._loads = 0
        self._progress = 0.0
        self._restarts = 0
        self._ready_at = 0.0  # of the monotonic clock
        self._loaded_at: float | None = None

    def want(self, *, is_asked: bool = True) -> None:
        """Have it loaded, unless that is under way or hopeless."""
        self._is_asked |= is_asked
        if self._stage.state == "unloaded":
            self._stage.begin("planning")
            self._life = asyncio.create_task(self._live(), name=f"supervise {self.spec.key}")

    def forgive(self) -> None:
        """Let a failed model be tried again."""
        if self._stage.state == "failed":
            self._stage.begin("unloaded")

    async def ready(self, wait_s: float) -> Connection:
        """Return a worker that serves; have it loaded and wait if need be. Raises `ModelUnavailable`."""
        if self.is_ready and self._connection is not None:
            return self._connection
        try:
            async with asyncio.timeout(wait_s):
                while self._stage.state != "ready" or self._connection is None:
                    self.want()
                    await self.settled()
                    if self._stage.state == "failed" or self._stage.error is not None:
                        raise self._unavailable()
        except TimeoutError:
            raise self._unavailable() from None
        return self._connection

    async def settled(self) -> None:
        """Wait until it is ready, or will not be."""
        await self._stage.until(lambda state: state in ENDED)

    async def placed(self) -> None:
        """Wait until it has the room that it needs, or will not get it."""
        await self._stage.until(lambda state: state != "planning")

    async def unload(self, *, drain_s: float, is_kind: bool = False) -> bool:
        """Let what runs finish, then end the worker; return whether it has gone.

        After `drain_s` a kind one gives up, and the model goes on; else what still runs gets an error.
        """
        while self._stage.state == "draining":  # for somebody else
            await self.settled()
        if self._stage.state == "ready":
            self._stage.begin("draining")
            if not await self._drained(drain_s) and is_kind:
                await self._stage.enter("ready")
                return False
        await self.stop()
        return True

    async def stop(self) -> None:
        """End the worker, whatever it does. Its memory is back on return."""
        life, self._life = self._life, None
        if life is not None:
            await cancel_and_wait(life)
        self._info, self._is_asked = None, False
        if self._stage.state not in ("failed", "unloaded"):
            await self._stage.enter("unloaded")

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served now: loaded, and the worker's loop turns."""
        connection = self._connection
        return self._stage.state == "ready" and connection is not None and connection.pulse.is_alive

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits for it, or it has served before."""
        return self._is_asked or self._loads > 0

    @property
    def state(self) -> ModelState:
        return self._stage.state

    @property
    def error(self) -> str | None:
        """Why it is not ready, if there is a reason."""
        return self._stage.error

    @property
    def pid(self) -> int | None:
        return self._connection.pid if self._connection else None

    @property
    def num_in_flight(self) -> int:
        return self._connection.num_in_flight if self._connection else 0

    def as_resident(self, held: Bytes) -> Resident | None:
        """How it looks to who needs room; None unless it is loaded."""
        if self._stage.state != "ready" or self._connection is None or self._info is None:
            return None
        return Resident(
            key=self.spec.key,
            held=held,
            used_at=self._connection.used_at,
            loaded_at=self._ready_at,
            priority=self.priority,
            is_busy=self.num_in_flight > 0,
            keep_alive_s=self.spec.keep_alive_s,
            load_s=self._info.load_s,
        )

    def status(self) -> ModelStatus:
        connection = self._connection
        info = self._info if self._stage.state in ("ready", "draining") else None
        reserved = info.weights_bytes + info.kv_bytes + info.draft_bytes if info else 0
        return ModelStatus(
            key=self.spec.key,
            provider="llama",
            kind=info.kind if info else "text",
            state="unresponsive" if self._stage.state == "ready" and not self.is_ready else self._stage.state,
            error=self._stage.error,
            loaded_at=self._loaded_at if info else None,
            memory=MemoryStatus(
                estimated=self._needs.total_bytes if self._needs else self.spec.estimated_bytes,
                reserved=reserved,
                resident=connection.rss_bytes if connection else 0,
            ),
            device=info.gpu or "cpu" if info else "cpu",
            priority=self.priority,
            expires_at=self._expires_at(),
            is_expected=self._stage.is_expected,
            worker_pid=connection.pid if connection else None,
            restarts=self._restarts,
            load=LoadStatus(
                count=self._loads, progress=self._progress, last_seconds=info.load_s if info else None
            ),
            engine=connection.stats if connection else EngineStats(),
            info=info,
        )

    def _expires_at(self) -> float | None:
        kept_s, connection = self.spec.keep_alive_s, self._connection
        if kept_s is None or connection is None or self.priority == "pinned" or self._stage.state != "ready":
            return None
        return time.time() - time.monotonic() + connection.used_at + kept_s

    async def _drained(self, drain_s: float) -> bool:
        deadline = time.monotonic() + drain_s
        while self.num_in_flight and time.monotonic() < deadline:
            await asyncio.sleep(IDLE_POLL_S)
        return not self.num_in_flight

    async def _live(self) -> None:
        """Keep a worker with the model loaded until cancelled, or until loading proves impossible."""
        try:
            await self._supervise()
        except DoesNotFit as error:
            await self._stage.enter("unloaded", error.message)
        except Exception as error:
            # The boundary of the task: a state that nobody keeps any more must not look alive.
            logger.exception("%s: supervision failed", self.spec.key)
            await self._stage.enter("failed", f"{type(error).__name__}: {error}")

    async def _supervise(self) -> None:
        num_early = 0
        while True:
            started = time.monotonic()
            try:
                reason = await self._live_once()
            except DoesNotFit:
                raise
            except LoadFailed as error:
                reason = error.message
                if not self._loads:
                    return await self._stage.enter("failed", reason)
            except OSError as error:
                reason = f"no worker could be started: {error.strerror or error}"
            num_early = early_ends(num_early, time.monotonic() - started)
            delay_s = restart_delay_s(num_early, has_ever_been_ready=bool(self._loads))
            if delay_s is None:
                return await self._stage.enter("failed", f"{reason}; it failed {num_early} times in a row")
            logger.warning("%s: %s; starting another in %.1f s", self.spec.key, reason, delay_s)
            self._restarts += 1
            await self._stage.enter("restarting", reason)
            await asyncio.sleep(delay_s)

    async def _live_once(self) -> str:
        """Run one worker from its start to its end; return why it ended. Raises `LoadFailed`."""
        self._progress = 0.0
        await self._stage.enter("planning")
        files = await asyncio.to_thread(ModelFiles, self.spec.options)
        connection = Connection(await self._landlord.worker())
        self._connection = connection
        serving, *watches = (
            asyncio.create_task(work)
            for work in (connection.serve(), watch_pulse(connection), watch_files(files, connection))
        )
        try:
            await self._load_into(connection, files)
            await serving
        except ChannelClosed:
            if connection.pulse.is_template_stuck:
                raise LoadFailed(connection.verdict or "") from None
            connection.verdict = connection.verdict or await files_verdict(files)
        except asyncio.CancelledError:
            connection.verdict = "the model is being unloaded"
            raise
        finally:
            for task in (serving, *watches):
                task.cancel()
            self._connection = None
            self._stage.begin("restarting")
            how = await connection.end()
            await asyncio.gather(serving, return_exceptions=True)
            self._landlord.release(self.spec.key)
        return connection.verdict or how

    async def _load_into(self, connection: Connection, files: ModelFiles) -> None:
        if self._needs is None or not files.are_those_of(self._planned):
            self._needs, self._planned = await connection.plan(self.spec.options), files
        await self._landlord.make_room(self.spec.key, self._needs)
        await self._stage.enter("loading")
        self._info = await connection.load(self.spec.options, self._on_progress, is_awaited=self._is_asked)
        self._loads += 1
        self._loaded_at, self._ready_at = time.time(), time.monotonic()
        await self._stage.enter("ready")

    def _on_progress(self, progress: float) -> None:
        self._progress = progress

    def _unavailable(self) -> ModelUnavailable:
        detail = f": {self._stage.error}" if self._stage.error else ""
        retry_after_s = None if self._stage.state == "failed" else RETRY_AFTER_S
        return ModelUnavailable(
            f"model {self.spec.key!r} is {self._stage.state}{detail}", param="model", retry_after_s=retry_after_s
        )


async def cancel_and_wait(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
