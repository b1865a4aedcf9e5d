"""What a step of the engine says of its sequences."""

from __future__ import annotations

from dataclasses import dataclass

from ocak.core.events import FinishReason
from ocak.engine.runner import Logprobs
from ocak.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Admitted:
    """The sequence holds a slot for the first time."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token followed; `reason` says why it was the last one, if it was; `logprobs` are there if asked for.

    `num_behind` tokens of the same answer came with it and follow.
    """

    sequence: Sequence
    token: int
    reason: FinishReason | None
    logprobs: Logprobs | None
    num_behind: int = 0


@dataclass(frozen=True, slots=True)
class Broken:
    """The sequence cannot go on."""

    sequence: Sequence
    message: str


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of the prompt's next tokens are known, from its second one on."""

    sequence: Sequence
    logprobs: tuple[Logprobs, ...]


Output = Admitted | Scored | Sampled | Broken
