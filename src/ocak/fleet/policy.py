"""Decides when a worker counts as ready, when it is replaced, and how soon. Pure: it is told the times."""

from __future__ import annotations

from dataclasses import dataclass

SILENT_NOT_READY_S = 3.0  # heartbeats come twice a second
SILENT_REPLACED_S = 8.0
FIRST_WORD_S = 120.0  # importing libraries from a cold disk takes its time
STEP_REPLACED_S = 120.0  # one step that long is no work any more
TEMPLATE_REPLACED_S = 5.0  # no chat template takes that long
STABLE_S = 60.0  # a worker that lived this long did not die of its start
MAX_FAILED_STARTS = 4
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 30.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the front knows of a worker's health."""

    silence_s: float  # since its last word
    step_s: float = 0.0  # age of the step that ran then
    template_s: float = 0.0  # age of the chat template that ran then
    has_spoken: bool = True

    @property
    def is_alive(self) -> bool:
        return self.silence_s < SILENT_NOT_READY_S and self.template_s < TEMPLATE_REPLACED_S

    @property
    def replacement_reason(self) -> str | None:
        """Why the worker must be replaced; None while it need not."""
        if self.is_template_stuck:
            return f"the chat template has not returned for {self.template_s:.0f} s"
        if self.silence_s >= (SILENT_REPLACED_S if self.has_spoken else FIRST_WORD_S):
            return f"the worker has been silent for {self.silence_s:.0f} s"
        if self.step_s >= STEP_REPLACED_S:
            return f"the worker has been stuck in one step for {self.step_s:.0f} s"
        return None

    @property
    def is_template_stuck(self) -> bool:
        return self.template_s >= TEMPLATE_REPLACED_S


def early_ends(before: int, lived_s: float) -> int:
    """Count one more early end; a worker that was stable starts the count again."""
    return 1 if lived_s >= STABLE_S else before + 1


def restart_delay_s(num_early_ends: int, *, has_ever_been_ready: bool) -> float | None:
    """How long to wait before the next start: none at first, then doubling. None: give up.

    A model that has been served before is never given up: what ended its worker may pass.
    """
    if num_early_ends > MAX_FAILED_STARTS and not has_ever_been_ready:
        return None
    if num_early_ends <= 1:
        return 0.0
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(num_early_ends - 1, 16))
