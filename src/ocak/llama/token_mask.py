"""Decides which tokens must not come next, by the rules and by what the answer holds so far. Knows no logits.

Invariant: a token is left wherever the rules leave one at the beginning. A longer bad word gives way before it
would forbid the last one.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from ocak.engine.rules import TokenRules


class TokenMask:
    """The state of one sequence's rules."""

    def __init__(self, rules: TokenRules, num_vocab: int) -> None:
        self._never = _never(rules, num_vocab)
        self._ends = sorted(rules.end_tokens)
        self._words = sorted(word for word in rules.bad_words if len(word) > 1)
        self._num_missing = rules.min_tokens  # tokens until the answer may end
        self._latest: deque[int] = deque(maxlen=max(map(len, self._words), default=1) - 1)

    def forbidden(self) -> NDArray[np.bool_]:
        """Return, for every token of the vocabulary, whether it must not come next."""
        mask = self._never.copy()
        if self._num_missing > 0:
            mask[self._ends] = True
        if last := self._last_of_words():
            stricter = mask.copy()
            stricter[last] = True
            return mask if stricter.all() else stricter
        return mask

    def accept(self, token: int) -> None:
        """Take the token that came."""
        self._num_missing -= 1
        self._latest.append(token)

    def _last_of_words(self) -> list[int]:
        """Tokens that would complete a bad word of several."""
        latest = tuple(self._latest)
        return [word[-1] for word in self._words if latest[len(latest) - len(word) + 1 :] == word[:-1]]


def _never(rules: TokenRules, num_vocab: int) -> NDArray[np.bool_]:
    mask = np.full(num_vocab, rules.allowed is not None)
    mask[sorted(rules.allowed or ())] = False
    mask[[word[0] for word in rules.bad_words if len(word) == 1]] = True
    return mask
