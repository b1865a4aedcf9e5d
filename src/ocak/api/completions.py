"""`/v1/chat/completions` and `/v1/completions`: from the body to the answer, whole or streamed.

A stream's status is sent when the first event is there, so that whatever fails before has a status of its own.
Invariant: when the handler returns, no generation of its request goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ocak.api.best_of import best, num_generated, num_sent, without_logprobs
from ocak.api.choices import complete_all, concurrency, streams
from ocak.api.errors import Header, ShuttingDown
from ocak.api.exchange import Exchange
from ocak.api.failures import heard, in_band
from ocak.api.json_body import decode
from ocak.api.merge import Merge, Ready
from ocak.api.openai_answers import (
    DONE,
    ChatFormat,
    CompletionFormat,
    Format,
    PromptTelling,
    total_usage,
)
from ocak.api.openai_requests import Origin, chat_requests, completion_requests
from ocak.api.openai_wire import ChatBody, CommonBody, CompletionBody
from ocak.api.presence import present
from ocak.api.unsupported import check_others, ignored_header
from ocak.core.errors import WorkerLost
from ocak.core.events import Delta, Finished, PromptScored, PromptToken, Started, Usage, Waiting
from ocak.core.request import DEFAULT_TENANT, GenerateRequest
from ocak.gateway.gateway import Completion, Gateway

EVENT_STREAM = b"text/event-stream; charset=utf-8"
NO_END = "the answer ended without its end"
STREAM_HEADERS: tuple[Header, ...] = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class FormatFactory(Protocol):
    def __call__(self, model: str, *, include_usage: bool, telling: PromptTelling) -> Format: ...


@dataclass(frozen=True, slots=True)
class Job:
    """A translated body: what to generate, and how to write it."""

    requests: Sequence[GenerateRequest]
    answer: Format
    n: int  # answers to each prompt that are sent
    best_of: int  # of as many that are generated
    tells_logprobs: bool
    is_stream: bool
    include_usage: bool
    headers: list[Header]


class Completions:
    """Handlers of both paths."""

    def __init__(self, gateway: Gateway, stall_s: float) -> None:
        self._gateway = gateway
        self._stall_s = stall_s

    async def completion(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), CompletionBody)
        ignored = check_others(others)
        requests = completion_requests(body, self._origin(exchange, body))
        await self._run(exchange, _job(body, requests, CompletionFormat, ignored))

    async def chat(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), ChatBody)
        ignored = check_others(others)
        requests = chat_requests(body, self._origin(exchange, body))
        await self._run(exchange, _job(body, requests, ChatFormat, ignored))

    def _origin(self, exchange: Exchange, body: CommonBody) -> Origin:
        key = self._gateway.resolve(body.model).key
        exchange.note.model = key
        adapter = self._gateway.adapter(body.model)
        return Origin(exchange.request_id, key, exchange.tenant or DEFAULT_TENANT, adapter)

    async def _run(self, exchange: Exchange, job: Job) -> None:
        await (self._stream(exchange, job) if job.is_stream else self._whole(exchange, job))

    async def _whole(self, exchange: Exchange, job: Job) -> None:
        async with present(exchange, self._stall_s):
            completions = await complete_all(self._gateway, job.requests)
        usage = total_usage([c.usage for c in completions], job.best_of)
        _note_usage(exchange, usage)
        answer = job.answer.whole(_sent(job, completions), usage)
        await exchange.answer(answer, headers=job.headers + _dropped_header(usage.dropped_tokens))

    async def _stream(self, exchange: Exchange, job: Job) -> None:
        sources = streams(self._gateway, job.requests)
        places = concurrency(self._gateway, job.requests[0].model)
        async with present(exchange, self._stall_s), Merge(sources, places) as merge:
            ready = await merge.ready()
            if not ready:
                raise WorkerLost(NO_END)
            await exchange.start(
                EVENT_STREAM, (*STREAM_HEADERS, *job.headers, *_dropped_header(_dropped(ready, job.n)))
            )
            await exchange.end(await _write_chunks(exchange, job, merge, ready))


def _job(
    body: CommonBody,
    requests: Sequence[GenerateRequest],
    kind: FormatFactory,
    ignored: tuple[str, ...],
) -> Job:
    include_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    model = body.model or requests[0].model
    return Job(
        requests=requests,
        answer=kind(model, include_usage=include_usage, telling=_telling(body)),
        n=num_sent(body),
        best_of=num_generated(body),
        tells_logprobs=isinstance(body, CompletionBody) and body.logprobs is not None,
        is_stream=bool(body.stream),
        include_usage=include_usage,
        headers=ignored_header(ignored),
    )


def _sent(job: Job, completions: list[Completion]) -> list[Completion]:
    if job.best_of == job.n:
        return completions
    chosen = best(completions, job.best_of, job.n)
    return chosen if job.tells_logprobs else without_logprobs(chosen)


def _telling(body: CommonBody) -> PromptTelling:
    echoed = body.logprobs if isinstance(body, CompletionBody) and body.echo else None
    return PromptTelling(body.prompt_logprobs, echoed)


async def _write_chunks(exchange: Exchange, job: Job, merge: Merge, ready: Ready) -> bytes:
    """Write events as they come, several in one piece when several are there; return the stream's last bytes."""
    usages: dict[int, Usage] = {}
    begun = Begun()
    try:
        while ready:
            if data := _chunks(job.answer, ready, begun, usages):
                await exchange.write(data)
            ready = await merge.ready()
        if len(usages) < len(job.requests):
            raise WorkerLost(NO_END)
    except asyncio.CancelledError:
        if not exchange.has_left and exchange.blocked_since is None:  # the server ends, and says so
            await exchange.end(in_band(ShuttingDown("the server is shutting down")))
        raise
    except Exception as error:  # noqa: BLE001 - the status is sent: the error travels in the stream
        return in_band(heard(error, exchange))
    usage = total_usage([usages[i] for i in sorted(usages)], job.n)
    _note_usage(exchange, usage)
    return (job.answer.usage(usage) if job.include_usage else b"") + DONE


@dataclass(slots=True)
class Begun:
    """The choices that have begun, and the prompts' tokens that are told with their first texts."""

    choices: set[int] = field(default_factory=set)
    prompts: dict[int, list[PromptToken]] = field(default_factory=dict)


def _chunks(answer: Format, ready: Ready, begun: Begun, usages: dict[int, Usage]) -> bytes:
    pieces: list[bytes] = []
    for index, event in ready:
        if type(event) is Waiting:
            pieces.append(b": %s %d%%\n\n" % (event.state.encode(), 100 * event.progress))
            continue
        if type(event) is Started:
            begun.prompts.pop(index, None)  # a prompt that another worker computes anew
            continue
        if type(event) is PromptScored:
            begun.prompts.setdefault(index, []).extend(event.tokens)
            continue
        if index not in begun.choices:
            begun.choices.add(index)
            pieces.append(answer.first(index))
        if type(event) is Delta:
            pieces.append(answer.text(index, event, begun.prompts.pop(index, ())))
        elif type(event) is Finished:
            usages[index] = event.usage
            pieces.append(answer.last(index, event.reason))
    return b"".join(pieces)


def _note_usage(exchange: Exchange, usage: Usage) -> None:
    exchange.note.prompt_tokens = usage.prompt_tokens
    exchange.note.completion_tokens = usage.completion_tokens


def _dropped(ready: Ready, n: int) -> int:
    """Add up what the prompts lose that have begun; n answers to one prompt count it once."""
    return sum({index // n: event.dropped_tokens for index, event in ready if type(event) is Started}.values())


def _dropped_header(count: int) -> list[Header]:
    return [(b"x-ocak-dropped-tokens", b"%d" % count)] if count else []
