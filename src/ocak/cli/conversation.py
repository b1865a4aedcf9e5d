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


class Conversation:
    def __init__(self, answers: Answers, options: AnswerOptions, out: TextIO | None = None) -> None:
        self._answers = answers
        self._options = options
        self._out = out or sys.stdout
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
            if seen:
                self.messages = [*asked, Message("assistant", "".join(seen))]

    async def _print_answer(self, asked: list[Message], seen: list[str]) -> None:
        async with aclosing(self._answers.stream(asked, self._options)) as events:
            async for event in events:
                if isinstance(event, Delta):
                    seen.append(event.text)
                    self._write(event.text)
                elif event.reason == "length":
                    self._note("[stopped: the limit of tokens is reached]")
        self._write("\n")

    def _write(self, text: str) -> None:
        self._out.write(CONTROL.sub("", text) if self._out.isatty() else text)
        self._out.flush()

    def _note(self, text: str) -> None:
        sys.stdout.flush()
        print(f" {text}", end="", file=sys.stderr, flush=True)  # noqa: T201
