"""Translates OpenAI bodies into ocak's requests, one for each choice of the answer. Pure.

Ranges of sampling and stopping are the gateway's to check; shapes and texts are checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ocak.api.best_of import num_generated, num_sent
from ocak.api.errors import UnsupportedParameter
from ocak.api.openai_logprobs import chat_count, completion_count, prompt_count
from ocak.api.openai_wire import ChatBody, CommonBody, CompletionBody, MessageBody, TextPart
from ocak.api.prompt_shapes import TextField
from ocak.api.samplers_wire import sampler_fields, stopping_fields
from ocak.api.structured_wire import constraint
from ocak.api.tools_requests import read_calls, read_choice, read_tools
from ocak.core.errors import InvalidRequest
from ocak.core.limits import MAX_STOP_STRINGS, UINT32_MAX, check_text, check_tools
from ocak.core.request import (
    ChatPrompt,
    GenerateRequest,
    InfillPrompt,
    Message,
    Prompt,
    Sampling,
    Stopping,
    TextPrompt,
    Tool,
)

COMPLETION_MAX_TOKENS = 16  # OpenAI's default for completions; chats go on to their end
PROMPT = TextField("prompt", 1024)
MAX_MESSAGES = 10_000
NO_CALLS = (b"", b"null", b"[]")
SAMPLING_FIELDS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "seed", "logit_bias")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: its id, the model's key, the tenant, the adapter that the model's name names."""

    id: str
    model: str
    tenant: str
    lora: str = ""


def completion_requests(body: CompletionBody, origin: Origin) -> list[GenerateRequest]:
    """Return a request for each answer: the jth to prompt i is at i * n + j; with `best_of`, that stands for n."""
    prompts = [_with_suffix(prompt, body) for prompt in PROMPT.read(body.prompt)]
    stopping = _stopping(body, COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
    requests = _requests(prompts, body, origin, stopping=stopping, echo=bool(body.echo))
    count = completion_count(body)
    of_prompt = prompt_count(body, count if body.echo else None)
    if count is None and num_generated(body) > num_sent(body):
        count = 0  # they are compared by them
    return _with_logprobs(requests, count, of_prompt)


def chat_requests(body: ChatBody, origin: Origin) -> list[GenerateRequest]:
    """Return a request for each choice of a chat."""
    tools = read_tools(body.tools)
    prompt = msgspec.structs.replace(
        chat_prompt(body.messages, tools),
        tool_choice=read_choice(body.tool_choice, tools),
        parallel_calls=body.parallel_tool_calls is not False,
    )
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    requests = _requests([prompt], body, origin, stopping=_stopping(body, max_tokens), echo=False)
    if body.include_reasoning is False:
        requests = [msgspec.structs.replace(request, include_reasoning=False) for request in requests]
    return _with_logprobs(requests, chat_count(body), prompt_count(body))


def chat_prompt(messages: list[MessageBody], tools: tuple[Tool, ...] = ()) -> ChatPrompt:
    if not messages:
        raise InvalidRequest("messages is empty; send at least one", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"messages holds more than {MAX_MESSAGES} messages", param="messages")
    check_tools(tools)
    return ChatPrompt(tuple(_message(message, i) for i, message in enumerate(messages)), tools)


def _requests(
    prompts: list[Prompt], body: CommonBody, origin: Origin, *, stopping: Stopping, echo: bool
) -> list[GenerateRequest]:
    n = num_generated(body)
    samplings = _samplings(_sampling(body), n)
    lora = _adapter(body, origin)
    form = constraint(body)
    return [
        GenerateRequest(
            id=origin.id,
            model=origin.model,
            prompt=prompt,
            sampling=sampling,
            stopping=stopping,
            echo=echo,
            lora=lora,
            tenant=origin.tenant,
            family=origin.id if n > 1 else "",
            priority=body.priority or 0,
            constraint=form,
            cache_salt=body.cache_salt or "",
            context_policy=body.context_policy,
            n_keep=body.n_keep,
        )
        for prompt in prompts
        for sampling in samplings
    ]


def _with_logprobs(
    requests: list[GenerateRequest], count: int | None, prompt: int | None
) -> list[GenerateRequest]:
    if count is None and prompt is None:
        return requests
    return [msgspec.structs.replace(r, logprobs=count, prompt_logprobs=prompt) for r in requests]


def _adapter(body: CommonBody, origin: Origin) -> str:
    if body.lora and origin.lora and body.lora != origin.lora:
        raise InvalidRequest(
            f"model names the adapter {origin.lora!r} and lora another, {body.lora!r}; send one of them",
            param="lora",
        )
    return body.lora or origin.lora


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
    if bytes(body.function_call) not in NO_CALLS:
        raise UnsupportedParameter(
            "function_call is not supported by this server; send tool_calls", param=f"{where}.function_call"
        )
    if body.tool_calls and body.role != "assistant":
        raise InvalidRequest(f"{where}.tool_calls belongs to an assistant's message", param=f"{where}.tool_calls")
    if body.content is None and body.role != "assistant":
        raise InvalidRequest(f"{where}.content is required", param=f"{where}.content")
    content = body.content if isinstance(body.content, str) else _joined(body.content or [], where)
    texts = {"content": content, "reasoning_content": body.reasoning_content or "", "name": body.name or ""}
    for name, text in (texts | {"tool_call_id": body.tool_call_id or ""}).items():
        check_text(text, f"{where}.{name}")
    return Message(
        role="system" if body.role == "developer" else body.role,
        content=content,
        tool_calls=read_calls(body.tool_calls, f"{where}.tool_calls"),
        tool_call_id=body.tool_call_id or "",
        name=texts["name"],
        reasoning=texts["reasoning_content"],
    )


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


def _with_suffix(prompt: Prompt, body: CompletionBody) -> Prompt:
    if not body.suffix:
        return prompt
    check_text(body.suffix, "suffix")
    if not isinstance(prompt, TextPrompt):
        raise InvalidRequest("suffix needs a prompt of text, not of token ids", param="suffix")
    if body.echo:
        raise InvalidRequest("echo and suffix exclude each other", param="suffix")
    return InfillPrompt(prompt.text, body.suffix)
