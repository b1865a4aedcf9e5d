"""Decides who may wait. Bounded in requests and in prompt bytes; a refusal costs no rendering and no tokenizer.

Invariant: `enter` and `leave` come in pairs, so `in_flight` returns to 0 when nobody is served.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ocak.core.errors import Overloaded

PATIENT_SHARE = 0.75  # of the queue, for what would rather wait than be refused
SMOOTHING = 0.2  # weight of the newest request in the average duration


@dataclass(frozen=True, slots=True)
class QueueLimits:
    parallel: int  # requests served at once
    max_queued: int = 128  # requests that may wait beyond them
    max_queued_bytes: int = 64 * 1024 * 1024  # of prompts, waiting and served


class Admission:
    """The bounded queue in front of one model."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._average_s = 1.0
        self.in_flight = 0
        self.bytes_in_flight = 0

    def enter(self, prompt_bytes: int, *, is_patient: bool = False) -> None:
        """Take a place, or raise `Overloaded` with an estimate of when one is free.

        One that is patient takes none of the last places: lists, however many, do not shut others out.
        """
        limits = self._limits
        if self.in_flight >= (self.patient_places if is_patient else self._places):
            raise Overloaded(
                f"{self.in_flight} requests are running or waiting, the limit (parallel {limits.parallel} + "
                f"max_queued {limits.max_queued}); try again later",
                retry_after_s=self.wait_estimate_s,
            )
        if self.in_flight and self.bytes_in_flight + prompt_bytes > limits.max_queued_bytes:
            raise Overloaded(
                f"the prompts in the queue would exceed {limits.max_queued_bytes} bytes; try again later",
                retry_after_s=self.wait_estimate_s,
            )
        self.in_flight += 1
        self.bytes_in_flight += prompt_bytes

    def leave(self, prompt_bytes: int, seconds: float | None = None) -> None:
        """Give the place back; a generation says how many `seconds` it took, its wait included."""
        self.in_flight -= 1
        self.bytes_in_flight -= prompt_bytes
        if seconds is not None:
            self._average_s += SMOOTHING * (seconds - self._average_s)

    @property
    def patient_places(self) -> int:
        """How many of those that are patient may be in flight."""
        return max(1, int(self._places * PATIENT_SHARE))

    @property
    def _places(self) -> int:
        return self._limits.parallel + self._limits.max_queued

    @contextmanager
    def place(self, prompt_bytes: int) -> Iterator[None]:
        """Hold a place for a block of code. Raises `Overloaded`."""
        self.enter(prompt_bytes)
        try:
            yield
        finally:
            self.leave(prompt_bytes)

    @property
    def wait_estimate_s(self) -> float:
        """About how long until a place is free: one request leaves every average / in-flight seconds."""
        return max(1.0, self._average_s / max(1, self.in_flight))
