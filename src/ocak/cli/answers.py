"""What `ocak run` needs of a model, be it here or on a server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from ocak.core.events import Delta, Finished
from ocak.core.request import Message


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """None: the model's or the server's own."""

    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None


class Answers(Protocol):
    async def open(self) -> None:
        """Make ready, or raise an `OcakError` that says why that is not possible."""
        ...

    def stream(
        self, messages: Sequence[Message], options: AnswerOptions
    ) -> AsyncGenerator[Delta | Finished, None]: ...

    async def close(self) -> None: ...
