"""Translates OpenAI bodies into ocak's requests, one for each choice of the answer. Pure.

Ranges of sampling and stopping are the gateway's to check; shapes and texts are checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from ocak.api.best_of import num_generated, num_sent
from ocak.api.errors import UnsupportedParameter
from ocak.api.json_body import decode_field
from ocak.api.openai_logprobs import chat_count, completion_count
from ocak.api.openai_wire import ChatBody, CommonBody, CompletionBody, MessageBody, TextPart
from ocak.api.samplers_wire import sampler_fields, stopping_fields
from ocak.core.errors import InvalidRequest
from ocak.core.limits import INT32_MAX, MAX_STOP_STRINGS, UINT32_MAX, check_text
from ocak.core.request import (
    ChatPrompt,
    GenerateRequest,
    InfillPrompt,
    Message,
    Prompt,
    Sampling,
    Stopping,
    TextPrompt,
    TokenPrompt,
)

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions; chats go on to their end
MAX_PROMPTS = 1024
MAX_MESSAGES = 10_000
NO_CALLS = (b"", b"null", b"[]")
NESTED_LIST = re.compile(rb"\s*\[\s*\[")
SAMPLING_FIELDS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed", "logit_bias")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: its id, the model's key, the tenant."""

    id: str
    model: str
    tenant: str


def completion_requests(body: CompletionBody, origin: Origin) -> list[GenerateRequest]:
    """Return a request for each answer: the jth to prompt i is at i * n + j; with `best_of`, that stands for n."""
    prompts = [_with_suffix(prompt, body) for prompt in _prompts(body.prompt)]
    stopping = _stopping(body, COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
    requests = _requests(prompts, body, origin, stopping=stopping, echo=bool(body.echo))
    count = completion_count(body)
    if count is None and num_generated(body) > num_sent(body):
        count = 0  # they are compared by them
    return _with_logprobs(requests, count)


def chat_requests(body: ChatBody, origin: Origin) -> list[GenerateRequest]:
    """Return a request for each choice of a chat."""
    prompt = chat_prompt(body.messages)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    requests = _requests([prompt], body, origin, stopping=_stopping(body, max_tokens), echo=False)
    return _with_logprobs(requests, chat_count(body))


def chat_prompt(messages: list[MessageBody]) -> ChatPrompt:
    if not messages:
        raise InvalidRequest("messages is empty; send at least one", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages holds more than {MAX_MESSAGES} messages", param="messages")
    return ChatPrompt(tuple(_message(message, i) for i, message in enumerate(messages)))


def _requests(
    prompts: list[Prompt], body: CommonBody, origin: Origin, *, stopping: Stopping, echo: bool
) -> list[GenerateRequest]:
    n = num_generated(body)
    samplings = _samplings(_sampling(body), n)
    return [
        GenerateRequest(
            id=origin.id,
            model=origin.model,
            prompt=prompt,
            sampling=sampling,
            stopping=stopping,
            echo=echo,
            tenant=origin.tenant,
            family=origin.id if n > 1 else "",
            priority=body.priority or 0,
            cache_salt=body.cache_salt or "",
        )
        for prompt in prompts
        for sampling in samplings
    ]


def _with_logprobs(requests: list[GenerateRequest], count: int | None) -> list[GenerateRequest]:
    return requests if count is None else [msgspec.structs.replace(r, logprobs=count) for r in requests]


def _samplings(sampling: Sampling, n: int) -> list[Sampling]:
    """Give each of n answers a seed of its own, if the request gave one."""
    if n == 1 or sampling.seed is None or not 0 <= sampling.seed <= UINT32_MAX:
        return [sampling] * n
    seeds = [(sampling.seed + j) % (UINT32_MAX + 1) for j in range(n)]
    return [msgspec.structs.replace(sampling, seed=seed) for seed in seeds]


def _sampling(body: CommonBody) -> Sampling:
    given = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        given["top_k"] = 0 if body.top_k == -1 else body.top_k
    penalty = body.repeat_penalty if body.repetition_penalty is None else body.repetition_penalty
    if penalty is not None:
        given["repetition_penalty"] = penalty
    return Sampling(**given, **sampler_fields(body))  # type: ignore[arg-type]


def _stopping(body: CommonBody, max_tokens: int | None) -> Stopping:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    for text in stop[:MAX_STOP_STRINGS]:  # the gateway refuses more
        check_text(text, "stop")
    more = stopping_fields(body)
    return Stopping(max_tokens=max_tokens, stop=stop, ignore_eos=bool(body.ignore_eos), **more)  # type: ignore[arg-type]


def _message(body: MessageBody, index: int) -> Message:
    where = f"messages[{index}]"
    for name in ("tool_calls", "function_call"):
        if bytes(getattr(body, name)) not in NO_CALLS:
            raise UnsupportedParameter(f"{name} is not supported by this server", param=f"{where}.{name}")
    if body.content is None and body.role != "assistant":
        raise InvalidRequest(f"{where}.content is required", param=f"{where}.content")
    content = body.content if isinstance(body.content, str) else _joined(body.content or [], where)
    check_text(content, f"{where}.content")
    return Message("system" if body.role == "developer" else body.role, content)


def _joined(parts: list[TextPart], where: str) -> str:
    for i, part in enumerate(parts):
        place = f"{where}.content[{i}]"
        if part.type != "text":
            raise UnsupportedParameter(
                f"{place} is of type {part.type[:40]!r}; this model reads text alone", param=f"{place}.type"
            )
        if part.text is None:
            raise InvalidRequest(f"{place}.text is required", param=f"{place}.text")
    return "".join(part.text or "" for part in parts)


def _prompts(raw: msgspec.Raw) -> list[Prompt]:
    """Read the four shapes of `prompt`. Counts nested lists before it builds them."""
    data = bytes(raw)
    if NESTED_LIST.match(data):
        if data.count(b"[") > MAX_PROMPTS + 1:
            raise _too_many_prompts()
        return [_token_prompt(tokens) for tokens in decode_field(raw, list[list[int]], "prompt")]
    value = decode_field(raw, str | list[str | int], "prompt")
    if isinstance(value, str):
        return [_text_prompt(value)]
    if not value:
        raise _empty()
    return _flat(value)


def _flat(items: list[Any]) -> list[Prompt]:
    kinds = set(map(type, items))
    if kinds == {int}:
        return [_token_prompt(items)]
    if kinds != {str}:
        raise InvalidRequest("prompt mixes text and token ids; send one or the other", param="prompt")
    if len(items) > MAX_PROMPTS:
        raise _too_many_prompts()
    return [_text_prompt(text) for text in items]


def _text_prompt(text: str) -> Prompt:
    if not text:
        raise _empty()
    check_text(text, "prompt")
    return TextPrompt(text)


def _token_prompt(tokens: list[int]) -> Prompt:
    if not tokens:
        raise _empty()
    if min(tokens) < 0 or max(tokens) > INT32_MAX:
        raise InvalidRequest(f"prompt holds a token id outside 0 to {INT32_MAX}", param="prompt")
    return TokenPrompt(tuple(tokens))


def _with_suffix(prompt: Prompt, body: CompletionBody) -> Prompt:
    if not body.suffix:
        return prompt
    check_text(body.suffix, "suffix")
    if not isinstance(prompt, TextPrompt):
        raise InvalidRequest("suffix needs a prompt of text, not of token ids", param="suffix")
    if body.echo:
        raise InvalidRequest("echo and suffix exclude each other", param="suffix")
    return InfillPrompt(prompt.text, body.suffix)


def _empty() -> InvalidRequest:
    return InvalidRequest("prompt is empty", param="prompt")


def _too_many_prompts() -> InvalidRequest:
    return InvalidRequest(f"prompt holds more than {MAX_PROMPTS} prompts", param="prompt")
