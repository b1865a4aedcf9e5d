"""Splits off what a model thinks before it answers, whatever pieces its text comes in.

Reasoning stands between two marks at the beginning of an answer; an answer may begin behind the first of them.
Blanks around the marks go. Without a closing mark all is reasoning; without an opening one, nothing is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ocak.worker.text import overlap


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    opener: str
    closer: str


class ReasoningSplitter:
    def __init__(self, marks: ReasoningMarks, *, is_inside: bool) -> None:
        self._marks = marks
        self._state: Literal["start", "leading", "inside", "gap", "outside"] = "leading" if is_inside else "start"
        self._held = ""

    @property
    def is_over(self) -> bool:
        """Whether everything from here on is the answer itself."""
        return self._state == "outside"

    def push(self, text: str) -> tuple[str, str]:
        """Return what is known by now: reasoning, and text."""
        self._held += text
        reasoning = ""
        if self._state == "start":
            self._look_for_opener()
        if self._state == "leading":
            self._skip_blanks("inside")
        if self._state == "inside":
            reasoning = self._read_inside()
        if self._state == "gap":
            self._skip_blanks("outside")
        if self._state != "outside":
            return reasoning, ""
        held, self._held = self._held, ""
        return reasoning, held

    def finish(self) -> tuple[str, str]:
        """Return what was held back; the answer is at its end."""
        held, self._held = self._held, ""
        if self._state == "inside":
            return held.rstrip(), ""
        return "", held if self._state == "start" else ""

    def _look_for_opener(self) -> None:
        """See how the answer begins, once that is clear."""
        rest, opener = self._held.lstrip(), self._marks.opener
        if rest.startswith(opener):
            self._held, self._state = rest[len(opener) :], "leading"
        elif not opener.startswith(rest):
            self._state = "outside"

    def _skip_blanks(self, following: Literal["inside", "outside"]) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._state = following

    def _read_inside(self) -> str:
        closer = self._marks.closer
        at = self._held.find(closer)
        if at >= 0:
            reasoning = self._held[:at].rstrip()
            self._held, self._state = self._held[at + len(closer) :], "gap"
            return reasoning
        safe = len(self._held[: len(self._held) - overlap(self._held, closer)].rstrip())
        reasoning, self._held = self._held[:safe], self._held[safe:]
        return reasoning
