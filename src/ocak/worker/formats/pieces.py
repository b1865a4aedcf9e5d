"""What reading an answer yields: text, reasoning, and the parts of calls, in the order they were written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegins:
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A part of the JSON text of a call's arguments."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnds:
    """The call is whole, and its arguments are a JSON object."""


@dataclass(frozen=True, slots=True)
class CallBroken:
    """What had begun as a call is none; its text follows as `Text`."""


Piece = Text | Reasoning | CallBegins | Arguments | CallEnds | CallBroken


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the same with neighbouring texts and arguments joined, and empty ones left out."""
    joined: list[Piece] = []
    for piece in pieces:
        match joined[-1] if joined else None, piece:
            case (_, Text("") | Reasoning("") | Arguments("")):
                pass
            case Text(before), Text(text):
                joined[-1] = Text(before + text)
            case Reasoning(before), Reasoning(text):
                joined[-1] = Reasoning(before + text)
            case Arguments(before), Arguments(text):
                joined[-1] = Arguments(before + text)
            case _:
                joined.append(piece)
    return joined
