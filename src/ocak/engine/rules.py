"""Which tokens an answer may hold, whatever the model makes of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class Grammar(Protocol):
    """A compiled grammar, shared by all answers that follow it. How one is followed, the runner knows."""

    def may_begin(self, token: int) -> bool:
        """Whether the token may be an answer's first."""
        ...


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a request rules out, in token ids of the model's vocabulary."""

    allowed: frozenset[int] | None = None  # None: every token
    bad_words: frozenset[tuple[int, ...]] = frozenset()  # no answer holds one of these runs of tokens
    end_tokens: frozenset[int] = frozenset()  # not to come before `min_tokens` others
    min_tokens: int = 0
    grammar: Grammar | None = None  # None: any token may follow any other
    avoided: frozenset[int] = frozenset()  # to come only where the grammar leaves nothing else

    @property
    def is_void(self) -> bool:
        """Nothing is ruled out."""
        withholds_ends = bool(self.min_tokens and self.end_tokens)
        return self.allowed is None and self.grammar is None and not self.bad_words and not withholds_ends

    def leaves_a_token(self, num_vocab: int) -> bool:
        """Whether a token may begin the answer; there the rules are strictest, longer words apart."""
        banned = {word[0] for word in self.bad_words if len(word) == 1}
        if self.min_tokens:
            banned |= self.end_tokens
        candidates: Iterable[int] = range(num_vocab) if self.allowed is None else self.allowed
        grammar = self.grammar
        return any(t not in banned and (grammar is None or grammar.may_begin(t)) for t in candidates)


NO_RULES = TokenRules()
