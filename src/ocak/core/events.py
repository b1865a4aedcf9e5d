"""What a generation yields: `Started`, any number of `Delta`, then one `Finished`; a failure is raised instead."""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length"]


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    dropped_tokens: int = 0


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The prompt holds a slot: it is being computed."""

    prompt_tokens: int


class Delta(msgspec.Struct, frozen=True, tag="delta"):
    """Text that is whole UTF-8 and holds no part of a stop string; `num_tokens` tokens stand behind it."""

    text: str
    num_tokens: int


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    reason: FinishReason
    usage: Usage


Event = Started | Delta | Finished
