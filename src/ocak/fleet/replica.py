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
from collections.abc import Callable

from msgspec import structs

from ocak.core.errors import DoesNotFit, LoadFailed
from ocak.core.residence import ModelState, Priority
from ocak.core.status import ModelStatus
from ocak.fleet.connection import Connection
from ocak.fleet.eviction import Resident
from ocak.fleet.load_record import LoadRecord
from ocak.fleet.model_files import ModelFiles
from ocak.fleet.policy import early_ends, restart_delay_s
from ocak.fleet.spec import Landlord, ModelSpec
from ocak.fleet.stage import Stage
from ocak.fleet.watch import files_verdict, watch_files, watch_pulse
from ocak.memory.ledger import Bytes
from ocak.worker.channel import ChannelClosed

logger = logging.getLogger("ocak.fleet")

IDLE_POLL_S = 0.02
ENDED = ("ready", "failed", "unloaded")  # states in which nothing is under way


class Replica:
    def __init__(self, spec: ModelSpec, landlord: Landlord) -> None:
        self.spec = spec
        self.priority: Priority = spec.priority
        self._landlord = landlord
        self._stage = Stage(spec.key, is_expected=spec.preload)
        self._is_wanted = False  # since it was ready last
        self._num_waiting = 0
        self._num_dismissals = 0  # how often it was unloaded for good
        self._life: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._is_ending = self._is_closed = False
        self._pid: int | None = None
        self._connection: Connection | None = None
        self._planned: ModelFiles | None = None  # of which the record's needs are
        self._record = LoadRecord(spec)

    def want(self, *, is_asked: bool = True) -> None:
        """Have it loaded, unless that is under way or hopeless."""
        self._is_wanted |= is_asked
        if self._stage.state == "unloaded" and not self._is_ending and not self._is_closed:
            self._stage.begin("planning")
            self._life = asyncio.create_task(self._live(), name=f"supervise {self.spec.key}")

    def forgive(self) -> None:
        """Let a failed model be tried again."""
        if self._is("failed"):
            self._stage.begin("unloaded")

    async def ready(self, wait_s: float) -> Connection:
        """Return a worker that serves; have it loaded and wait if need be. Raises `ModelUnavailable`.

        Who waits while it is unloaded for good is told so; where it only makes room, it is loaded again.
        """
        if self.is_ready and self._connection is not None:
            return self._connection
        dismissals = self._num_dismissals
        self._num_waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                while self._stage.state != "ready" or self._connection is None:
                    self.want()
                    await self.settled()
                    is_hopeless = self._stage.state == "failed" or self._stage.error is not None
                    if is_hopeless or self._is_closed or dismissals != self._num_dismissals:
                        raise self._stage.unavailable()
        except TimeoutError:
            raise self._stage.unavailable() from None
        finally:
            self._num_waiting -= 1
        return self._connection

    async def settled(self) -> None:
        """Wait until it is ready, or will not be."""
        await self._stage.until(lambda state: state in ENDED)

    async def placed(self) -> None:
        """Wait until it has the room that it needs, or will not get it."""
        await self._stage.until(lambda state: state != "planning")

    async def unload(self, *, drain_s: float) -> None:
        """Let what runs finish, for so long at most, then end the worker; who waits for the model is told."""
        self._num_dismissals += 1
        if self._stage.state == "ready":
            self._stage.begin("draining")
        if self._stage.state == "draining":
            await self._drained(drain_s)
        await self._stop()

    async def make_way(self, patience_s: float) -> bool:
        """Unload it for another once what runs has finished; return whether it has gone.

        If that takes too long, it is pinned meanwhile, or nobody wants the room any more, it goes on.
        """
        if not self._is("ready"):
            await self.settled()
            return not self._is("ready")
        self._stage.begin("draining")
        may_go = False
        try:
            may_go = await self._drained(patience_s, while_=lambda: self.priority != "pinned")
        finally:
            if self._is("draining") and not may_go:
                self._record.ready_at = time.monotonic()  # it has some time before it is asked again
                await self._stage.enter("ready")
        if self._is("draining"):
            await self._stop()
        return not self._is("ready")

    async def close(self) -> None:
        """End the worker for good."""
        self._is_closed = True
        await self._stop()

    async def _stop(self) -> None:
        """End the worker, whatever it does, once however many want that. Its memory is back on return."""
        if self._ending is None or self._ending.done():
            self._is_ending = True
            self._ending = asyncio.create_task(self._end(), name=f"end {self.spec.key}")
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self._life is not None:
            self._life.cancel()
            await asyncio.wait((self._life,))
        self._life, self._record.info, self._is_ending = None, None, False
        if self._stage.state != "failed":
            await self._stage.enter("unloaded")

    @property
    def is_ready(self) -> bool:
        """Whether a request would be served now: loaded, and the worker's loop turns."""
        connection = self._connection
        return self._stage.state == "ready" and connection is not None and connection.pulse.is_alive

    @property
    def is_asked(self) -> bool:
        """Whether somebody waits for it, or has just wanted it."""
        return self._is_wanted or self._num_waiting > 0

    @property
    def is_leaving(self) -> bool:
        return self._is_ending

    @property
    def state(self) -> ModelState:
        return self._stage.state

    @property
    def error(self) -> str | None:
        """Why it is not ready, if there is a reason."""
        return self._stage.error

    @property
    def pid(self) -> int | None:
        """The worker's, until it has gone."""
        return self._pid

    @property
    def num_in_flight(self) -> int:
        return self._connection.num_in_flight if self._connection else 0

    def as_resident(self, held: Bytes) -> Resident | None:
        """How it looks to who needs room; None unless it is loaded."""
        if self._stage.state != "ready" or self._connection is None or self._record.info is None:
            return None
        return Resident(
            key=self.spec.key,
            held=held,
            used_at=self._connection.used_at,
            loaded_at=self._record.ready_at,
            priority=self.priority,
            is_busy=self.num_in_flight > 0,
            keep_alive_s=self.spec.keep_alive_s,
            load_s=self._record.info.load_s,
        )

    def status(self) -> ModelStatus:
        return self._record.status(self._stage, self._connection, self.priority, self._expires_at())

    def _expires_at(self) -> float | None:
        kept_s, connection = self.spec.keep_alive_s, self._connection
        if kept_s is None or connection is None or not self._is("ready"):
            return None
        if self.priority == "pinned" or self.num_in_flight:
            return None
        return time.time() - time.monotonic() + connection.used_at + kept_s

    async def _drained(self, drain_s: float, while_: Callable[[], bool] = lambda: True) -> bool:
        deadline = time.monotonic() + drain_s
        while self.num_in_flight and time.monotonic() < deadline and while_():
            await asyncio.sleep(IDLE_POLL_S)
        return while_() and not self.num_in_flight

    def _is(self, state: ModelState) -> bool:
        return self._stage.state == state

    async def _live(self) -> None:
        """Keep a worker with the model loaded until cancelled, or until loading proves impossible."""
        try:
            await self._supervise()
        except DoesNotFit as error:
            self._is_wanted = False
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
                if not self._record.loads:
                    return await self._stage.enter("failed", reason)
            except OSError as error:
                reason = f"no worker could be started: {error.strerror or error}"
            num_early = early_ends(num_early, time.monotonic() - started)
            delay_s = restart_delay_s(num_early, has_ever_been_ready=bool(self._record.loads))
            if delay_s is None:
                return await self._stage.enter("failed", f"{reason}; it failed {num_early} times in a row")
            logger.warning("%s: %s; starting another in %.1f s", self.spec.key, reason, delay_s)
            self._record.restarts += 1
            self._is_wanted = False  # from now on, only who waits for it can have others sent away
            await self._stage.enter("restarting", reason)
            await asyncio.sleep(delay_s)

    async def _live_once(self) -> str:
        """Run one worker from its start to its end; return why it ended. Raises `LoadFailed`."""
        self._record.progress = 0.0
        await self._stage.enter("planning")
        files = await asyncio.to_thread(ModelFiles, self.spec.options)
        connection = Connection(await self._landlord.worker())
        self._connection, self._pid = connection, connection.pid
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
            try:
                how = await connection.end()
                await asyncio.wait((serving,))
            finally:
                self._pid = None
                self._landlord.release(self.spec.key)
        return connection.verdict or how

    async def _load_into(self, connection: Connection, files: ModelFiles) -> None:
        if self._record.needs is None or not files.are_those_of(self._planned):
            needs = await connection.plan(self.spec.options)
            self._record.needs = structs.replace(needs, besides_bytes=self.spec.besides_bytes)
            self._planned = files
        await self._landlord.make_room(self.spec.key, self._record.needs)
        await self._stage.enter("loading")
        self._record.info = await connection.load(self.spec.options, self._on_progress, is_awaited=self.is_asked)
        self._record.loads += 1
        self._record.loaded_at, self._record.ready_at = time.time(), time.monotonic()
        self._is_wanted = False
        await self._stage.enter("ready")

    def _on_progress(self, progress: float) -> None:
        self._record.progress = progress
