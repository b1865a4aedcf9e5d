"""What the engine asks of whoever executes its batches."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

from ocak.core.request import Sampling
from ocak.engine.rules import NO_RULES, TokenRules

MOST_SCORED = 32  # rows of one batch: a row of logits is as long as the vocabulary


class Sampler(Protocol):
    """The state by which one sequence picks its tokens; it outlives a preemption."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive tokens of one sequence in a batch; `sampler` is set when a token is to follow the last one.

    After each of the `scored` rows the prompt's next token is known, and its log-probability is asked for.
    """

    slot: int
    start: int  # position of the first token
    tokens: Rows[int]
    sampler: Sampler | None
    scored: range = range(0)
    num_guesses: int = 0  # of the tokens, the last ones: the sampler says whether they are right
    has_logprobs: bool = False  # the log-probability of the token that is to follow will be asked for


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural log-probabilities at one place, by the raw logits: of the token there, and of the likeliest."""

    token: float
    likeliest: tuple[tuple[int, float], ...]  # ids and values, best first
    rank: int = 0  # how many tokens are at least as likely as the one there; 0: not told


CellData = bytes | memoryview  # cells in a form of the runner's own


class NoToken(Exception):
    """No token may follow in one sequence: it cannot go on, the others of its batch can."""


class RunFailed(Exception):
    """The batch was not computed; its sequences cannot go on."""


class NoRoom(RunFailed):
    """The batch was not computed for want of KV cells; with fewer sequences it may be."""


class Aborted(RunFailed):
    """The batch was left half computed on request; its sequences go on from where they were."""


class Runner(Protocol):
    """Executes batches. Chunks come ordered by slot, at most one a slot."""

    @property
    def decode_s(self) -> float:
        """Seconds spent inside the model's forward passes so far."""
        ...

    def new_sampler(self, sampling: Sampling, prompt: Rows[int], rules: TokenRules = NO_RULES) -> Sampler:
        """Return what picks the tokens that follow the prompt."""
        ...

    def use_adapter(self, name: str) -> None:
        """Have the next runs computed with this adapter; empty: with the model alone."""
        ...

    def run(self, chunks: Rows[Chunk]) -> list[int | NoToken]:
        """Compute every chunk; return one token for each that has a sampler, in order, or why there is none.

        A chunk with guesses has the batch to itself; it gives those that were right, and one token more. Raises
        `RunFailed`.
        """
        ...

    def abort(self) -> None:
        """Have the batch that runs now, if any, raise `Aborted`; from any thread."""
        ...

    def logprobs(self, place: int, token: int, count: int) -> Logprobs:
        """Return the log-probability of what the last run put at `place` of its list, and the `count` best."""
        ...

    def prompt_logprobs(self, slot: int, place: int, token: int, count: int) -> Logprobs:
        """Return the log-probability of the prompt's token behind a scored row of the slot's last chunk, ranked.

        `place` counts the chunk's scored rows.
        """
        ...

    def trim(self, slot: int, keep: int) -> None:
        """Remove all cells of the slot but the first."""
        ...

    def shift(self, slot: int, keep: int, count: int) -> None:
        """Remove so many cells of the slot behind the first; those behind them, its own alone, move up."""
        ...

    def copy(self, source: int, slot: int, count: int) -> None:
        """Give the slot, which holds nothing, the first cells of another."""
        ...

    def save(self, slot: int, key: int, start: int = 0) -> None:
        """Copy the slot's cells to host memory under a key; from a later start on, where slots share cells.

        Raises `RunFailed`, `MemoryError`.
        """
        ...

    def restore(self, key: int, slot: int, count: int) -> None:
        """Give the slot those cells saved under the key that come behind what it holds, up to `count` in all.

        They are its own; while they come, all that are saved need room. Raises `RunFailed`.
        """
        ...

    def saved_data(self, key: int) -> CellData:
        """Return what was saved under the key; it outlives the key."""
        ...

    def put_data(self, key: int, data: CellData) -> None:
        """Have `data` be what was saved under the key; whether it fits the model, `restore` finds out."""
        ...

    def forget(self, key: int) -> None:
        """Free what was saved under the key, if anything was."""
        ...
