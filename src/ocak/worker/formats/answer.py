"""Reads one answer as its text comes: what is reasoning, what is text, what calls a tool. Pure but for the ids.

Invariant: at the end, what was read is in the text, the reasoning and the calls; a call is told with its index, id
and name before its arguments, and every call but a broken one has a JSON object for arguments.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ocak.core.events import CallPiece
from ocak.worker.formats.pieces import Arguments, CallBegins, CallBroken, CallEnds, Piece, Reasoning, Text
from ocak.worker.formats.reasoning import ReasoningSplitter


@dataclass(frozen=True, slots=True)
class Reading:
    """What became known with the latest text."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


class Splitter(Protocol):
    """Splits the text of an answer. `has_calls`: a whole one; `is_over`: nothing more of the answer is wanted."""

    @property
    def has_calls(self) -> bool: ...

    @property
    def is_over(self) -> bool: ...

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class InTurn:
    """Reasoning first, then text and calls; either may be missing."""

    def __init__(self, reasoning: ReasoningSplitter | None, calls: Splitter | None) -> None:
        self._reasoning = reasoning
        self._calls = calls

    @property
    def has_calls(self) -> bool:
        return self._calls is not None and self._calls.has_calls

    @property
    def is_over(self) -> bool:
        return self._calls is not None and self._calls.is_over

    def push(self, text: str) -> list[Piece]:
        reasoning, text = ("", text) if self._reasoning is None else self._reasoning.push(text)
        return [Reasoning(reasoning), *self._split(text)]

    def finish(self) -> list[Piece]:
        reasoning, text = ("", "") if self._reasoning is None else self._reasoning.finish()
        pieces = [Reasoning(reasoning), *self._split(text)]
        return pieces if self._calls is None else pieces + self._calls.finish()

    def _split(self, text: str) -> list[Piece]:
        return [Text(text)] if self._calls is None else self._calls.push(text)


class AnswerReader:
    """`pushed` is what the prompt already wrote of the answer; it is read before anything else."""

    def __init__(
        self, splitter: Splitter, new_id: Callable[[], str], *, pushed: str = "", is_reasoning_told: bool = True
    ) -> None:
        self._splitter = splitter
        self._new_id = new_id
        self._is_reasoning_told = is_reasoning_told
        self._num_begun = 0
        self._pending = splitter.push(pushed)

    @property
    def has_calls(self) -> bool:
        """Whether a whole call was read."""
        return self._splitter.has_calls

    @property
    def is_over(self) -> bool:
        """Whether the request wants nothing more of this answer."""
        return self._splitter.is_over

    def read(self, text: str, *, is_end: bool = False) -> Reading:
        pieces = [*self._pending, *self._splitter.push(text)]
        self._pending = []
        if is_end:
            pieces += self._splitter.finish()
        reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
        return Reading(
            text="".join(piece.text for piece in pieces if isinstance(piece, Text)),
            reasoning=reasoning if self._is_reasoning_told else "",
            calls=tuple(call for piece in pieces for call in self._numbered(piece)),
        )

    def _numbered(self, piece: Piece) -> tuple[CallPiece, ...]:
        match piece:
            case CallBegins(name):
                self._num_begun += 1
                return (CallPiece(self._num_begun - 1, id=self._new_id(), name=name),)
            case Arguments(text):
                return (CallPiece(self._num_begun - 1, arguments=text),)
            case CallBroken():
                return (CallPiece(self._num_begun - 1, is_broken=True),)
            case CallEnds() | Text() | Reasoning():
                return ()


def openai_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def mistral_id() -> str:
    """Nine letters and digits: templates of Mistral's refuse others."""
    return secrets.token_hex(5)[:9]
