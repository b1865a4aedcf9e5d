"""Writes the log-probabilities of tokens in OpenAI's two shapes, and reads how many are asked for. Pure.

A part of a character is shown by its bytes, as OpenAI does: `\\xf0\\x9f`, in completions `bytes:\\xf0\\x9f`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ocak.api.openai_wire import (
    ChatBody,
    ChatLogprobs,
    ChatTokenLogprob,
    CommonBody,
    CompletionBody,
    CompletionLogprobs,
    LikelyTokenBody,
    RankedTokenBody,
)
from ocak.core.errors import InvalidRequest
from ocak.core.events import LikelyToken, PromptToken, TokenLogprob
from ocak.core.limits import LOGPROBS_RANGE


def completion_count(body: CompletionBody) -> int | None:
    """Return how many of the likeliest tokens a completion asks for; None: no log-probabilities at all."""
    if body.logprobs is None:
        return None
    LOGPROBS_RANGE.check("logprobs", body.logprobs)
    return body.logprobs


def prompt_count(body: CommonBody, echoed: int | None = None) -> int | None:
    """Return how many of the likeliest to tell beside the prompt's tokens; `echoed` are wanted in any case."""
    if body.prompt_logprobs is None:
        return echoed
    LOGPROBS_RANGE.check("prompt_logprobs", body.prompt_logprobs)
    if body.stream:
        raise InvalidRequest(
            "prompt_logprobs come with a whole answer; leave stream out, or send echo with logprobs",
            param="prompt_logprobs",
        )
    return max(body.prompt_logprobs, echoed or 0)


def chat_count(body: ChatBody) -> int | None:
    """Return how many of the likeliest tokens a chat asks for; None: no log-probabilities at all."""
    count = body.top_logprobs or 0
    LOGPROBS_RANGE.check("top_logprobs", count)
    if body.logprobs:
        return count
    if count:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return None


def completion_logprobs(
    tokens: Sequence[TokenLogprob], prompt: Sequence[PromptToken] = (), count: int = 0
) -> CompletionLogprobs:
    """Return those of an answer, behind those of an echoed prompt with `count` of the likeliest."""
    return CompletionLogprobs(
        tokens=[
            *(_completion_name(token.token) for token in prompt),
            *(_completion_name(t.token) for t in tokens),
        ],
        token_logprobs=[*map(_prompt_value, prompt), *(token.token.logprob for token in tokens)],
        top_logprobs=[*(_prompt_by_name(token, count) for token in prompt), *map(_by_name, tokens)],
        text_offset=[*(token.start for token in prompt), *(token.start for token in tokens)],
    )


def prompt_logprobs(tokens: Sequence[PromptToken], count: int) -> list[dict[str, RankedTokenBody] | None]:
    """Return them as vLLM does, by token id, with `count` of the likeliest."""
    return [_by_id(token, count) if token.rank else None for token in tokens]


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            ChatTokenLogprob(_name(t.token), t.token.logprob, _bytes(t.token), [_body(x) for x in t.likeliest])
            for t in tokens
        ]
    )


def _by_name(token: TokenLogprob) -> dict[str, float]:
    return _named((*token.likeliest, token.token))


def _named(likeliest: Sequence[LikelyToken]) -> dict[str, float]:
    """Of tokens that are written alike, the likeliest stays."""
    found: dict[str, float] = {}
    for likely in likeliest:
        found.setdefault(_completion_name(likely), likely.logprob)
    return found


def _prompt_value(token: PromptToken) -> float | None:
    return token.token.logprob if token.rank else None


def _prompt_by_name(token: PromptToken, count: int) -> dict[str, float] | None:
    likeliest = [likely for _, likely in token.likeliest[:count]]
    return _named((*likeliest, token.token)) if token.rank else None


def _by_id(token: PromptToken, count: int) -> dict[str, RankedTokenBody]:
    ranked = [(token.id, token.token, token.rank)]
    ranked += [(other, likely, rank) for rank, (other, likely) in enumerate(token.likeliest[:count], start=1)]
    return {str(other): RankedTokenBody(likely.logprob, rank, _name(likely)) for other, likely, rank in ranked}


def _body(token: LikelyToken) -> LikelyTokenBody:
    return LikelyTokenBody(_name(token), token.logprob, _bytes(token))


def _bytes(token: LikelyToken) -> list[int] | None:
    return list(token.piece) or None


def _name(token: LikelyToken) -> str:
    return token.name or token.piece.decode("utf-8", "backslashreplace")


def _completion_name(token: LikelyToken) -> str:
    name = _name(token)
    return name if token.name or name.encode() == token.piece else f"bytes:{name}"
