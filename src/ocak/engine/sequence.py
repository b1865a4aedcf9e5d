"""One token stream: a prompt and what follows it. Knows no text and no model.

With a window it may outgrow its context: then tokens go, first from its slot and with it from `tokens`.
Invariant: the cells of its slot hold the keys and values of `tokens[:num_computed]`, and of nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from ocak.core.events import FinishReason, Usage
from ocak.core.request import Sampling
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.runner import Sampler
from ocak.engine.window import Window


@dataclass(frozen=True, slots=True)
class Awaited:
    """A prefix that is there once a sequence has computed so many tokens."""

    sequence: Sequence
    length: int
    num_dropped: int  # of the sequence by then: a shift makes another prefix of it

    @property
    def is_coming(self) -> bool:
        sequence = self.sequence
        is_same = sequence.slot is not None and sequence.num_dropped == self.num_dropped
        return is_same and sequence.num_computed < self.length


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
    family: str = ""  # of a request's several answers, which share their prompt even where nothing else is shared
    num_logprobs: int | None = None  # of the likeliest to tell beside each token's own; None: nothing at all
    rules: TokenRules = NO_RULES
    num_prompt_logprobs: int | None = None  # the same for the prompt's tokens
    num_scored: int = 0  # of the prompt's tokens but the first, whose log-probability is known
    window: Window | None = None  # None: the answer ends where the context does
    num_dropped: int = 0  # tokens that are gone: from the prompt before it came here, or by shifts
    has_shifted: bool = False  # what was computed behind the kept tokens has seen some that are gone
    num_prompt: int = field(init=False)  # of the whole prompt
    num_computed: int = 0
    num_cached: int = 0  # of the prompt, found computed already
    slot: int | None = None
    sampler: Sampler | None = None
    is_admitted: bool = False  # has held a slot before
    turn: int = 0  # the order in which sequences were admitted
    prefill_turn: int = 0  # likewise, but a prompt that shifts goes behind those admitted meanwhile
    awaited: Awaited | None = None  # a prefix that another is computing
    stops: set[int] = field(default_factory=set)  # lengths at which others wait to take it over
    is_finished: bool = False

    def __post_init__(self) -> None:
        self.num_prompt = len(self.tokens) + self.num_dropped

    @property
    def num_generated(self) -> int:
        return len(self.tokens) + self.num_dropped - self.num_prompt

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

    def rows_to_score(self, start: int, end: int) -> range:
        """Of the tokens from `start` to `end`, those after which a prompt's token is to be scored."""
        if self.is_scored:
            return range(0)
        return range(max(start, self.num_scored), max(start, min(end, self.num_prompt - 1)))

    def most_tokens(self, num_scores: int) -> int:
        """How many pending tokens one chunk may hold if no more than so many rows can be scored."""
        first = max(self.num_computed, self.num_scored)
        if self.is_scored or self.num_prompt - 1 - first <= num_scores:
            return self.num_to_stop
        return min(first + num_scores - self.num_computed, self.num_to_stop)

    @property
    def num_wanted(self) -> int:
        """Cells that its tokens take, as far as they are known and go in before a shift."""
        return len(self.tokens) if self.window is None else min(len(self.tokens), self.window.context)

    def may_grow(self, context: int) -> int:
        """Cells that its tokens may come to take besides, in a context of so many."""
        room = (context if self.window is None else self.window.context) - len(self.tokens)
        return max(0, min(room, self.max_tokens - self.num_generated - 1))

    @property
    def num_next(self) -> int:
        """Pending tokens that can be computed before a shift."""
        return self.num_wanted - self.num_computed

    @property
    def num_to_stop(self) -> int:
        """Those of them that come before a length at which others take them over."""
        ahead = [stop for stop in self.stops if stop > self.num_computed]
        return min([*ahead, self.num_wanted]) - self.num_computed

    @property
    def is_full(self) -> bool:
        """Nothing can be computed before a shift."""
        return self.window is not None and self.num_computed >= self.window.context

    @property
    def num_exact(self) -> int:
        """Computed tokens that have seen just the tokens before them."""
        kept = self.window.num_keep if self.window is not None and self.has_shifted else self.num_computed
        return min(kept, self.num_computed)

    @property
    def num_shared(self) -> int:
        """Tokens at its beginning that another sequence may start from: none that a shift will move."""
        if self.window is None or not (self.has_shifted or len(self.tokens) > self.window.context):
            return len(self.tokens)
        return self.window.num_keep

    @property
    def num_reusable(self) -> int:
        """How many tokens may be found computed: not the last or those to be scored, whose logits are needed.

        A shift must find cells behind those it drops that nobody else holds: it moves them.
        """
        if not self.is_scored:
            return self.num_scored
        if self.window is None or len(self.tokens) <= self.window.context:
            return len(self.tokens) - 1
        return self.window.num_keep + self.window.step

    @property
    def num_prompt_dropped(self) -> int:
        """Tokens of the prompt that are gone when the answer begins."""
        return self.num_dropped if self.window is None else self.window.num_dropped(self.num_prompt)

    @property
    def usage(self) -> Usage:
        return Usage(self.num_prompt, self.num_generated, self.num_cached, self.num_dropped)

    def num_of_prompt(self, count: int) -> int:
        """How many of the last `count` computed tokens are the prompt's."""
        return max(0, min(count, self.num_prompt - self.num_dropped - self.num_computed + count))

    def drop(self, start: int, count: int) -> None:
        """Take tokens out that are gone from its slot, or never were there."""
        del self.tokens[start : start + count]
        self.num_dropped += count

    def take_back(self, count: int) -> None:
        """Unsay the last tokens of the answer."""
        del self.tokens[len(self.tokens) - count :]
        self.num_computed = min(self.num_computed, len(self.tokens))

    def restart(self) -> None:
        """Note that nothing of it is computed any more."""
        self.num_computed = 0
        self.has_shifted = False

    def append(self, token: int, context: int) -> FinishReason | None:
        """Take a sampled token; return why the answer is at its end, if it is."""
        self.tokens.append(token)
        if token in self.end_tokens:
            return "stop"
        is_at_end = self.window is None and len(self.tokens) >= context
        if self.num_generated >= self.max_tokens or is_at_end:
            return "length"
        return None
