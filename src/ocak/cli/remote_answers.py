"""Answers from a running server, ocak or any other that speaks OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from typing import Literal

import aiohttp
import msgspec

from ocak.cli.answers import AnswerOptions
from ocak.cli.remote_server import Problem, RemoteServer, check
from ocak.core.errors import GenerationFailed, ModelUnavailable
from ocak.core.events import Delta, Finished, Usage
from ocak.core.request import Message

DONE = b"[DONE]"


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text = msgspec.field(default_factory=_Text)
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: Problem | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class RemoteAnswers:
    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        self._server = RemoteServer.at(url, api_key)
        self._url = self._server.url
        self._model = model
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = self._server.session()
        if self._model is None:
            self._model = await self._first_model(self._session)

    async def stream(
        self, messages: Sequence[Message], options: AnswerOptions
    ) -> AsyncGenerator[Delta | Finished, None]:
        assert self._session is not None, "open() comes first"
        body = {"model": self._model, "messages": msgspec.to_builtins(messages), "stream": True}
        for name in ("max_tokens", "temperature", "seed"):
            if (value := getattr(options, name)) is not None:
                body[name] = value
        try:
            async with self._session.post(f"{self._url}/v1/chat/completions", json=body) as response:
                await check(response)
                async for event in _events(response.content):
                    yield event
        except aiohttp.ClientError as error:
            raise self._server.unreachable(error) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _first_model(self, session: aiohttp.ClientSession) -> str:
        try:
            async with session.get(f"{self._url}/v1/models") as response:
                await check(response)
                models = msgspec.json.decode(await response.read(), type=_Models).data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._server.unreachable(error) from error
        except msgspec.DecodeError as error:
            raise ModelUnavailable(f"{self._url} does not answer as an OpenAI-compatible server") from error
        if not models:
            raise ModelUnavailable(f"{self._url} serves no model")
        return models[0].id


async def _events(lines: AsyncIterable[bytes]) -> AsyncIterator[Delta | Finished]:
    reason: Literal["stop", "length"] | None = None
    async for line in lines:
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or data == DONE:
            continue
        chunk = _decode(data)
        for choice in chunk.choices:
            text, reasoning = choice.delta.content or "", choice.delta.reasoning_content or ""
            if text or reasoning:
                yield Delta(text, 1, reasoning=reasoning)
            if choice.finish_reason:
                reason = "length" if choice.finish_reason == "length" else "stop"
    if reason is None:
        raise GenerationFailed("the server ended the answer before its end")
    yield Finished(reason, Usage())


def _decode(data: bytes) -> _Chunk:
    try:
        chunk = msgspec.json.decode(data, type=_Chunk)
    except msgspec.DecodeError as error:
        raise GenerationFailed(f"the server sent what is no chunk of an answer: {error}") from error
    if chunk.error is not None:
        raise GenerationFailed(chunk.error.message)
    return chunk
