"""Renders a model's chat template. It comes from the model file and is not trusted: it runs in a sandbox, its
output and the texts that operators make are bounded, and a stopwatch tells the fleet of one that never returns.

Not bounded: what filters make (`center`, `indent`); such a template ends its worker, and nothing else.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ocak.core.errors import InvalidRequest, LoadFailed
from ocak.core.request import Message
from ocak.worker.stopwatch import Stopwatch

MAX_CHARACTERS = 32 * 1024 * 1024
MAX_POWER = 64  # of an exponent

TemplateValue = str | int | float | bool


class ChatTemplate:
    def __init__(self, source: str, constants: Mapping[str, TemplateValue], watch: Stopwatch) -> None:
        """Compile `source`; `constants` (BOS, EOS, configured arguments) are given to every rendering.

        Raises `LoadFailed`.
        """
        self._constants = dict(constants)
        self._watch = watch
        try:
            with watch.running():
                self._template = _environment().from_string(source)
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it does wrong is its own
            raise LoadFailed(f"the chat template does not compile: {_describe(error)}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """Return the conversation as the model wants to read it, ready for the assistant's turn.

        Raises `InvalidRequest` when the template does not take these messages.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        values = {**self._constants, "messages": turns, "add_generation_prompt": True}
        try:
            with self._watch.running():
                return _joined(self._template.generate(values))
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it does wrong is its own
            raise InvalidRequest(
                f"the model's chat template refused these messages: {_describe(error)}", param="messages"
            ) from error


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds on what its operators make."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        match operator, left, right:
            case "*", (str() | list() | tuple()), int():
                _check_size(len(left) * right)
            case "*", int(), (str() | list() | tuple()):
                _check_size(left * len(right))
            case "+", (str() | list() | tuple()), (str() | list() | tuple()):
                _check_size(len(left) + len(right))
            case "**", _, _ if abs(right) > MAX_POWER:
                raise SecurityError(f"a power above {MAX_POWER}")
            case "%", str(), _:
                raise SecurityError("% on a text; templates may use ~ or format")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's part for training; here it is plain text."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> _Sandbox:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
    return environment


def _joined(parts: Iterable[str]) -> str:
    text: list[str] = []
    size = 0
    for part in parts:
        size += len(part)
        _check_size(size)
        text.append(part)
    return "".join(text)


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise SecurityError(f"it wrote more than {MAX_CHARACTERS} characters")


def _describe(error: Exception) -> str:
    return f"{error}" or type(error).__name__


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateRuntimeError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
