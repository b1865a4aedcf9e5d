"""What stays of a token stream that outgrows its context. Pure; knows token ids and counts.

*Shift*: the first `num_keep` tokens stay, they are where attention rests; of those behind them the older half goes
whenever the context is full. Half, because every shift costs a pass over all keys, or a second computation of what
stays: so each token is moved about once, and at least half of the window is always there to look back on.
*Truncate*: a prompt loses its middle, once, before it is computed.
Invariant: when tokens go depends on counts alone, never on batches, neighbours or preemptions.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """A context in which a sequence shifts."""

    context: int  # tokens
    num_keep: int

    def __post_init__(self) -> None:
        assert 0 <= self.num_keep <= most_kept(self.context), "a shift must free a token"

    @property
    def step(self) -> int:
        """How many tokens a shift drops."""
        return (self.context - self.num_keep) // 2

    def num_dropped(self, num_tokens: int) -> int:
        """How many tokens are gone by the time so many have been computed."""
        excess = max(0, num_tokens - self.context)
        return -(-excess // self.step) * self.step


def most_kept(context: int) -> int:
    """The most tokens that may be kept at the beginning: less than half, so that there is room for the rest."""
    return (context - 1) // 2


def default_kept(context: int) -> int:
    """A quarter of the context: a system prompt, or at least the tokens that attention rests on."""
    return min(context // 4, most_kept(context))


def room_for_prompt(context: int, max_tokens: int | None) -> int:
    """Tokens that a truncated prompt may have: its answer gets a quarter of the context at most, one at least."""
    quarter = context // 4
    return context - max(1, quarter if max_tokens is None else min(max_tokens, quarter))


def without_middle(tokens: list[int], num_keep: int, most: int) -> list[int]:
    """Return the first `num_keep` tokens and as many of the last as make `most` together."""
    assert num_keep < most < len(tokens)
    return tokens[:num_keep] + tokens[num_keep - most :]
