"""A provider that answers with its prompt, word by word: for tests and for trying a client without a model.

Deterministic and instant. A word with the spaces before it is a token, and certain: its log-probability is 0, and
nothing else is likely. `pause` is awaited before `Started`
(step 0) and before the nth word (step n), so that a test decides when things happen; `fail_at` raises `failure`
at such a step. `open_streams` counts the streams that are neither finished nor closed.
"""

from __future__ import annotations

import math
import re
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from zlib import crc32

from ocak.core.embedding import Embedded, EmbedEvent, EmbedRequest, Pair
from ocak.core.errors import ContextLengthExceeded, InvalidRequest, OcakError, StateFileError
from ocak.core.events import (
    Delta,
    Event,
    Finished,
    FinishReason,
    LikelyToken,
    PromptScored,
    PromptToken,
    Started,
    TokenLogprob,
    Usage,
)
from ocak.core.request import ChatPrompt, GenerateRequest, InfillPrompt, Prompt, TextPrompt, TokenPrompt
from ocak.core.residence import ModelState
from ocak.core.status import EngineStats, LoadStatus, ModelStatus

WORD = re.compile(r"\s*\S+|\s+$")
WIDTH = 8  # of its vectors
KEPT_REQUESTS = 1024
Pause = Callable[[int], Awaitable[None]]


class EchoProvider:
    """Streams the prompt back; a chat gets its last message back."""

    def __init__(
        self,
        key: str = "echo",
        *,
        context: int = 4096,
        pause: Pause | None = None,
        fail_at: int | None = None,
        failure: Exception | None = None,
    ) -> None:
        self.key = key
        self.context = context
        self.pause = pause
        self.fail_at = fail_at
        self.failure = failure or OcakError("echo was told to fail")
        self.state: ModelState = "ready"
        self.num_loads = 0
        self.error: str | None = None
        self.open_streams = 0
        self.num_requests = 0
        self.requests: deque[GenerateRequest] = deque(maxlen=KEPT_REQUESTS)  # the latest
        self.embed_requests: deque[EmbedRequest] = deque(maxlen=KEPT_REQUESTS)
        self._words: list[str] = []
        self._ids: dict[str, int] = {}
        self._loaded_at = time.time()

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.num_requests += 1
        self.requests.append(request)
        self.open_streams += 1
        try:
            async for event in self._answer(request):
                yield event
        finally:
            self.open_streams -= 1

    async def embed(self, request: EmbedRequest) -> AsyncGenerator[EmbedEvent, None]:
        """Give a vector that is made of the words alone; a document's score is its share of the query's words."""
        self.num_requests += 1
        self.embed_requests.append(request)
        self.open_streams += 1
        try:
            words, vector = await self._vector(request)
            await self._reach(0)
            yield Started(len(words))
            await self._reach(1)
            yield Embedded(struct.pack(f"<{len(vector)}f", *vector), Usage(prompt_tokens=len(words)))
        finally:
            self.open_streams -= 1

    async def _vector(self, request: EmbedRequest) -> tuple[list[str], list[float]]:
        match request.input:
            case Pair(query, document):
                asked, told = query.split(), document.split()
                return asked + told, [len({*asked} & {*told}) / max(1, len({*asked}))]
            case given:
                words = (await self._prompt_text(given)).split()
                counts = [sum(crc32(word.encode()) % WIDTH == i for word in words) for i in range(WIDTH)]
                length = math.hypot(*counts[: request.dimensions]) or 1.0
                return words, [count / length for count in counts[: request.dimensions]]

    async def tokenize(self, prompt: Prompt, *, add_special: bool) -> tuple[int, ...]:
        """Number the words in the order they were first seen."""
        if isinstance(prompt, TokenPrompt):
            return prompt.tokens
        return tuple(self._id(word) for word in WORD.findall(_text(prompt)))

    async def detokenize(self, tokens: tuple[int, ...]) -> str:
        unknown = next((token for token in tokens if not 0 <= token < len(self._words)), None)
        if unknown is not None:
            raise InvalidRequest(f"token {unknown} is not in the vocabulary", param="tokens")
        return "".join(self._words[token] for token in tokens)

    async def save_state(self, path: str, prompt: Prompt, tenant: str, cache_salt: str) -> int:
        raise StateFileError("an echo has nothing to save")

    async def restore_state(self, path: str, tenant: str, cache_salt: str) -> int:
        raise StateFileError("an echo has nothing to restore")

    def status(self) -> ModelStatus:
        return ModelStatus(
            key=self.key,
            provider="echo",
            kind="text",
            state=self.state,
            error=self.error,
            loaded_at=self._loaded_at if self.state == "ready" else None,
            requests=self.num_requests,
            load=LoadStatus(count=self.num_loads),
            engine=EngineStats(running=self.open_streams),
        )

    def is_ready(self) -> bool:
        return self.state == "ready"

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if request.constraint is not None:
            raise InvalidRequest("an echo cannot take a form; ask a model", param=request.constraint.param)
        prompt = await self._prompt_text(request.prompt)
        num_prompt = len(WORD.findall(prompt))
        if num_prompt > self.context:
            raise ContextLengthExceeded(f"the prompt has {num_prompt} tokens, the context {self.context}")
        await self._reach(0)
        yield Started(num_prompt)
        words, reason = _cut(prompt, request)
        if request.prompt_logprobs is not None:
            yield PromptScored(self._scored(prompt, request.prompt_logprobs))
        if request.echo:
            yield Delta(prompt, 0)
        num_characters = len(prompt) if request.echo else 0
        for step, word in enumerate(words, start=1):
            await self._reach(step)
            yield Delta(word, 1, _logprobs(word, num_characters, request.logprobs))
            num_characters += len(word)
        yield Finished(reason, Usage(prompt_tokens=num_prompt, completion_tokens=len(words)))

    async def _prompt_text(self, prompt: Prompt) -> str:
        return await self.detokenize(prompt.tokens) if isinstance(prompt, TokenPrompt) else _text(prompt)

    async def _reach(self, step: int) -> None:
        if self.pause is not None:
            await self.pause(step)
        if step == self.fail_at:
            raise self.failure

    def _scored(self, prompt: str, count: int) -> tuple[PromptToken, ...]:
        told: list[PromptToken] = []
        for match in WORD.finditer(prompt):
            number, certain = self._id(match[0]), LikelyToken(match[0].encode(), 0.0)
            likeliest = ((number, certain),) if count and told else ()
            told.append(PromptToken(number, certain, match.start(), 1 if told else 0, likeliest))
        return tuple(told)

    def _id(self, word: str) -> int:
        if word not in self._ids:
            self._ids[word] = len(self._words)
            self._words.append(word)
        return self._ids[word]


def _text(prompt: TextPrompt | ChatPrompt | InfillPrompt | TokenPrompt) -> str:
    match prompt:
        case TextPrompt(text):
            return text
        case ChatPrompt(messages):
            return messages[-1].content
        case InfillPrompt(prefix, suffix):
            return f"{prefix}|{suffix}"
        case TokenPrompt():
            raise AssertionError("tokens are read by the provider's own vocabulary")


def _logprobs(word: str, start: int, count: int | None) -> tuple[TokenLogprob, ...]:
    if count is None:
        return ()
    certain = LikelyToken(word.encode(), 0.0)
    return (TokenLogprob(certain, start, (certain,) if count else ()),)


def _cut(text: str, request: GenerateRequest) -> tuple[list[str], FinishReason]:
    stopping = request.stopping
    end = min((at for stop in stopping.stop if (at := text.find(stop)) >= 0), default=len(text))
    words = WORD.findall(text[:end])
    if stopping.max_tokens is not None and len(words) > stopping.max_tokens:
        return words[: stopping.max_tokens], "length"
    return words, "stop"
