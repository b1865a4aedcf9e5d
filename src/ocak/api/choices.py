"""Runs all the answers that one request asks for, a bounded number at a time.

The first answer is refused when the queue is full, and with it the request; the later ones wait their turn, so
that a long list of prompts is never thrown away halfway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from ocak.api.merge import Source
from ocak.core.errors import OcakError, Overloaded
from ocak.core.events import Event
from ocak.core.request import GenerateRequest
from ocak.gateway.gateway import Completion, Gateway

R = TypeVar("R")
T = TypeVar("T")

UNKNOWN_SLOTS = 16
PLACES_PER_SLOT = 2  # one runs, the next is ready to follow
LONGEST_WAIT_S = 5.0


def concurrency(gateway: Gateway, model: str) -> int:
    """Return how many answers of one request may be in the model's queue at once."""
    return PLACES_PER_SLOT * (gateway.resolve(model).provider.status().engine.slots or UNKNOWN_SLOTS)


def streams(gateway: Gateway, requests: Sequence[GenerateRequest]) -> list[Source]:
    """Return the answers' events, not yet begun."""
    return [gateway.stream(requests[0]), *(_patient_stream(gateway, request) for request in requests[1:])]


async def complete_all(gateway: Gateway, requests: Sequence[GenerateRequest]) -> list[Completion]:
    """Return the answers in order; the first failure cancels the others."""
    return await run_all(gateway.complete, requests, concurrency(gateway, requests[0].model))


async def run_all(ask: Callable[[R], Awaitable[T]], requests: Sequence[R], num_places: int) -> list[T]:
    """Ask everything, so much at once; return the answers in order. The first failure cancels the others."""
    if len(requests) == 1:
        return [await ask(requests[0])]
    places = asyncio.Semaphore(num_places)

    async def answer(index: int, request: R) -> T:
        async with places:
            if index == 0:
                return await ask(request)
            return await _patiently(lambda: ask(request))

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer(i, request)) for i, request in enumerate(requests)]
    except ExceptionGroup as failures:
        raise _first(failures) from failures
    return [task.result() for task in tasks]


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await work()
        except Overloaded as error:
            await _wait(error)


async def _patient_stream(gateway: Gateway, request: GenerateRequest) -> AsyncGenerator[Event, None]:
    while True:
        has_begun = False
        try:
            async with aclosing(gateway.stream(request)) as events:
                async for event in events:
                    has_begun = True
                    yield event
            return
        except Overloaded as error:
            if has_begun:
                raise
            await _wait(error)


async def _wait(error: Overloaded) -> None:
    await asyncio.sleep(min(error.retry_after_s or LONGEST_WAIT_S, LONGEST_WAIT_S))


def _first(failures: ExceptionGroup[Exception]) -> Exception:
    return next((error for error in failures.exceptions if isinstance(error, OcakError)), failures)
