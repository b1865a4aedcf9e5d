"""Keeps a chat's history and prints answers as they come. Knows no keyboard and no model.

Invariant: the history holds what was said, the seen part of a stopped answer included, and nothing of a
question that failed.
"""

from __future__ import annotations

import re
import sys
from contextlib import aclosing
from typing import TextIO

from ocak.cli.answers import AnswerOptions, Answers
from ocak.core.events import Delta
from ocak.core.request import Message

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # no answer moves the cursor or sets the title
DIM = "\x1b[2m{}\x1b[22m"


class Conversation:
    def __init__(self, answers: Answers, options: AnswerOptions, out: TextIO | None = None) -> None:
        self._answers = answers
        self._options = options
        self._out = out or sys.stdout
        self._is_thinking = False  # reasoning was shown, and no text behind it yet
        self.messages: list[Message] = []
        self.clear()

    def clear(self) -> None:
        """Forget everything but the system message."""
        system = self._options.system
        self.messages = [Message("system", system)] if system else []

    async def ask(self, question: str) -> None:
        """Print the answer and remember it; a cancelled one as far as it was seen."""
        asked = [*self.messages, Message("user", question)]
        seen: list[str] = []
        try:
            await self._print_answer(asked, seen)
        finally:
            if any(seen):
                self.messages = [*asked, Message("assistant", "".join(seen))]

    async def _print_answer(self, asked: list[Message], seen: list[str]) -> None:
        async with aclosing(self._answers.stream(asked, self._options)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    seen.append(event.text)
                    self._show(event)
                elif event.reason == "length":
                    self._note("[stopped: the limit of tokens is reached]")
        self._write("\n")
        self._is_thinking = False

    def _show(self, delta: Delta) -> None:
        """Reasoning is for people to watch, dimmed, and no part of the answer."""
        if delta.reasoning and self._out.isatty():
            self._out.write(DIM.format(CONTROL.sub("", delta.reasoning)))
            self._out.flush()
            self._is_thinking = True
        if delta.text and self._is_thinking:
            self._write("\n\n")
            self._is_thinking = False
        self._write(delta.text)

    def _write(self, text: str) -> None:
        self._out.write(CONTROL.sub("", text) if self._out.isatty() else text)
        self._out.flush()

    def _note(self, text: str) -> None:
        sys.stdout.flush()
        print(f" {text}", end="", file=sys.stderr, flush=True)  # noqa: T201
