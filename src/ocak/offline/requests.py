"""Turns what a Python caller gives into ocak's requests: prompts of three kinds, and options by their names. Pure.

An option is a field of `Sampling`, of `Stopping`, or one of the request's own. Types and shapes are checked here,
ranges by the gateway.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import msgspec

from ocak.core.errors import InvalidRequest
from ocak.core.request import (
    ChatPrompt,
    GenerateRequest,
    Message,
    Prompt,
    Sampling,
    Stopping,
    TextPrompt,
    TokenPrompt,
)

Chat: TypeAlias = Sequence[Mapping[str, str]]  # messages with "role" and "content"
PromptLike: TypeAlias = str | Sequence[int] | Chat
PROMPTS = "a text, a list of token ids, or a list of chat messages"
NO_OPTIONS = {"id", "model", "prompt", "sampling", "stopping", "tenant", "family"}
MESSAGES = '{"role": …, "content": …}, both texts'


def is_batch(prompts: object) -> bool:
    """Whether this is a list of prompts: anything but one of the three kinds."""
    return isinstance(prompts, list | tuple) and not (prompts and isinstance(prompts[0], int | Mapping))


def as_prompt(given: object, param: str = "prompt") -> Prompt:
    """Raises `InvalidRequest` that says what a prompt is."""
    if isinstance(given, str):
        return TextPrompt(given)
    if not isinstance(given, list | tuple) or not given:
        raise InvalidRequest(f"{param} must be {PROMPTS}, not {_shown(given)}", param=param)
    if all(isinstance(item, Mapping) for item in given):
        return ChatPrompt(tuple(_message(item, f"{param}[{at}]") for at, item in enumerate(given)))
    for at, item in enumerate(given):
        if not isinstance(item, int) or isinstance(item, bool):
            raise InvalidRequest(f"{param} must be {PROMPTS}; item {at} is {_shown(item)}", param=param)
    return TokenPrompt(tuple(given))


def as_request(model: str, prompt: Prompt, options: Mapping[str, object], family: str = "") -> GenerateRequest:
    """Raises `InvalidRequest` that names the option which is unknown or of a wrong type."""
    sampling, stopping, own = (_names(kind) for kind in (Sampling, Stopping, GenerateRequest))
    own -= NO_OPTIONS
    _check_known(options, sampling | stopping | own)
    fields: dict[str, object] = {name: value for name, value in options.items() if name in own}
    fields |= {"id": "offline", "model": model}
    fields["sampling"] = {name: value for name, value in options.items() if name in sampling}
    fields["stopping"] = {name: _stop(name, value) for name, value in options.items() if name in stopping}
    fields["prompt"] = {"type": "text", "text": ""}  # the real one is of the right types already
    try:
        checked = msgspec.convert(fields, GenerateRequest)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from error
    return msgspec.structs.replace(checked, prompt=prompt, family=family)


def _message(given: Mapping[object, object], where: str) -> Message:
    role, content = given.get("role"), given.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidRequest(f"{where} must be {MESSAGES}, not {_shown(dict(given))}", param=where)
    return Message(role, content)


def _names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind)}


def _check_known(options: Iterable[str], known: set[str]) -> None:
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else "there are " + ", ".join(sorted(known))
            raise InvalidRequest(f"there is no option {name!r}; {hint}", param=name)


def _stop(name: str, value: object) -> object:
    """One stop string may come without a list around it."""
    return (value,) if name == "stop" and isinstance(value, str) else value


def _wrong_type(told: str) -> InvalidRequest:
    """Name the option: msgspec writes "Expected `float`, got `str` - at `$.sampling.temperature`"."""
    what, _, path = told.partition(" - at `")
    name = path.rstrip("`").removeprefix("$.").removeprefix("sampling.").removeprefix("stopping.")
    return InvalidRequest(f"{name}: {what[0].lower()}{what[1:]}", param=name.partition("[")[0])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
