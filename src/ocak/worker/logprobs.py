"""Keeps the log-probabilities of an answer's tokens until the text that they belong to goes out.

A token is told as soon as the text reaches its first character, with the delta that shows it. What a stop string
cuts off whole is never told; a token of which a part is shown, is. The model's own end of turn shows nothing and
is not told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ocak.core.events import LikelyToken, TokenLogprob
from ocak.engine.runner import Logprobs


class HeldLogprobs:
    """`piece` and `name` give a token's bytes and a special token's name; `start` characters go before."""

    def __init__(self, piece: Callable[[int], bytes], name: Callable[[int], str], start: int = 0) -> None:
        self._piece = piece
        self._name = name
        self._held: deque[TokenLogprob] = deque()
        self._num_shown = start  # characters

    def push(self, token: int, logprobs: Logprobs, num_held: int) -> None:
        """Take the next token; `num_held` characters before it are not shown yet."""
        self._held.append(
            TokenLogprob(
                self._likely(token, logprobs.token),
                self._num_shown + num_held,
                tuple(self._likely(other, value) for other, value in logprobs.likeliest),
            )
        )

    def release(self, num_characters: int, *, is_end: bool) -> tuple[TokenLogprob, ...]:
        """Return what as many further characters make known: at the end of a text that no string cut, all."""
        self._num_shown += num_characters
        released: list[TokenLogprob] = []
        while self._held and (is_end or self._held[0].start < self._num_shown):
            released.append(self._held.popleft())
        return tuple(released)

    def _likely(self, token: int, logprob: float) -> LikelyToken:
        piece = self._piece(token)
        return LikelyToken(piece, logprob, "" if piece else self._name(token))
