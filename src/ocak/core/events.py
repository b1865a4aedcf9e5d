"""What a generation yields: `Started`, any number of `Delta`, then one `Finished`; a failure is raised instead.

`PromptScored` comes between, for those who asked for it; `Waiting` before it all, while the model is loaded.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ocak.core.residence import ModelState

FinishReason = Literal["stop", "length", "tool_calls"]


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    dropped_tokens: int = 0  # to fit the context: of the prompt, then of a long answer itself


class Waiting(msgspec.Struct, frozen=True, tag="waiting"):
    """The model is not ready: what becomes of it, and how much of its load is done, 0 to 1."""

    state: ModelState
    progress: float


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The prompt holds a slot: it is being computed; so many of its tokens will be gone when the answer begins."""

    prompt_tokens: int
    dropped_tokens: int = 0


class LikelyToken(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability: natural, finite, by the model's own distribution before any sampler.

    `piece` is what it adds to the text's bytes, perhaps a part of a character; `name` is how a special token,
    which adds nothing, is written.
    """

    piece: bytes
    logprob: float
    name: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token of the answer; `likeliest` has what could have stood there, best first, perhaps without it."""

    token: LikelyToken
    start: int  # characters of the answer before the one that it begins or goes on with
    likeliest: tuple[LikelyToken, ...] = ()


class PromptToken(msgspec.Struct, frozen=True, array_like=True):
    """A token of the prompt. The first has no log-probability: nothing comes before it."""

    id: int
    token: LikelyToken
    start: int  # characters of the prompt's text before the one that it begins or goes on with
    rank: int = 0  # 1: the likeliest; 0: the prompt's first
    likeliest: tuple[tuple[int, LikelyToken], ...] = ()  # ids beside, best first


class PromptScored(msgspec.Struct, frozen=True, tag="prompt_scored"):
    """The prompt's next tokens, in order, if they were asked for; all are told before the first `Delta`."""

    tokens: tuple[PromptToken, ...]


class CallPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of an answer's call number `index`: its id and name come first and once, then its arguments' text.

    `is_broken` takes the call back: it turned out to be none, and all that was written of it is in the text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    is_broken: bool = False


class Delta(msgspec.Struct, frozen=True, tag="delta", omit_defaults=True):
    """Text that is whole UTF-8 and holds no part of a stop string; `num_tokens` tokens stand behind it.

    `logprobs`, if asked for, has the tokens whose first character is in what the model wrote: its text, and
    what a chat's answer sets apart from it, reasoning and calls.
    """

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[CallPiece, ...] = ()


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    reason: FinishReason
    usage: Usage


Event = Waiting | Started | PromptScored | Delta | Finished
