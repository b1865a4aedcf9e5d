"""A fake of what executes the engine's batches, that the tests share."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace

from ocak.core.request import Sampling
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.runner import MOST_SCORED, CellData, Chunk, Logprobs, NoRoom, NoToken, RunFailed


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
    starts: dict[int, int] = field(default_factory=dict)  # of those saved from another place than 0
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

    def save(self, slot: int, key: int, start: int = 0) -> None:
        assert key not in self.saved and 0 <= start < len(self.cells[slot])
        assert start == 0 or (self.shares_cells and self.takes_parts), "a part of what only goes whole"
        self.saved[key] = self.cells[slot][start:]
        self.starts[key] = start

    def restore(self, key: int, slot: int, count: int) -> None:
        if key not in self.saved:
            raise RunFailed("nothing was saved")
        cells, start, saved = self.cells.get(slot, []), self.starts.get(key, 0), self.saved[key]
        assert not cells or (self.shares_cells and self.takes_parts), "restored into a slot that holds something"
        assert start <= len(cells) < count <= start + len(saved), "a gap, or nothing to add"
        assert self.takes_parts or count == start + len(saved), "a part of what only goes whole"
        if self.shares_cells and key in self.starts:
            assert self.num_used + len(saved) <= (self.num_cells or 0), "no room for all that are saved"
        self.cells[slot] = cells + [replace(cell) for cell in saved[len(cells) - start : count - start]]

    def saved_data(self, key: int) -> CellData:
        return repr([cell.token for cell in self.saved[key]]).encode()

    def put_data(self, key: int, data: CellData) -> None:
        self.saved[key] = [FakeCell(int(token)) for token in bytes(data).strip(b"[]").split(b",")]

    def forget(self, key: int) -> None:
        self.saved.pop(key, None)
        self.starts.pop(key, None)

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
