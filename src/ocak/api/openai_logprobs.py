"""Writes the log-probabilities of tokens in OpenAI's two shapes, and reads how many are asked for. Pure.

A part of a character is shown by its bytes, as OpenAI does: `\\xf0\\x9f`, in completions `bytes:\\xf0\\x9f`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ocak.api.errors import UnsupportedParameter
from ocak.api.openai_wire import (
    ChatBody,
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionBody,
    CompletionLogprobs,
    LikelyTokenBody,
)
from ocak.core.errors import InvalidRequest
from ocak.core.events import LikelyToken, TokenLogprob
from ocak.core.limits import LOGPROBS_RANGE


def completion_count(body: CompletionBody) -> int | None:
    """Return how many of the likeliest tokens a completion asks for; None: no log-probabilities at all."""
    if body.logprobs is None:
        return None
    LOGPROBS_RANGE.check("logprobs", body.logprobs)
    if body.echo:
        raise UnsupportedParameter(
            "logprobs with echo would need those of the prompt, which are not computed; send one of the two",
            param="logprobs",
        )
    return body.logprobs


def chat_count(body: ChatBody) -> int | None:
    """Return how many of the likeliest tokens a chat asks for; None: no log-probabilities at all."""
    count = body.top_logprobs or 0
    LOGPROBS_RANGE.check("top_logprobs", count)
    if body.logprobs:
        return count
    if count:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    return None


def completion_logprobs(tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[_completion_name(token.token) for token in tokens],
        token_logprobs=[token.token.logprob for token in tokens],
        top_logprobs=[_by_name(token) for token in tokens],
        text_offset=[token.start for token in tokens],
    )


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            ChatTokenLogprob(_name(t.token), t.token.logprob, _bytes(t.token), [_body(x) for x in t.likeliest])
            for t in tokens
        ]
    )


def _by_name(token: TokenLogprob) -> dict[str, float]:
    """Of tokens that are written alike, the likeliest stays."""
    found: dict[str, float] = {}
    for likely in (*token.likeliest, token.token):
        found.setdefault(_completion_name(likely), likely.logprob)
    return found


def _body(token: LikelyToken) -> LikelyTokenBody:
    return LikelyTokenBody(_name(token), token.logprob, _bytes(token))


def _bytes(token: LikelyToken) -> list[int] | None:
    return list(token.piece) or None


def _name(token: LikelyToken) -> str:
    return token.name or token.piece.decode("utf-8", "backslashreplace")


def _completion_name(token: LikelyToken) -> str:
    name = _name(token)
    return name if token.name or name.encode() == token.piece else f"bytes:{name}"
