"""Decides which tokens must not come next, by the rules and by what the answer holds so far. Knows no logits.

What is allowed by name, single bad words and the grammar are never broken; where they leave nothing, there is no
next token. The rest gives way before it would forbid the last one: an end that comes too early, then longer bad
words. So without a grammar a token is left wherever the rules leave one at the beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ocak.engine.rules import TokenRules
from ocak.engine.runner import NoToken


class GrammarState(Protocol):
    """Where an answer is in its grammar."""

    def forbidden(self) -> NDArray[np.bool_]:
        """Return, for every token of the vocabulary, whether it must not come next. Raises `NoToken`."""
        ...

    def accept(self, token: int) -> None:
        """Take the token that came."""
        ...


class TokenMask:
    """The state of one sequence's rules."""

    def __init__(self, rules: TokenRules, num_vocab: int, grammar: GrammarState | None = None) -> None:
        self._never = _never(rules, num_vocab)
        self._is_limited = bool(self._never.any())
        self._grammar = grammar
        self._ends = sorted(rules.end_tokens)
        self._avoided = sorted(rules.avoided)
        self._words = sorted(word for word in rules.bad_words if len(word) > 1)
        self._num_missing = rules.min_tokens  # tokens until the answer may end
        self._latest: deque[int] = deque(maxlen=max(map(len, self._words), default=1) - 1)

    def forbidden(self) -> NDArray[np.bool_]:
        """Return, for every token of the vocabulary, whether it must not come next; not to be written to.

        Raises `NoToken`.
        """
        mask = self._never if self._grammar is None else self._grammar.forbidden()
        if self._grammar is not None and self._is_limited:
            mask = mask | self._never
        if mask.all():
            raise NoToken(
                "no token is left that may follow: the grammar and the request's other rules exclude all"
            )
        for tokens in self._unwanted():
            stricter = mask.copy()
            stricter[tokens] = True
            mask = mask if stricter.all() else stricter
        return mask

    def accept(self, token: int) -> None:
        """Take the token that came."""
        self._num_missing -= 1
        self._latest.append(token)
        if self._grammar is not None:
            self._grammar.accept(token)

    def _unwanted(self) -> Iterator[list[int]]:
        """What must not come while anything else is left, the worst first."""
        if self._avoided:
            yield self._avoided
        if self._num_missing > 0:
            yield self._ends
        if last := self._last_of_words():
            yield last

    def _last_of_words(self) -> list[int]:
        """Tokens that would complete a bad word of several."""
        latest = tuple(self._latest)
        return [word[-1] for word in self._words if latest[len(latest) - len(word) + 1 :] == word[:-1]]


def _never(rules: TokenRules, num_vocab: int) -> NDArray[np.bool_]:
    mask = np.full(num_vocab, rules.allowed is not None)
    mask[sorted(rules.allowed or ())] = False
    mask[[word[0] for word in rules.bad_words if len(word) == 1]] = True
    return mask
