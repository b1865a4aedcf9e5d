"""Writes OpenAI's answers: whole ones, and the chunks of a stream as ready bytes. Pure.

What all chunks of a stream share is encoded once; a token then costs one encoding of its text.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ocak import __version__
from ocak.api.openai_logprobs import chat_logprobs, completion_logprobs, prompt_logprobs
from ocak.api.openai_wire import (
    AssistantMessage,
    ChatAnswer,
    ChatChoice,
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    PromptTokensDetails,
    RankedTokenBody,
    UsageBody,
)
from ocak.core.events import Delta, FinishReason, PromptToken, TokenLogprob, Usage
from ocak.gateway.gateway import Completion

FINGERPRINT = f"ocak-{__version__}"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class AnswerHead(msgspec.Struct, frozen=True):
    """What is the same in every piece of one answer."""

    id: str
    created: int
    model: str


@dataclass(frozen=True, slots=True)
class PromptTelling:
    """Where log-probabilities of the prompt are told, and how many beside each token; None: not there."""

    beside: int | None = None  # as `prompt_logprobs`
    echoed: int | None = None  # before the answer's own

    def body(self, completion: Completion) -> list[dict[str, RankedTokenBody] | None] | msgspec.UnsetType:
        if self.beside is None or completion.prompt is None:
            return msgspec.UNSET
        return prompt_logprobs(completion.prompt, self.beside)

    def before(self, prompt: Sequence[PromptToken] | None) -> Sequence[PromptToken]:
        return () if self.echoed is None or prompt is None else prompt


NOT_TOLD = PromptTelling()


class Format(Protocol):
    """One of OpenAI's two shapes, for one answer. Chunks are whole server-sent events."""

    def whole(self, completions: Sequence[Completion], usage: Usage) -> bytes: ...

    def first(self, index: int) -> bytes: ...

    def text(self, index: int, delta: Delta, prompt: Sequence[PromptToken] = ()) -> bytes:
        """`prompt` has the tokens of an echo that the delta is."""
        ...

    def last(self, index: int, reason: FinishReason) -> bytes: ...

    def usage(self, usage: Usage) -> bytes: ...


class CompletionFormat:
    def __init__(self, model: str, *, include_usage: bool = False, telling: PromptTelling = NOT_TOLD) -> None:
        self._telling = telling
        self._head = AnswerHead(f"cmpl-{secrets.token_hex(12)}", int(time.time()), model)
        self._frame = _Frame("text_completion", self._head, include_usage)

    def whole(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        choices = [self._choice(i, completion) for i, completion in enumerate(completions)]
        return _encode(
            CompletionAnswer(
                id=self._head.id,
                created=self._head.created,
                model=self._head.model,
                system_fingerprint=FINGERPRINT,
                choices=choices,
                usage=usage_body(usage),
            )
        )

    def first(self, index: int) -> bytes:
        return b""

    def _choice(self, index: int, completion: Completion) -> CompletionChoice:
        logprobs = None if completion.logprobs is None else self._logprobs(completion.logprobs, completion.prompt)
        body = self._telling.body(completion)
        return CompletionChoice(index, completion.text, completion.reason, logprobs, body)

    def _logprobs(
        self, tokens: Sequence[TokenLogprob], prompt: Sequence[PromptToken] | None
    ) -> CompletionLogprobs:
        return completion_logprobs(tokens, self._telling.before(prompt), self._telling.echoed or 0)

    def text(self, index: int, delta: Delta, prompt: Sequence[PromptToken] = ()) -> bytes:
        logprobs = _encode(self._logprobs(delta.logprobs, prompt)) if delta.logprobs or prompt else b"null"
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null}'
        return self._frame.around(choice % (index, _encode(delta.text), logprobs))

    def last(self, index: int, reason: FinishReason) -> bytes:
        choice = b'{"index":%d,"text":"","logprobs":null,"finish_reason":%b}'
        return self._frame.around(choice % (index, _encode(reason)))

    def usage(self, usage: Usage) -> bytes:
        return self._frame.usage(usage)


class ChatFormat:
    def __init__(self, model: str, *, include_usage: bool = False, telling: PromptTelling = NOT_TOLD) -> None:
        self._telling = telling
        self._head = AnswerHead(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), model)
        self._frame = _Frame("chat.completion.chunk", self._head, include_usage)

    def whole(self, completions: Sequence[Completion], usage: Usage) -> bytes:
        choices = [
            ChatChoice(
                i,
                AssistantMessage(c.text),
                c.reason,
                None if c.logprobs is None else chat_logprobs(c.logprobs),
                self._telling.body(c),
            )
            for i, c in enumerate(completions)
        ]
        return _encode(
            ChatAnswer(
                id=self._head.id,
                created=self._head.created,
                model=self._head.model,
                system_fingerprint=FINGERPRINT,
                choices=choices,
                usage=usage_body(usage),
                prompt_logprobs=choices[0].prompt_logprobs,
            )
        )

    def first(self, index: int) -> bytes:
        return self._choice(index, b'{"role":"assistant","content":""}', b"null")

    def text(self, index: int, delta: Delta, prompt: Sequence[PromptToken] = ()) -> bytes:
        logprobs = _encode(chat_logprobs(delta.logprobs)) if delta.logprobs else b"null"
        return self._choice(index, b'{"content":%b}' % _encode(delta.text), b"null", logprobs)

    def last(self, index: int, reason: FinishReason) -> bytes:
        return self._choice(index, b"{}", _encode(reason))

    def usage(self, usage: Usage) -> bytes:
        return self._frame.usage(usage)

    def _choice(self, index: int, delta: bytes, reason: bytes, logprobs: bytes = b"null") -> bytes:
        choice = b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}'
        return self._frame.around(choice % (index, delta, logprobs, reason))


class _Frame:
    """The bytes around a chunk's choices."""

    def __init__(self, kind: str, head: AnswerHead, include_usage: bool) -> None:
        self._begin = b'data: {"id":%b,"object":%b,"created":%d,"model":%b,"system_fingerprint":%b,"choices":[' % (
            _encode(head.id),
            _encode(kind),
            head.created,
            _encode(head.model),
            _encode(FINGERPRINT),
        )
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def around(self, choice: bytes) -> bytes:
        return self._begin + choice + self._end

    def usage(self, usage: Usage) -> bytes:
        """Return the last chunk of a stream that asked for it: no choices, the usage."""
        return b'%b],"usage":%b}\n\n' % (self._begin, _encode(usage_body(usage)))


def usage_body(usage: Usage) -> UsageBody:
    return UsageBody(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(usage.cached_tokens, usage.dropped_tokens),
    )


def total_usage(usages: Sequence[Usage], n: int) -> Usage:
    """Add up the choices' usage, in the order of their index; n answers to one prompt count it once."""
    prompts = usages[::n]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in prompts),
        completion_tokens=sum(u.completion_tokens for u in usages),
        cached_tokens=sum(u.cached_tokens for u in prompts),
        dropped_tokens=sum(u.dropped_tokens for u in prompts),
    )
