"""The front's end of one worker: who waits for what, and what has come. Lives as long as the worker.

Invariant: whoever waits is told, by an event, a reply or an error; nobody waits on a worker that has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from itertools import count
from typing import Protocol

import msgspec

from ocak.core.embedding import Embedded, EmbedEvent, EmbedRequest
from ocak.core.errors import GenerationFailed, LoadFailed, OcakError, WorkerLost, from_wire
from ocak.core.events import Event, Finished, Started
from ocak.core.request import GenerateRequest, Prompt
from ocak.core.status import EngineStats, ModelInfo
from ocak.fleet.policy import Pulse
from ocak.memory.needs import Needs
from ocak.worker.messages import (
    Cancel,
    Detokenize,
    Embed,
    Events,
    Failed,
    FromWorker,
    Heartbeat,
    Load,
    Loaded,
    Loading,
    LoadOptions,
    Plan,
    Planned,
    Refused,
    Rejected,
    Reply,
    RestoreState,
    SaveState,
    Submit,
    Tokenize,
)

Arrival = Event | Embedded | Failed | Reply | OcakError
News = Planned | Loaded | Rejected | Exception  # of the load
Call = Tokenize | Detokenize | SaveState | RestoreState

MIXED_UP = "the worker mixed up two answers"


class Channel(Protocol):
    """The way to a worker."""

    def send(self, message: msgspec.Struct) -> None: ...

    async def receive(self) -> FromWorker:
        """Return the next message, or raise `ChannelClosed`."""
        ...


class Process(Protocol):
    """Where a worker lives."""

    @property
    def channel(self) -> Channel: ...

    @property
    def pid(self) -> int: ...

    def kill(self) -> None: ...

    async def end(self) -> str:
        """End the worker; return how it ended, in words."""
        ...


class Connection:
    def __init__(self, process: Process) -> None:
        self._process = process
        self._handles = count(1)
        self._inboxes: dict[int, asyncio.Queue[Arrival]] = {}
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._on_progress: Callable[[float], None] = lambda _progress: None
        self._heard_at = time.monotonic()
        self._has_spoken = False
        self._beat = Heartbeat(0.0, 0.0, 0)
        self.pid = process.pid
        self.stats = EngineStats()
        self.used_at = time.monotonic()  # when its last request came or ended
        self._loss: WorkerLost | None = None  # what everyone is told from its end on
        self.verdict: str | None = None  # why the front ended it, if the front did

    @property
    def num_in_flight(self) -> int:
        return len(self._inboxes)

    @property
    def pulse(self) -> Pulse:
        beat = self._beat
        silence_s = time.monotonic() - self._heard_at
        return Pulse(silence_s, beat.step_s, beat.template_s, has_spoken=self._has_spoken)

    @property
    def rss_bytes(self) -> int:
        return self._beat.rss_bytes

    async def plan(self, options: LoadOptions) -> Needs:
        """Ask what loading so would take; needs `serve` to run. Raises as `load`."""
        self._process.channel.send(Plan(options))
        match await self._told():
            case Planned(needs):
                return needs
        raise LoadFailed(MIXED_UP)

    async def load(
        self, options: LoadOptions, on_progress: Callable[[float], None], *, is_awaited: bool = False
    ) -> ModelInfo:
        """Have the worker load its model; needs `serve` to run.

        Raises `LoadFailed`, or `ChannelClosed` when the worker died of it.
        """
        self._on_progress = on_progress
        self._process.channel.send(Load(options, is_awaited))
        match await self._told():
            case Loaded(info):
                self.used_at = time.monotonic()
                return info
        raise LoadFailed(MIXED_UP)

    async def serve(self) -> None:
        """Hand out what the worker says until it ends, which raises `ChannelClosed`."""
        try:
            while True:
                self._hear(await self._receive())
        except Exception as error:
            self._news.put_nowait(error)
            raise

    def _hear(self, message: FromWorker) -> None:
        match message:
            case Events(events, stats):
                self.stats = stats or self.stats
                for handle, event in events:
                    self._hand_out(handle, event)
            case Reply() as reply:
                self._hand_out(reply.handle, reply)
            case Refused(handle, error):
                self._hand_out(handle, from_wire(error))
            case Loading(progress):
                self._on_progress(progress)
            case Planned() | Loaded() | Rejected():
                self._news.put_nowait(message)

    async def _told(self) -> Planned | Loaded:
        match await self._news.get():
            case Rejected(error):
                raise LoadFailed(from_wire(error).message)
            case Exception() as error:
                raise error
            case news:
                return news

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield the answer's events; closing the iterator cancels it in the worker."""
        handle, inbox = self._open()
        self._process.channel.send(Submit(handle, request))
        try:
            while True:
                match await inbox.get():
                    case OcakError() as error:
                        raise error
                    case Failed(error):
                        self._close(handle)
                        raise from_wire(error)
                    case Reply() | Embedded():
                        raise GenerationFailed(MIXED_UP)
                    case Finished() as event:
                        self._close(handle)
                        yield event
                        return
                    case event:
                        yield event
        finally:
            if self._close(handle):
                self._process.channel.send(Cancel(handle))

    async def embed(self, request: EmbedRequest) -> AsyncGenerator[EmbedEvent, None]:
        """Yield `Started` and `Embedded`; closing the iterator cancels it in the worker."""
        handle, inbox = self._open()
        self._process.channel.send(Embed(handle, request))
        try:
            while handle in self._inboxes:
                match await inbox.get():
                    case Started() as event:
                        yield event
                    case Embedded() as event:
                        self._close(handle)
                        yield event
                    case Failed(error):
                        self._close(handle)
                        raise from_wire(error)
                    case OcakError() as error:
                        raise error
                    case _:
                        raise GenerationFailed(MIXED_UP)
        finally:
            if self._close(handle):
                self._process.channel.send(Cancel(handle))

    async def tokenize(self, prompt: Prompt, *, add_special: bool) -> tuple[int, ...]:
        handle, inbox = self._open()
        return (await self._call(Tokenize(handle, prompt, add_special), handle, inbox)).tokens

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        handle, inbox = self._open()
        return (await self._call(Detokenize(handle, tokens), handle, inbox)).text

    async def save_state(self, path: str, prompt: Prompt, tenant: str, cache_salt: str = "") -> int:
        """Write what is cached of the prompt to a file; return the number of its tokens."""
        handle, inbox = self._open()
        return (await self._call(SaveState(handle, path, prompt, tenant, cache_salt), handle, inbox)).count

    async def restore_state(self, path: str, tenant: str, cache_salt: str = "") -> int:
        """Cache what is in a file; return the number of its tokens."""
        handle, inbox = self._open()
        return (await self._call(RestoreState(handle, path, tenant, cache_salt), handle, inbox)).count

    def excuse(self) -> None:
        """Begin the silence anew: the worker may have spoken while nobody listened."""
        self._heard_at = time.monotonic()

    async def end(self) -> str:
        """End the worker; everyone still waiting gets `WorkerLost`. Return how the process ended."""
        how = await self._process.end()
        reason = f"{self.verdict or how}; the request was not finished"
        self._loss = WorkerLost(reason, retry_after_s=1.0)
        for inbox in self._inboxes.values():
            inbox.put_nowait(self._loss)
        self._inboxes.clear()
        return how

    def kill(self) -> None:
        self._process.kill()

    def _open(self) -> tuple[int, asyncio.Queue[Arrival]]:
        if self._loss is not None:
            raise self._loss
        handle = next(self._handles)
        inbox = self._inboxes[handle] = asyncio.Queue()
        self.used_at = time.monotonic()
        return handle, inbox

    def _close(self, handle: int) -> bool:
        """Forget a request; return whether it was known."""
        self.used_at = time.monotonic()
        return self._inboxes.pop(handle, None) is not None

    async def _call(self, call: Call, handle: int, inbox: asyncio.Queue[Arrival]) -> Reply:
        self._process.channel.send(call)
        try:
            match await inbox.get():
                case Reply() as reply:
                    return reply
                case OcakError() as error:
                    raise error
                case _:
                    raise GenerationFailed(MIXED_UP)
        finally:
            if self._close(handle):
                self._process.channel.send(Cancel(handle))

    def _hand_out(self, handle: int, arrival: Arrival) -> None:
        inbox = self._inboxes.get(handle)
        if inbox is not None:  # else it was cancelled while this was on its way
            inbox.put_nowait(arrival)

    async def _receive(self) -> FromWorker:
        message = await self._process.channel.receive()
        self._heard_at = time.monotonic()
        self._has_spoken = True
        if isinstance(message, Heartbeat):
            self._beat = message
        return message
