"""Where a model is in its life, why, and who waits for that to change. Its owner alone moves it on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ocak.core.errors import ModelUnavailable
from ocak.core.residence import ModelState

logger = logging.getLogger("ocak.fleet")

RETRY_AFTER_S = 5.0


class Stage:
    def __init__(self, key: str, *, is_expected: bool) -> None:
        self._key = key
        self._changed = asyncio.Condition()
        self.state: ModelState = "unloaded"
        self.error: str | None = None  # why it failed, is restarting, or was not loaded
        self.is_expected = is_expected  # to be ready without being asked

    def begin(self, state: ModelState) -> None:
        """Leave a stage for one that nobody waits for."""
        self.state, self.error = state, None
        if state == "draining":
            self.is_expected = False

    async def enter(self, state: ModelState, error: str | None = None) -> None:
        """Move on, and tell who waits."""
        self.state, self.error = state, error
        if state in ("ready", "unloaded"):
            self.is_expected = state == "ready"
        log = logger.error if state == "failed" else logger.info
        log("%s: %s%s", self._key, state, f" ({error})" if error else "")
        async with self._changed:
            self._changed.notify_all()

    async def until(self, is_there: Callable[[ModelState], bool]) -> None:
        """Wait for a stage."""
        async with self._changed:
            await self._changed.wait_for(lambda: is_there(self.state))

    def unavailable(self) -> ModelUnavailable:
        """What is told to who asks for the model now."""
        detail = f": {self.error}" if self.error else ""
        retry_after_s = None if self.state == "failed" else RETRY_AFTER_S
        return ModelUnavailable(
            f"model {self._key!r} is {self.state}{detail}", param="model", retry_after_s=retry_after_s
        )
