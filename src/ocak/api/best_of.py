"""`n` and `best_of`: how many answers to each prompt are generated, and which of them are sent. Pure.

The best have the highest mean log-probability of their tokens, by the model's own distribution. An answer of which
nothing is shown has no mean and comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from ocak.api.openai_wire import CommonBody, CompletionBody
from ocak.core.errors import InvalidRequest
from ocak.gateway.gateway import Completion

MAX_N = 16


def num_sent(body: CommonBody) -> int:
    """Return how many answers to each prompt are sent. Raises `InvalidRequest`."""
    n = 1 if body.n is None else body.n
    if not 1 <= n <= MAX_N:
        raise InvalidRequest(f"n must be between 1 and {MAX_N}, not {n}", param="n")
    return n


def num_generated(body: CommonBody) -> int:
    """Return how many answers to each prompt are generated. Raises `InvalidRequest`."""
    n = num_sent(body)
    best_of = body.best_of if isinstance(body, CompletionBody) else None
    if best_of is None:
        return n
    if not n <= best_of <= MAX_N:
        raise InvalidRequest(
            f"best_of must be between n, which is {n}, and {MAX_N}, not {best_of}", param="best_of"
        )
    if best_of > n and body.stream:
        raise InvalidRequest(
            "best_of cannot be streamed, for the best answers are known at their end alone; leave out stream, or "
            "best_of",
            param="best_of",
        )
    return best_of


def best(completions: Sequence[Completion], best_of: int, n: int) -> list[Completion]:
    """Return the n best of each prompt's answers, the best first. They must have their log-probabilities."""
    groups = [completions[start : start + best_of] for start in range(0, len(completions), best_of)]
    return [one for group in groups for one in sorted(group, key=mean_logprob, reverse=True)[:n]]


def mean_logprob(completion: Completion) -> float:
    tokens = completion.logprobs or []
    return sum(token.token.logprob for token in tokens) / len(tokens) if tokens else -inf


def without_logprobs(completions: Sequence[Completion]) -> list[Completion]:
    return [msgspec.structs.replace(completion, logprobs=None) for completion in completions]
