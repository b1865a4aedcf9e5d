"""Tells what a prompt's own tokens would have cost: their log-probabilities, in the order of the tokens.

Special tokens count with the text that they are written with, as in an echo. The first token's is unknown.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence

from ocak.core.errors import InvalidRequest
from ocak.core.events import LikelyToken, PromptToken
from ocak.core.limits import MAX_PROMPT_LOGPROBS
from ocak.engine.runner import Logprobs


class PromptReport:
    """`piece` and `name` give a token's bytes as text, and a special token's name."""

    def __init__(self, piece: Callable[[int], bytes], name: Callable[[int], str], tokens: Sequence[int]) -> None:
        self._piece = piece
        self._name = name
        self._tokens = tuple(tokens)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0
        self._num_told = 0

    @property
    def is_complete(self) -> bool:
        return self._num_told == len(self._tokens)

    def tell(self, logprobs: Sequence[Logprobs]) -> tuple[PromptToken, ...]:
        """Return the next tokens, whose log-probabilities these are; the first comes with the first call."""
        first = () if self._num_told else (self._next(None),)
        return (*first, *map(self._next, logprobs))

    def _next(self, logprobs: Logprobs | None) -> PromptToken:
        token = self._tokens[self._num_told]
        self._num_told += 1
        start = self._num_characters
        likely = self._likely(token, 0.0 if logprobs is None else logprobs.token)
        self._num_characters += len(self._decoder.decode(likely.piece or likely.name.encode()))
        if logprobs is None:
            return PromptToken(token, likely, start)
        best = tuple((other, self._likely(other, value)) for other, value in logprobs.likeliest)
        return PromptToken(token, likely, start, logprobs.rank, best)

    def _likely(self, token: int, logprob: float) -> LikelyToken:
        piece = self._piece(token)
        return LikelyToken(piece, logprob, "" if piece else self._name(token))


def check_size(num_tokens: int, count: int) -> None:
    """Raise `InvalidRequest` for more log-probabilities than an answer should carry."""
    total = num_tokens * (count + 1)
    if total > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"the prompt's {num_tokens} tokens with {count} of the likeliest beside each are {total} "
            f"log-probabilities; at most {MAX_PROMPT_LOGPROBS} are told: ask for fewer, or send a shorter prompt",
            param="prompt_logprobs",
        )
