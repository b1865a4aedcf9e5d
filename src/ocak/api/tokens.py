"""`/tokenize` and `/detokenize`, in the shapes of vLLM (`prompt`, `messages`) and of llama-server (`content`)."""

from __future__ import annotations

import msgspec

from ocak.api.exchange import Exchange
from ocak.api.json_body import decode
from ocak.api.models import context_of
from ocak.api.openai_requests import chat_prompt
from ocak.api.openai_wire import MessageBody, ModelName
from ocak.api.presence import present
from ocak.api.tools_requests import read_tools
from ocak.api.tools_wire import ToolBody
from ocak.api.unsupported import check_others, ignored_header
from ocak.core.errors import InvalidRequest
from ocak.core.limits import INT32_MAX, check_text
from ocak.core.request import Prompt, TextPrompt
from ocak.gateway.gateway import Gateway


class TokenizeBody(msgspec.Struct, frozen=True):
    """Exactly one of `prompt`, `messages` and `content`."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: list[MessageBody] | None = None
    tools: list[ToolBody] | None = None  # beside `messages`
    content: str | None = None
    add_special_tokens: bool | None = None  # of `prompt`: true when silent; of `messages`: false
    add_special: bool | None = None  # of `content`: false when silent


class TokenizeAnswer(msgspec.Struct, frozen=True):
    tokens: tuple[int, ...]
    count: int
    max_model_len: int | None


class DetokenizeBody(msgspec.Struct, frozen=True):
    tokens: list[int]
    model: ModelName | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """The same text under vLLM's name and under llama-server's."""

    prompt: str
    content: str


class Tokens:
    def __init__(self, gateway: Gateway, stall_s: float) -> None:
        self._gateway = gateway
        self._stall_s = stall_s

    async def tokenize(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), TokenizeBody)
        ignored = check_others(others)
        model = self._gateway.resolve(body.model)
        exchange.note.model = model.key
        prompt, add_special = _prompt(body)
        async with present(exchange, self._stall_s):
            tokens = await self._gateway.tokenize(model.key, prompt, add_special=add_special)
        answer = TokenizeAnswer(tokens, len(tokens), context_of(model))
        await exchange.answer(msgspec.json.encode(answer), headers=ignored_header(ignored))

    async def detokenize(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), DetokenizeBody)
        ignored = check_others(others)
        model = self._gateway.resolve(body.model)
        exchange.note.model = model.key
        if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) <= INT32_MAX:
            raise InvalidRequest(f"tokens holds an id outside 0 to {INT32_MAX}", param="tokens")
        async with present(exchange, self._stall_s):
            text = await self._gateway.detokenize(model.key, tuple(body.tokens))
        answer = DetokenizeAnswer(text, text)
        await exchange.answer(msgspec.json.encode(answer), headers=ignored_header(ignored))


def _prompt(body: TokenizeBody) -> tuple[Prompt, bool]:
    """Return what to tokenise, and whether special tokens are added around it."""
    given = [name for name in ("prompt", "messages", "content") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequest("send exactly one of prompt, messages and content", param="prompt")
    if body.messages is not None:
        return chat_prompt(body.messages, read_tools(body.tools)), bool(body.add_special_tokens)
    text = body.content if body.prompt is None else body.prompt
    check_text(text or "", given[0])
    is_llama_server = body.content is not None
    added = body.add_special if is_llama_server else body.add_special_tokens
    return TextPrompt(text or ""), not is_llama_server if added is None else added
