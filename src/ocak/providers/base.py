"""The one protocol of everything that answers a request: embedded engines, other servers, and fakes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from ocak.core.embedding import EmbedEvent, EmbedRequest
from ocak.core.events import Event
from ocak.core.request import GenerateRequest


class Provider(Protocol):
    def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield the answer's events; raise an `OcakError` when it cannot go on.

        Closing the iterator cancels the request: whatever it held is given back.
        """
        ...

    def embed(self, request: EmbedRequest) -> AsyncGenerator[EmbedEvent, None]:
        """Yield `Started`, then `Embedded`; fails and is cancelled as `stream` is."""
        ...
