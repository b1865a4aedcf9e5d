"""Decides when a worker counts as ready, when it is replaced, and how soon. Pure: it is told the times."""

from __future__ import annotations

from dataclasses import dataclass

SILENT_NOT_READY_S = 3.0  # heartbeats come twice a second
SILENT_REPLACED_S = 8.0
STUCK_REPLACED_S = 120.0  # one step or one template that long is no work any more
STABLE_S = 60.0  # a worker that lived this long did not die of its start
MAX_FAILED_STARTS = 4
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the front knows of a worker's health."""

    silence_s: float  # since its last word
    stuck_s: float  # age of what it was doing then

    @property
    def is_alive(self) -> bool:
        return self.silence_s < SILENT_NOT_READY_S

    @property
    def replacement_reason(self) -> str | None:
        """Why the worker must be replaced; None while it need not."""
        if self.silence_s >= SILENT_REPLACED_S:
            return f"the worker has been silent for {self.silence_s:.0f} s"
        if self.stuck_s >= STUCK_REPLACED_S:
            return f"the worker has been stuck in one step for {self.stuck_s:.0f} s"
        return None


def failed_starts(before: int, lived_s: float) -> int:
    """Count one more early end; a worker that was stable starts the count again."""
    return 1 if lived_s >= STABLE_S else before + 1


def restart_delay_s(num_failed_starts: int) -> float | None:
    """How long to wait before the next start: none at first, then doubling; None: give up."""
    if num_failed_starts > MAX_FAILED_STARTS:
        return None
    if num_failed_starts <= 1:
        return 0.0
    return min(MAX_DELAY_S, FIRST_DELAY_S * float(2 ** (num_failed_starts - 1)))
