"""Reads one answer as its text comes: what is reasoning, what is text, what calls a tool. Pure but for the ids.

Invariant: at the end, what was read is in the text, the reasoning and the calls; a call is told with its index, id
and name before its arguments, and every call but a broken one has a JSON object for arguments.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

from ocak.core.events import CallPiece
from ocak.worker.formats.calls import CallSplitter
from ocak.worker.formats.pieces import Arguments, CallBegins, CallBroken, CallEnds, Piece, Text
from ocak.worker.formats.reasoning import ReasoningSplitter


@dataclass(frozen=True, slots=True)
class Reading:
    """What became known with the latest text."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


class AnswerReader:
    """`pushed` is what the prompt already wrote of the answer; it is read before anything else."""

    def __init__(
        self,
        reasoning: ReasoningSplitter | None,
        calls: CallSplitter | None,
        new_id: Callable[[], str],
        *,
        pushed: str = "",
        is_reasoning_told: bool = True,
    ) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._new_id = new_id
        self._is_reasoning_told = is_reasoning_told
        self._num_begun = 0
        self._pending = self._split(pushed, is_end=False) if pushed else Reading()

    @property
    def has_calls(self) -> bool:
        """Whether a whole call was read."""
        return self._calls is not None and self._calls.has_calls

    @property
    def is_over(self) -> bool:
        """Whether the request wants nothing more of this answer."""
        return self._calls is not None and self._calls.is_over

    def read(self, text: str, *, is_end: bool = False) -> Reading:
        before, self._pending = self._pending, Reading()
        found = self._split(text, is_end=is_end)
        return Reading(before.text + found.text, before.reasoning + found.reasoning, before.calls + found.calls)

    def _split(self, text: str, *, is_end: bool) -> Reading:
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
            if is_end:
                last, rest = self._reasoning.finish()
                reasoning, text = reasoning + last, text + rest
        told = reasoning if self._is_reasoning_told else ""
        if self._calls is None:
            return Reading(text, told)
        pieces = self._calls.push(text)
        if is_end:
            pieces += self._calls.finish()
        shown = "".join(piece.text for piece in pieces if isinstance(piece, Text))
        return Reading(shown, told, tuple(call for piece in pieces for call in self._numbered(piece)))

    def _numbered(self, piece: Piece) -> tuple[CallPiece, ...]:
        match piece:
            case CallBegins(name):
                self._num_begun += 1
                return (CallPiece(self._num_begun - 1, id=self._new_id(), name=name),)
            case Arguments(text):
                return (CallPiece(self._num_begun - 1, arguments=text),)
            case CallBroken():
                return (CallPiece(self._num_begun - 1, is_broken=True),)
            case CallEnds() | Text():
                return ()


def openai_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def mistral_id() -> str:
    """Nine letters and digits: templates of Mistral's refuse others."""
    return secrets.token_hex(5)[:9]
