"""One token stream: a prompt and what follows it. Knows no text and no model.

Invariant: the cells of its slot hold the keys and values of `tokens[:num_computed]`, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ocak.core.events import FinishReason, Usage
from ocak.core.request import Sampling
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.runner import Sampler


@dataclass(frozen=True, slots=True)
class Awaited:
    """A prefix that is there once a sequence has computed so many tokens."""

    sequence: Sequence
    length: int

    @property
    def is_coming(self) -> bool:
        return self.sequence.slot is not None and self.sequence.num_computed < self.length


@dataclass(slots=True, eq=False)
class Sequence:
    """`id` is the order of arrival; `slot` is None while it waits."""

    id: int
    tokens: list[int]
    sampling: Sampling
    max_tokens: int
    end_tokens: frozenset[int]  # sampled ones that end the answer
    tenant: str = ""
    priority: int = 0  # lower ones go first, among the tenant's own
    adapter: str = ""  # that computes it; empty: the model alone
    root: Hashable = None  # the adapter's too; prefixes are shared under the same root alone
    num_logprobs: int | None = None  # of the likeliest to tell beside each token's own; None: nothing at all
    rules: TokenRules = NO_RULES
    num_prompt_logprobs: int | None = None  # the same for the prompt's tokens
    num_scored: int = 0  # of the prompt's tokens but the first, whose log-probability is known
    num_prompt: int = field(init=False)
    num_computed: int = 0
    num_cached: int = 0  # of the prompt, found computed already
    slot: int | None = None
    sampler: Sampler | None = None
    is_admitted: bool = False  # has held a slot before
    turn: int = 0  # the order in which sequences were admitted
    awaited: Awaited | None = None  # a prefix that another is computing
    is_finished: bool = False

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens not yet computed: 1 while decoding, more in prefill."""
        return len(self.tokens) - self.num_computed

    @property
    def in_prefill(self) -> bool:
        return self.num_pending > 1

    @property
    def is_scored(self) -> bool:
        """Whether nothing of the prompt is left to tell the log-probability of."""
        return self.num_prompt_logprobs is None or self.num_scored >= self.num_prompt - 1

    @property
    def num_reusable(self) -> int:
        """How many tokens may be found computed: not the last or those to be scored, whose logits are needed."""
        return len(self.tokens) - 1 if self.is_scored else self.num_scored

    def rows_to_score(self, start: int, end: int) -> range:
        """Of the tokens from `start` to `end`, those after which a prompt's token is to be scored."""
        if self.is_scored:
            return range(0)
        return range(max(start, self.num_scored), max(start, min(end, self.num_prompt - 1)))

    def most_tokens(self, num_scores: int) -> int:
        """How many pending tokens may be computed if no more than so many rows can be scored."""
        first = max(self.num_computed, self.num_scored)
        if self.is_scored or self.num_prompt - 1 - first <= num_scores:
            return self.num_pending
        return first + num_scores - self.num_computed

    @property
    def usage(self) -> Usage:
        return Usage(self.num_prompt, self.num_generated, cached_tokens=self.num_cached)

    def append(self, token: int, context: int) -> FinishReason | None:
        """Take a sampled token; return why the answer is at its end, if it is."""
        self.tokens.append(token)
        if token in self.end_tokens:
            return "stop"
        if self.num_generated >= self.max_tokens or len(self.tokens) >= context:
            return "length"
        return None
