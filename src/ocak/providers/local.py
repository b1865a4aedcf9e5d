"""Answers from a model that the fleet keeps on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager

import msgspec

from ocak.core.embedding import Embedded, EmbedEvent, EmbedRequest
from ocak.core.events import Event, Finished, Waiting
from ocak.core.request import GenerateRequest, Prompt
from ocak.core.status import ModelStatus
from ocak.fleet.fleet import Fleet

TELL_S = 1.0  # between two words on a load that somebody waits for
WAIT_READY_S = 60.0  # a request waits this long for a model that loads or restarts


class LocalProvider:
    """Implements `gateway.gateway.ModelProvider`; counts what went through it."""

    def __init__(self, fleet: Fleet, key: str) -> None:
        self._fleet = fleet
        self._key = key
        self._requests = 0
        self._errors = 0
        self._tokens = 0
        self._last_request: float | None = None

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        with self._counted():
            if not self.is_ready():
                async with aclosing(self._waiting()) as progress:
                    async for told in progress:
                        yield told
            worker = await self._fleet.ready(self._key, wait_s=WAIT_READY_S)
            async with aclosing(worker.generate(request)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        self._tokens += event.usage.prompt_tokens + event.usage.completion_tokens
                    yield event

    async def embed(self, request: EmbedRequest) -> AsyncGenerator[EmbedEvent, None]:
        with self._counted():
            worker = await self._fleet.ready(self._key, wait_s=WAIT_READY_S)
            async with aclosing(worker.embed(request)) as events:
                async for event in events:
                    if isinstance(event, Embedded):
                        self._tokens += event.usage.prompt_tokens
                    yield event

    async def _waiting(self) -> AsyncGenerator[Waiting, None]:
        """Have the model loaded, and tell from time to time how far it is. Raises `ModelUnavailable`."""
        ready = asyncio.ensure_future(self._fleet.ready(self._key, wait_s=WAIT_READY_S))
        try:
            while not (await asyncio.wait((ready,), timeout=TELL_S))[0]:
                status = self._fleet.replica(self._key).status()
                yield Waiting(status.state, status.load.progress)
            await ready
        finally:
            ready.cancel()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._requests += 1
        self._last_request = time.time()
        try:
            yield
        except Exception:
            self._errors += 1
            raise

    async def tokenize(self, prompt: Prompt, *, add_special: bool) -> tuple[int, ...]:
        worker = await self._fleet.ready(self._key, wait_s=WAIT_READY_S)
        return await worker.tokenize(prompt, add_special=add_special)

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        worker = await self._fleet.ready(self._key, wait_s=WAIT_READY_S)
        return await worker.detokenize(tokens)

    async def save_state(self, path: str, prompt: Prompt, tenant: str, cache_salt: str) -> int:
        worker = await self._fleet.ready(self._key, wait_s=WAIT_READY_S)
        return await worker.save_state(path, prompt, tenant, cache_salt)

    async def restore_state(self, path: str, tenant: str, cache_salt: str) -> int:
        worker = await self._fleet.ready(self._key, wait_s=WAIT_READY_S)
        return await worker.restore_state(path, tenant, cache_salt)

    async def load(self, wait_s: float) -> None:
        await self._fleet.load(self._key, wait_s=wait_s)

    async def unload(self, drain_s: float) -> None:
        await self._fleet.unload(self._key, drain_s=drain_s)

    def want(self) -> None:
        """Have it loaded, and do not wait."""
        self._fleet.want(self._key)

    def pin(self) -> None:
        self._fleet.pin(self._key)

    def unpin(self) -> None:
        self._fleet.unpin(self._key)

    def status(self) -> ModelStatus:
        return msgspec.structs.replace(
            self._fleet.replica(self._key).status(),
            requests=self._requests,
            errors=self._errors,
            tokens=self._tokens,
            last_request=self._last_request,
        )

    def is_ready(self) -> bool:
        return self._fleet.replica(self._key).is_ready
