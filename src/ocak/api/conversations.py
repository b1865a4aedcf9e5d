"""Conversations saved to files of the server, by name: `/api/v1/models/{key}/conversations/{name}`.

Off unless the owner names a folder. Callers choose a name and nothing else of the path: letters, digits and a few
signs, in a folder for each model and tenant. Nobody reads, overwrites or restores what is another tenant's.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from ocak.api.errors import UnsupportedParameter
from ocak.api.exchange import Exchange
from ocak.api.json_body import decode
from ocak.api.openai_requests import chat_prompt
from ocak.api.openai_wire import MessageBody
from ocak.api.presence import present
from ocak.api.unsupported import check_others, ignored_header
from ocak.core.errors import ConversationNotFound, InvalidRequest, StateFileError
from ocak.core.limits import INT32_MAX, check_text
from ocak.core.request import DEFAULT_TENANT, Prompt, TextPrompt, TokenPrompt, prompt_bytes
from ocak.gateway.gateway import Gateway, ServedModel

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
SUFFIX = ".state"
MOST = 256  # conversations of a tenant and model
NO_ADAPTERS = "conversations are saved of models alone, not of the adapter {adapter!r}; name the model, {model!r}"


class SaveBody(msgspec.Struct, frozen=True):
    """Exactly one of `prompt`, `tokens` and `messages`: what the conversation is, as it was sent to generate."""

    prompt: str | None = None
    tokens: list[int] | None = None
    messages: list[MessageBody] | None = None
    cache_salt: str | None = None


class RestoreBody(msgspec.Struct, frozen=True):
    cache_salt: str | None = None


class ConversationAnswer(msgspec.Struct, frozen=True):
    name: str
    tokens: int


class Conversations:
    def __init__(self, gateway: Gateway, folder: Path | None, stall_s: float) -> None:
        self._gateway = gateway
        self._folder = folder
        self._stall_s = stall_s

    async def save(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), SaveBody)
        ignored = check_others(others)
        model, path = self._place(exchange)
        prompt = _prompt(body)
        _make_room(path)
        async with present(exchange, self._stall_s):
            with model.admission.place(prompt_bytes(prompt)):
                count = await model.provider.save_state(
                    str(path), prompt, _tenant(exchange), body.cache_salt or ""
                )
        await _answer(exchange, count, ignored)

    async def restore(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), RestoreBody)
        ignored = check_others(others)
        model, path = self._place(exchange)
        if not path.is_file():
            raise ConversationNotFound(f"no conversation {_name(exchange)!r} is saved", param="name")
        async with present(exchange, self._stall_s):
            with model.admission.place(0):
                count = await model.provider.restore_state(str(path), _tenant(exchange), body.cache_salt or "")
        await _answer(exchange, count, ignored)

    async def delete(self, exchange: Exchange) -> None:
        _, path = self._place(exchange)
        try:
            path.unlink()
        except FileNotFoundError:
            raise ConversationNotFound(f"no conversation {_name(exchange)!r} is saved", param="name") from None
        await _answer(exchange, 0, ())

    def _place(self, exchange: Exchange) -> tuple[ServedModel, Path]:
        """Return the model and the file. Raises `UnsupportedParameter` where the owner has named no folder."""
        key = exchange.path_parameter("key")
        model = self._gateway.resolve(key)
        exchange.note.model = model.key
        if self._folder is None:
            raise UnsupportedParameter("this server saves no conversations; start it with --state-dir FOLDER")
        if adapter := self._gateway.adapter(key):
            raise InvalidRequest(NO_ADAPTERS.format(adapter=adapter, model=model.key), param="model")
        name = _name(exchange)
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                "a conversation's name has 1 to 64 letters, digits, - and _; it begins with no sign",
                param="name",
            )
        return model, self._folder / _folder_name(model.key) / _folder_name(_tenant(exchange)) / f"{name}{SUFFIX}"


def _name(exchange: Exchange) -> str:
    return exchange.path_parameter("name")


def _tenant(exchange: Exchange) -> str:
    return exchange.tenant or DEFAULT_TENANT


def _folder_name(text: str) -> str:
    """A folder's name that any key or tenant may have."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _make_room(path: Path) -> None:
    """Make the folder; refuse more names than a tenant may have."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = sum(1 for other in path.parent.glob(f"*{SUFFIX}") if other != path)
    except OSError as error:
        raise StateFileError(f"the folder of conversations: {error.strerror or error}") from error
    if others >= MOST:
        raise InvalidRequest(
            f"{MOST} conversations are saved, the most; delete one, or overwrite it", param="name"
        )


def _prompt(body: SaveBody) -> Prompt:
    given = [name for name in ("prompt", "tokens", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise InvalidRequest("send exactly one of prompt, tokens and messages", param="prompt")
    if body.messages is not None:
        return chat_prompt(body.messages)
    if body.tokens is not None:
        if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) <= INT32_MAX:
            raise InvalidRequest(f"tokens holds an id outside 0 to {INT32_MAX}", param="tokens")
        return TokenPrompt(tuple(body.tokens))
    check_text(body.prompt or "", "prompt")
    return TextPrompt(body.prompt or "")


async def _answer(exchange: Exchange, count: int, ignored: tuple[str, ...]) -> None:
    answer = ConversationAnswer(_name(exchange), count)
    await exchange.answer(msgspec.json.encode(answer), headers=ignored_header(ignored))
