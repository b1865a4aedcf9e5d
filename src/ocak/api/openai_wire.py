"""The bodies of the OpenAI-compatible API, as they travel. Types only: `openai_requests` knows what they mean.

Every field may be null, which means that the request is silent about it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ocak.api.prompt_shapes import SHAPES
from ocak.api.samplers_wire import Int
from ocak.api.structured_wire import StructuredBody
from ocak.api.tools_wire import CHOICE_SCHEMA, ToolBody, ToolCallBody
from ocak.core.request import ContextPolicy

ModelName = Annotated[str, Meta(description="A model's key or one of its names.", max_length=256)]
Role = Literal["system", "developer", "user", "assistant", "tool"]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class TextPart(msgspec.Struct, frozen=True):
    """A part of a message; only the type `text` is understood."""

    type: str
    text: str | None = None


class MessageBody(msgspec.Struct, frozen=True):
    role: Role
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCallBody] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    function_call: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class CommonBody(StructuredBody, frozen=True, kw_only=True):
    """What chats and completions share."""

    model: ModelName | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[Int, Meta(description="0 or -1: off.")] | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: Annotated[float, Meta(description="The same as repetition_penalty.")] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int | None = None
    logit_bias: dict[Int, float] | None = None
    max_tokens: Int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    n: Int | None = None
    priority: Annotated[Int, Meta(description="Lower ones go first, among the key's own requests.")] | None = None
    cache_salt: (
        Annotated[str, Meta(max_length=256, description="Cached prompts are shared under one salt alone.")] | None
    ) = None
    lora: Annotated[str, Meta(max_length=64, description="The LoRA adapter that answers, by its name.")] | None = (
        None
    )
    prompt_logprobs: (
        Annotated[
            Int,
            Meta(
                description="0 to 20: tell the log-probability of each of the prompt's tokens, and of as many "
                "of the likeliest, as vLLM does; not with stream."
            ),
        ]
        | None
    ) = None
    context_policy: (
        Annotated[
            ContextPolicy,
            Meta(
                description="What becomes of a prompt, or an answer, that outgrows the context: an error; the "
                "oldest tokens go on the way; or the prompt's middle goes."
            ),
        ]
        | None
    ) = None
    n_keep: Annotated[Int, Meta(description="Tokens at the beginning that are never dropped.")] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


LOGPROBS = (
    "as many of the likeliest tokens. Natural logarithms of the model's own probabilities, before bias, "
    "penalties, temperature and other samplers; -9999.0 stands for minus infinity. Told is each token of which "
    "the text shows a part: not the end of the turn, nor what a stop string cuts off whole."
)


class CompletionBody(CommonBody, frozen=True, kw_only=True):
    prompt: Annotated[msgspec.Raw, Meta(extra_json_schema=SHAPES)]
    suffix: Annotated[str, Meta(description="Text after the hole to fill in.")] | None = None
    echo: bool | None = None
    best_of: (
        Annotated[Int, Meta(description="Generates so many answers, n to 16, and sends the n likeliest.")] | None
    ) = None
    logprobs: Annotated[Int, Meta(description=f"0 to 20: beside each token's own, {LOGPROBS}")] | None = None


class ChatBody(CommonBody, frozen=True, kw_only=True):
    messages: list[MessageBody]
    max_completion_tokens: Annotated[Int, Meta(description="Goes before max_tokens.")] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Meta(description=f"0 to 20, needs logprobs: {LOGPROBS}")] | None = None
    tools: list[ToolBody] | None = None
    tool_choice: Annotated[msgspec.Raw, Meta(extra_json_schema=CHOICE_SCHEMA)] = msgspec.field(
        default_factory=msgspec.Raw
    )
    parallel_tool_calls: (
        Annotated[bool, Meta(description="false: the answer ends with its first call.")] | None
    ) = None
    include_reasoning: Annotated[bool, Meta(description="false: reasoning_content is left out.")] | None = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    dropped_tokens: int


class UsageBody(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class RankedTokenBody(msgspec.Struct, frozen=True):
    """vLLM's; `rank` 1 is the likeliest."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobsBody = Annotated[
    list[dict[str, RankedTokenBody] | None],
    Meta(description="For each token of the prompt, by token id: the token itself and the likeliest; first null."),
]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """A list item for each token; `top_logprobs` has the likeliest tokens and the token itself.

    With `echo` the prompt's tokens come first, and of the very first nothing is known.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: Annotated[list[int], Meta(description="The token's first character in the choice's text.")]


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None = None
    prompt_logprobs: PromptLogprobsBody | msgspec.UnsetType = msgspec.UNSET


class CompletionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageBody | None


class AssistantMessage(msgspec.Struct, frozen=True):
    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallBody] | msgspec.UnsetType = msgspec.UNSET


TokenBytes = Annotated[list[int], Meta(description="What it adds to the text; null for a special token.")]


class LikelyTokenBody(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: TokenBytes | None


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: TokenBytes | None
    top_logprobs: list[LikelyTokenBody]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatTokenLogprob]
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: ChatLogprobs | None = None
    prompt_logprobs: PromptLogprobsBody | msgspec.UnsetType = msgspec.UNSET


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody
    prompt_logprobs: (
        Annotated[PromptLogprobsBody, Meta(description="The first choice's, where vLLM puts it.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
