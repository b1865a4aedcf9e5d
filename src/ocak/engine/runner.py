"""What the engine asks of whoever executes its batches, and a fake that the tests share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
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

    def save(self, slot: int, key: int) -> None:
        """Copy the slot's cells to host memory under a key. Raises `RunFailed`, `MemoryError`."""
        ...

    def restore(self, key: int, slot: int, count: int) -> None:
        """Give the slot, which holds nothing, the first cells of those saved under the key. Raises `RunFailed`."""
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


@dataclass(frozen=True, slots=True, eq=False)
class FakeCell:
    token: int
    adapter: str = ""


@dataclass(slots=True, eq=False)
class FakeSampler:
    sampling: Sampling
    is_closed: bool = False

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


@dataclass(slots=True)
class FakeRunner:
    """A model whose next token depends on every token before it, and on the adapters that computed them.

    So any wrong cell changes the answer.

    It keeps the tokens of each slot as its cells and asserts what a real cache needs: no gap in the positions,
    no stranger's cells, no more cells than there are.
    """

    num_vocab: int = 97
    num_cells: int | None = None
    shares_cells: bool = False
    takes_parts: bool = True  # else cells are taken off or over all at once
    cells: dict[int, list[FakeCell]] = field(default_factory=dict)
    saved: dict[int, list[FakeCell]] = field(default_factory=dict)
    adapter: str = ""
    adapters: list[str] = field(default_factory=list)  # of every batch
    samplers: list[FakeSampler] = field(default_factory=list)
    failures: list[RunFailed] = field(default_factory=list)  # raised by the next runs, one each
    batches: list[list[Chunk]] = field(default_factory=list)
    picked: list[int | NoToken] = field(default_factory=list)  # by the last run
    dead_ends: set[int] = field(default_factory=set)  # numbers of samplers for which no token is left
    num_logprobs: int = 0  # how often they were asked for
    decode_s: float = 0.0
    num_aborts: int = 0
    num_shifts: int = 0

    def new_sampler(self, sampling: Sampling, prompt: Rows[int], rules: TokenRules = NO_RULES) -> FakeSampler:
        self.samplers.append(FakeSampler(sampling))
        return self.samplers[-1]

    def run(self, chunks: Rows[Chunk]) -> list[int | NoToken]:
        assert [chunk.slot for chunk in chunks] == sorted({chunk.slot for chunk in chunks}), "not ordered by slot"
        if self.failures:
            raise self.failures.pop(0)
        assert sum(len(chunk.scored) for chunk in chunks) <= MOST_SCORED
        if self.num_cells is not None and self.num_used + sum(len(c.tokens) for c in chunks) > self.num_cells:
            raise NoRoom("the cells are used up")
        self.batches.append(list(chunks))
        guessing = [chunk for chunk in chunks if chunk.num_guesses]
        assert not guessing or (len(chunks) == 1 and not guessing[0].scored)
        self.adapters.append(self.adapter)
        self.picked = [token for chunk in chunks for token in self._run_chunk(chunk)]
        return self.picked

    def logprobs(self, place: int, token: int, count: int) -> Logprobs:
        """A token's is minus its id; the likeliest are the lowest ids."""
        assert self.picked[place] == token, "another place of the batch"
        self.num_logprobs += 1
        return Logprobs(-float(token), tuple((other, -float(other)) for other in range(count)))

    def prompt_logprobs(self, slot: int, place: int, token: int, count: int) -> Logprobs:
        """A token's depends on all cells up to its row, and on itself."""
        chunk = next(chunk for chunk in self.batches[-1] if chunk.slot == slot)
        row = chunk.scored[place]
        assert row < len(chunk.tokens)
        cells = [cell.token for cell in self.cells[slot][: chunk.start + row + 1]]
        likeliest = tuple((other, -float(other)) for other in range(count))
        return Logprobs(-float(zlib.crc32(repr((cells, token)).encode())), likeliest, token)

    def use_adapter(self, name: str) -> None:
        self.adapter = name

    def abort(self) -> None:
        self.num_aborts += 1

    def trim(self, slot: int, keep: int) -> None:
        assert self.takes_parts or keep in (0, len(self.cells.get(slot, []))), "a part of what only goes whole"
        self.cells[slot] = self.cells.pop(slot, [])[:keep]
        if not self.cells[slot]:
            del self.cells[slot]

    def shift(self, slot: int, keep: int, count: int) -> None:
        cells = self.cells[slot]
        assert 0 < count <= len(cells) - keep, "a shift of what is not there"
        others = {id(cell) for other, held in self.cells.items() if other != slot for cell in held}
        assert not others & {id(cell) for cell in cells[keep + count :]}, "another's cells would move"
        self.cells[slot] = cells[:keep] + cells[keep + count :]
        self.num_shifts += 1

    def copy(self, source: int, slot: int, count: int) -> None:
        assert not self.cells.get(slot), "a copy into a slot that holds something"
        assert 0 < count <= len(self.cells[source]), "a copy of what is not there"
        assert self.takes_parts or count == len(self.cells[source]), "a part of what only goes whole"
        copied = self.cells[source][:count]
        self.cells[slot] = copied if self.shares_cells else [replace(cell) for cell in copied]

    def save(self, slot: int, key: int) -> None:
        assert key not in self.saved
        self.saved[key] = list(self.cells[slot])

    def restore(self, key: int, slot: int, count: int) -> None:
        assert not self.cells.get(slot), "restored into a slot that holds something"
        assert 0 < count <= len(self.saved[key])
        self.cells[slot] = [replace(cell) for cell in self.saved[key][:count]]

    def saved_data(self, key: int) -> CellData:
        return repr([cell.token for cell in self.saved[key]]).encode()

    def put_data(self, key: int, data: CellData) -> None:
        self.saved[key] = [FakeCell(int(token)) for token in bytes(data).strip(b"[]").split(b",")]

    def forget(self, key: int) -> None:
        self.saved.pop(key, None)

    @property
    def num_used(self) -> int:
        return len({id(cell) for cells in self.cells.values() for cell in cells})

    def _run_chunk(self, chunk: Chunk) -> list[int | NoToken]:
        cells = self.cells.setdefault(chunk.slot, [])
        assert chunk.start == len(cells), "a gap or an overlap in the positions"
        cells.extend(FakeCell(token, self.adapter) for token in chunk.tokens)
        if not isinstance(chunk.sampler, FakeSampler):
            return []
        assert not chunk.sampler.is_closed
        if self.samplers.index(chunk.sampler) in self.dead_ends:
            return [NoToken("no token is left")]
        first = len(cells) - chunk.num_guesses
        picked: list[int | NoToken] = [self.next_token(cells[:first], chunk.sampler.sampling.seed)]
        for cell in cells[first:]:
            if cell.token != picked[-1]:
                break
            first += 1
            picked.append(self.next_token(cells[:first], chunk.sampler.sampling.seed))
        return picked

    def next_token(self, cells: list[FakeCell], seed: int | None) -> int:
        """What the model says after these cells."""
        known = [(cell.token, cell.adapter) for cell in cells]
        return zlib.crc32(repr((known, seed)).encode()) % self.num_vocab
