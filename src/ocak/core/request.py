"""What a caller asks for, in the one form that every API is translated to and every provider reads."""

from __future__ import annotations

from typing import Literal

import msgspec

DEFAULT_TENANT = "public"
ContextPolicy = Literal["error", "shift", "truncate"]  # what becomes of what does not fit the context
NAMED = "tool:"  # goes before a tool's name where a choice is written


COLDEST = 1e-5  # a temperature below it is greedy: what llama.cpp would divide by it overflows

# llama.cpp's names and its order. What samplers are off at their defaults cost nothing by being named.
SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "adaptive_p",
)
KNOWN_SAMPLERS = (*SAMPLERS, "infill")  # which has no setting that turns it off: it is on where it is named


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is picked; the defaults are llama.cpp's. `temperature` 0 is greedy.

    `mirostat` takes the place of every sampler but the temperature, as in llama.cpp. Wherever `samplers` names
    `adaptive_p`, it comes last, for it draws the token.
    """

    temperature: float = 1.0
    top_k: int = 40  # 0: off
    top_p: float = 0.95  # 1: off
    min_p: float = 0.05  # 0: off
    repetition_penalty: float = 1.0  # 1: off
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64  # the last tokens that the penalties look at
    seed: int | None = None  # None: drawn by the worker
    logit_bias: dict[int, float] = {}
    typical_p: float = 1.0  # 1: off
    top_n_sigma: float = -1.0  # 0 and less: off
    xtc_probability: float = 0.0  # 0: off
    xtc_threshold: float = 0.1  # above 0.5: off
    dry_multiplier: float = 0.0  # 0: off
    dry_base: float = 1.75
    dry_allowed_length: int = 2  # tokens of a repetition that go without a penalty
    dry_penalty_last_n: int = 64  # the last tokens in which repetitions are looked for
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    dynatemp_range: float = 0.0  # 0: off, else the temperature moves that far up and down with the entropy
    dynatemp_exponent: float = 1.0
    mirostat: int = 0  # 0: off, 1 or 2: the version
    mirostat_tau: float = 5.0  # target surprise in bits
    mirostat_eta: float = 0.1  # learning rate
    adaptive_target: float = -1.0  # probability that the tokens shall have; negative: off
    adaptive_decay: float = 0.9
    samplers: tuple[str, ...] = SAMPLERS  # which ones are applied, in order; a name that is left out is off
    allowed_token_ids: tuple[int, ...] | None = None  # None: all
    bad_words: tuple[str, ...] = ()  # the answer holds none of them

    @property
    def is_greedy(self) -> bool:
        return self.temperature < COLDEST and (self.dynatemp_range == 0.0 or self.mirostat != 0)

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def has_dry(self) -> bool:
        return self.dry_multiplier != 0.0 and self.dry_penalty_last_n > 0 and "dry" in self.samplers

    @property
    def fills_in(self) -> bool:
        """Whether the answer ends where the model is in two minds, as text in the middle of other text should."""
        return "infill" in self.samplers and self.mirostat == 0

    @property
    def learns(self) -> bool:
        """Whether what was drawn, not only what came, decides how the next token is drawn."""
        return self.mirostat != 0 or (self.adaptive_target >= 0 and "adaptive_p" in self.samplers)

    @property
    def looks_back(self) -> int:
        """How many of the latest tokens the samplers must know."""
        window = self.penalty_window if self.has_penalties else 0
        return max(window, self.dry_penalty_last_n if self.has_dry else 0)


class Stopping(msgspec.Struct, frozen=True, kw_only=True):
    """When an answer ends, besides the model's own end of turn and the end of the context."""

    max_tokens: int | None = None  # None: up to the end of the context
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0  # no end before: no end token, no stop token, no stop string
    stop_token_ids: tuple[int, ...] = ()


ConstraintKind = Literal["json_schema", "regex", "choice", "grammar"]


class Constraint(msgspec.Struct, frozen=True):
    """What the answer's whole text must look like.

    `text` is a JSON schema, a regular expression, a JSON list of choices, or a grammar in Lark or GBNF. `param` is
    the field of the request that said so, for the messages about it.
    """

    kind: ConstraintKind
    text: str
    param: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call that a model made; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; `definition` is its JSON text: name, description, parameters."""

    name: str
    definition: str


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """A turn of a conversation: `tool_calls` and `reasoning` of an assistant's, `tool_call_id` of a tool's."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""


class TextPrompt(msgspec.Struct, frozen=True, tag="text"):
    """Raw text; special tokens written in it are read as such, and the model's BOS goes before it."""

    text: str


class TokenPrompt(msgspec.Struct, frozen=True, tag="tokens"):
    tokens: tuple[int, ...]


class ChatPrompt(msgspec.Struct, frozen=True, tag="chat"):
    """Messages, rendered by the model's chat template.

    `tool_choice` is auto, none, required, or the name of the tool behind `NAMED`: `tool:get_weather`.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_calls: bool = True  # False: the answer ends with its first call

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that the model shall know of."""
        return () if self.tool_choice == "none" else self.tools

    @property
    def forced(self) -> tuple[Tool, ...]:
        """The tools of which one must be called; none where the model decides."""
        if self.tool_choice == "required":
            return self.tools
        return tuple(tool for tool in self.tools if self.tool_choice == NAMED + tool.name)


class InfillPrompt(msgspec.Struct, frozen=True, tag="infill"):
    """Text before and after a hole, for models with fill-in-the-middle tokens."""

    prefix: str
    suffix: str


Prompt = TextPrompt | TokenPrompt | ChatPrompt | InfillPrompt


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, one answer. `id` is the request's id in every log line and answer."""

    id: str
    model: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    stopping: Stopping = Stopping()
    echo: bool = False  # the answer begins with the prompt's own text
    logprobs: int | None = None  # tell each token's log-probability, and those of as many of the likeliest
    prompt_logprobs: int | None = None  # the same of the prompt's tokens, told before the answer
    lora: str = ""  # the adapter that answers; empty: the model alone
    tenant: str = DEFAULT_TENANT
    priority: int = 0  # lower ones go first, among the tenant's own
    family: str = ""  # the same for the answers of one request, which share their prompt while they run
    context_policy: ContextPolicy | None = None  # None: the model's
    n_keep: int | None = None  # tokens at the beginning that are never dropped; None: the model's
    constraint: Constraint | None = None  # None: any text
    cache_salt: str = ""  # cached prefixes are shared within a tenant, and there under the same salt
    include_reasoning: bool = True  # False: what the model thinks before it answers is not told


def prompt_bytes(prompt: Prompt) -> int:
    """A bound on the prompt's tokens that needs no tokenizer: no token is shorter than a byte."""
    match prompt:
        case TextPrompt(text):
            return _size(text)
        case TokenPrompt(tokens):
            return len(tokens)
        case InfillPrompt(prefix, suffix):
            return _size(prefix) + _size(suffix)
        case ChatPrompt(messages, tools):
            return sum(map(_message_size, messages)) + sum(_size(tool.definition) for tool in tools)


def _message_size(message: Message) -> int:
    calls = sum(_size(call.id) + _size(call.name) + _size(call.arguments) for call in message.tool_calls)
    texts = (message.role, message.content, message.reasoning, message.name, message.tool_call_id)
    return calls + sum(map(_size, texts))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
