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
    root: Hashable = None  # prefixes are shared under the same root alone
    family: str = ""  # of a request's several answers, which share their prompt even where nothing else is shared
    num_logprobs: int | None = None  # of the likeliest to tell beside each token's own; None: nothing at all
    rules: TokenRules = NO_RULES
    num_prompt: int = field(init=False)
    num_computed: int = 0
    num_cached: int = 0  # of the prompt, found computed already
    slot: int | None = None
    sampler: Sampler | None = None
    is_admitted: bool = False  # has held a slot before
    turn: int = 0  # the order in which sequences were admitted
    awaited: Awaited | None = None  # a prefix that another is computing
    stops: set[int] = field(default_factory=set)  # lengths at which others wait to take it over
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
    def num_to_stop(self) -> int:
        """Pending tokens that one chunk may hold."""
        ahead = [stop for stop in self.stops if stop > self.num_computed]
        return min(ahead, default=len(self.tokens)) - self.num_computed

    @property
    def in_prefill(self) -> bool:
        return self.num_pending > 1

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
