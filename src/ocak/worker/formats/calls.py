"""Finds calls in the text of an answer, whatever pieces it comes in. Knows no tokens.

Invariant: nothing is lost. What is no call, or turns out to be none, comes out as text, character for character;
only the marks of real calls and the blanks around them go. However the text is cut, the same comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ocak.worker.formats.bodies import Body, MakeBody, Parameters
from ocak.worker.formats.pieces import CallBegins, CallBroken, CallEnds, Piece, Text, merged
from ocak.worker.text import overlap

BETWEEN_BARE = " \t\r\n;,"


@dataclass(frozen=True, slots=True)
class CallMarks:
    """Where a call stands: between two marks, or `is_bare`, at the beginning of the answer or behind a call."""

    opener: str
    closer: str
    make_body: MakeBody
    is_bare: bool = False


class CallSplitter:
    """`is_single` ends the answer with its first call: `is_over`."""

    def __init__(self, marks: CallMarks, tools: Parameters, *, is_single: bool = False) -> None:
        self.is_over = False
        self.has_calls = False
        self._marks = marks
        self._tools = tools
        self._is_single = is_single
        self._state: Literal["bare", "text", "body", "closing"] = "bare" if marks.is_bare else "text"
        self._held = ""  # not read yet
        self._raw: list[str] = []  # of the call that is being read, as it was written
        self._body: Body
        self._has_begun = False

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while not self.is_over and self._advance(pieces):
            pass
        return merged(pieces)

    def finish(self) -> list[Piece]:
        """The answer is at its end: what is not whole is text."""
        pieces: list[Piece] = []
        if self.is_over:
            return pieces
        if self._state == "body":
            self._break(pieces)
        elif self._state != "closing" and not (self.has_calls and self._held.isspace()):
            pieces.append(Text(self._held))
        self._held = ""
        return merged(pieces)

    def _advance(self, pieces: list[Piece]) -> bool:
        """Go one step on; return whether there may be more to do with what is held."""
        match self._state:
            case "bare":
                return self._look_for_bare()
            case "text":
                return self._look_for_opener(pieces)
            case "body":
                return self._read_body(pieces)
            case "closing":
                return self._skip_closer()

    def _look_for_bare(self) -> bool:
        rest = self._held.lstrip(BETWEEN_BARE if self.has_calls else None)
        if not rest:
            return False
        if rest[0] in "{[":
            self._enter(0, len(self._held) - len(rest))
        else:
            self._state = "text"
        return True

    def _look_for_opener(self, pieces: list[Piece]) -> bool:
        opener = self._marks.opener
        at = self._held.find(opener)
        if at < 0:
            safe = len(self._held[: len(self._held) - overlap(self._held, opener)].rstrip())
            pieces.append(Text(self._held[:safe]))
            self._held = self._held[safe:]
            return False
        before = len(self._held[:at].rstrip())
        pieces.append(Text(self._held[:before]))
        self._enter(before, at + len(opener))
        return True

    def _enter(self, raw_at: int, body_at: int) -> None:
        self._raw = [self._held[raw_at:body_at]]
        self._held = self._held[body_at:]
        self._body = self._marks.make_body(self._tools)
        self._state, self._has_begun = "body", False

    def _read_body(self, pieces: list[Piece]) -> bool:
        at = 0
        while at < len(self._held):
            length = self._body.run(self._held, at)
            progress = "more" if length else self._body.feed(self._held[at])
            if progress == "broken":
                self._held = self._held[at:]
                self._break(pieces)
                return True
            end = at + max(1, length)
            self._raw.append(self._held[at:end])
            self._take(pieces)
            if progress == "done" or self.is_over:
                self._held = self._held[end:]
                self._state = "closing"
                return True
            at = end
        self._held = ""
        return False

    def _take(self, pieces: list[Piece]) -> None:
        """Take what the body has found; behind each whole call the next may begin."""
        for piece in self._body.pieces:
            pieces.append(piece)
            if isinstance(piece, CallBegins):
                self._has_begun = True
            elif isinstance(piece, CallEnds):
                self._has_begun, self._raw, self.has_calls = False, [], True
                self.is_over = self._is_single
        self._body.pieces.clear()

    def _break(self, pieces: list[Piece]) -> None:
        if self._has_begun:
            pieces.append(CallBroken())
        pieces.append(Text("".join(self._raw)))
        self._raw, self._state = [], "text"

    def _skip_closer(self) -> bool:
        """Models leave the mark out at times; then the text goes on."""
        rest, closer = self._held.lstrip(), self._marks.closer
        if closer and len(rest) < len(closer) and closer.startswith(rest):
            return False
        self._held = rest[len(closer) :] if closer and rest.startswith(closer) else self._held
        self._state = "bare" if self._marks.is_bare else "text"
        return True
