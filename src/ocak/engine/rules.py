"""Which tokens an answer may hold, whatever the model makes of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a request rules out, in token ids of the model's vocabulary."""

    allowed: frozenset[int] | None = None  # None: every token
    bad_words: frozenset[tuple[int, ...]] = frozenset()  # no answer holds one of these runs of tokens
    end_tokens: frozenset[int] = frozenset()  # not to come before `min_tokens` others
    min_tokens: int = 0

    @property
    def is_void(self) -> bool:
        """Nothing is ruled out."""
        return self.allowed is None and not self.bad_words and not (self.min_tokens and self.end_tokens)

    def leaves_a_token(self, num_vocab: int) -> bool:
        """Whether a token may begin the answer; there the rules are strictest, longer words apart."""
        banned = {word[0] for word in self.bad_words if len(word) == 1}
        if self.min_tokens:
            banned |= self.end_tokens
        candidates: Iterable[int] = range(num_vocab) if self.allowed is None else self.allowed
        return any(token not in banned for token in candidates)


NO_RULES = TokenRules()
