"""Renders a model's chat template. It comes from the model file and is not trusted: it runs in a sandbox, its
output and the texts that operators make are bounded, and a stopwatch tells the fleet of one that never returns.

Not bounded: what filters make (`center`, `indent`); such a template ends its worker, and nothing else.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ocak.core.errors import InvalidRequest, LoadFailed
from ocak.core.request import Message, Tool
from ocak.worker.formats.styles import knows_tools
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.turns import Turn, as_tools, as_turns, in_plain_text

MAX_CHARACTERS = 32 * 1024 * 1024
MAX_POWER = 64  # of an exponent
MAX_INDENT = 16  # of JSON

TemplateValue = str | int | float | bool


class ChatTemplate:
    def __init__(self, source: str, constants: Mapping[str, TemplateValue], watch: Stopwatch) -> None:
        """Compile `source`; `constants` (BOS, EOS, configured arguments) are given to every rendering.

        Raises `LoadFailed`.
        """
        self.source = source
        self._constants = dict(constants)
        self._watch = watch
        try:
            with watch.running():
                self._template = _environment().from_string(source)
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it does wrong is its own
            raise LoadFailed(f"the chat template does not compile: {_describe(error)}") from error

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """Return the conversation as the model wants to read it, ready for the assistant's turn.

        What the template refuses in one shape is tried in the next. Raises `InvalidRequest`, with the first
        refusal, when it takes these messages in none.
        """
        shapes = self._shapes(messages, tools)
        try:
            return self._render(next(shapes))
        except Exception as error:  # noqa: BLE001 - foreign code: whatever it does wrong is its own
            for shape in shapes:
                with suppress(Exception):
                    return self._render(shape)
            raise InvalidRequest(
                f"the model's chat template refused these messages: {_describe(error)}", param="messages"
            ) from error

    def _shapes(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[Turn]:
        """Yield what the template reads, the usual shape first."""
        has_calls = any(message.tool_calls for message in messages)
        if knows_tools(self.source):
            given = {"tools": as_tools(tools)}
            yield {"messages": as_turns(messages), **given}
            if has_calls:
                yield {"messages": as_turns(messages, text_arguments=True), **given}
            return
        yield {"messages": as_turns(in_plain_text(messages, tools))}
        if tools:  # some know no system message
            yield {"messages": as_turns(in_plain_text(messages, tools, role="user"))}

    def _render(self, shape: Turn) -> str:
        with self._watch.running():
            return _joined(self._template.generate({**self._constants, **shape, "add_generation_prompt": True}))


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
    environment.filters["tojson"] = _tojson
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


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates get it: jinja's own sorts keys, and escapes for web pages."""
    if indent is not None and not 0 <= indent <= MAX_INDENT:
        raise SecurityError(f"an indent above {MAX_INDENT}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
