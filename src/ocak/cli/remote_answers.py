"""Answers from a running server, ocak or any other that speaks OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from typing import Literal

import aiohttp
import msgspec

from ocak.cli.answers import AnswerOptions
from ocak.core.errors import ConfigError, GenerationFailed, ModelUnavailable, OcakError
from ocak.core.events import Delta, Finished, Usage
from ocak.core.request import Message

CONNECT_S = 10
SILENCE_S = 600  # a long prompt on a slow machine says nothing for minutes
DONE = b"[DONE]"


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text = msgspec.field(default_factory=_Text)
    finish_reason: str | None = None


class _Problem(msgspec.Struct):
    message: str = "the server gave no reason"


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: _Problem | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class RemoteAnswers:
    def __init__(self, url: str, api_key: str | None, model: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url} must start with http:// or https://", param="url")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._model = model
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
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
                await _check(response)
                async for event in _events(response.content):
                    yield event
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _first_model(self, session: aiohttp.ClientSession) -> str:
        try:
            async with session.get(f"{self._url}/v1/models") as response:
                await _check(response)
                models = msgspec.json.decode(await response.read(), type=_Models).data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from error
        except msgspec.DecodeError as error:
            raise ModelUnavailable(f"{self._url} does not answer as an OpenAI-compatible server") from error
        if not models:
            raise ModelUnavailable(f"{self._url} serves no model")
        return models[0].id

    def _unreachable(self, error: Exception) -> OcakError:
        return ModelUnavailable(f"cannot reach {self._url}: {error or type(error).__name__}")


async def _check(response: aiohttp.ClientResponse) -> None:
    """Raise what an answer that is not 200 says."""
    if response.status == 200:
        return
    try:
        problem = msgspec.json.decode(await response.read(), type=_Chunk).error or _Problem()
    except msgspec.DecodeError:
        problem = _Problem(response.reason or "no reason given")
    raise GenerationFailed(f"{response.url}: {response.status}: {problem.message}")


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
