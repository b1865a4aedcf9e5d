"""Puts the calls of an answer together out of their pieces. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ocak.core.events import CallPiece
from ocak.core.request import ToolCall


class CollectedCalls:
    def __init__(self) -> None:
        self._pieces: dict[int, list[CallPiece]] = {}

    def add(self, pieces: Iterable[CallPiece]) -> None:
        """Take the next pieces; one that is broken takes its call back."""
        for piece in pieces:
            if piece.is_broken:
                self._pieces.pop(piece.index, None)
            else:
                self._pieces.setdefault(piece.index, []).append(piece)

    def whole(self) -> tuple[ToolCall, ...]:
        """Return the calls in the order they were made."""
        return tuple(
            ToolCall(pieces[0].id, pieces[0].name, "".join(piece.arguments for piece in pieces))
            for _, pieces in sorted(self._pieces.items())
        )
