"""Renders a model's chat template. The template comes from the model file and is not trusted: it runs in a
sandbox, and neither its output nor its time is unbounded (a template that never returns is found by the fleet,
which replaces the worker).
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ocak.core.errors import InvalidRequest, LoadFailed
from ocak.core.request import Message

MAX_RENDERED_CHARACTERS = 32 * 1024 * 1024

TemplateValue = str | int | float | bool


class TemplateError(Exception):
    """The template itself gave up: `raise_exception('…')`."""


class ChatTemplate:
    def __init__(self, source: str, constants: Mapping[str, TemplateValue]) -> None:
        """Compile `source`; `constants` (BOS, EOS, configured arguments) are given to every rendering."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals.update(raise_exception=_raise, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise LoadFailed(
                f"the chat template does not compile: {error}; give another with --chat-template"
            ) from error
        self._constants = dict(constants)

    def render(self, messages: Sequence[Message]) -> str:
        """Return the conversation as the model wants to read it, ready for the assistant's turn."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        values = {**self._constants, "messages": turns, "add_generation_prompt": True}
        try:
            return _joined(self._template.generate(values))
        except (jinja2.TemplateError, TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidRequest(
                f"the model's chat template refused these messages: {error}", param="messages"
            ) from error


def _joined(parts: Iterable[str]) -> str:
    text: list[str] = []
    room = MAX_RENDERED_CHARACTERS
    for part in parts:
        room -= len(part)
        if room < 0:
            raise TemplateError(f"it wrote more than {MAX_RENDERED_CHARACTERS} characters")
        text.append(part)
    return "".join(text)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
