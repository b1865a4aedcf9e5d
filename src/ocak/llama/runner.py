"""Executes the engine's batches on llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ocak.core.request import Sampling
from ocak.engine.padding import TILE, RowTimes, full, gaps, neighbours, reach, tile_mates, tiled
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.runner import CellData, Chunk, Logprobs, NoRoom, NoToken, RunFailed
from ocak.llama.adapters import LlamaAdapters
from ocak.llama.affinity import Team
from ocak.llama.context import LlamaContext, Output
from ocak.llama.device_sampling import DeviceSampling
from ocak.llama.logprobs import logprobs
from ocak.llama.sampler import LlamaSampler, SamplerFactory
from ocak.llama.threads import ThreadCount
from ocak.llama.vocabulary import Vocabulary


class LlamaRunner:
    """Implements `engine.runner.Runner`. Used by one thread."""

    def __init__(
        self,
        context: LlamaContext,
        vocabulary: Vocabulary,
        adapters: LlamaAdapters | None = None,
        *,
        holds_cores: bool = True,
        samples_on_device: bool = False,
    ) -> None:
        self._context = context
        self._adapters = adapters
        self._adapter = ""
        self.samplers = SamplerFactory(vocabulary)
        self._lengths = dict.fromkeys(range(context.num_slots), 0)  # cells of each slot
        self._saved: dict[int, NDArray[np.uint8]] = {}
        self._times = RowTimes()
        self._threads = ThreadCount(context.threads)
        self._companions: list[LlamaContext] = []
        self._team = Team(context.threads if holds_cores else 0)
        self._outputs: list[Output] = []  # where the last run's logits are
        self.decode_s = 0.0
        self._device: DeviceSampling | None = None
        if samples_on_device:
            usual = self.samplers.new(Sampling(seed=0), ())
            self._device = DeviceSampling(context.pointer, self._lengths, usual)
            usual.close()

    def new_sampler(self, sampling: Sampling, prompt: Sequence[int], rules: TokenRules = NO_RULES) -> LlamaSampler:
        return self.samplers.new(sampling, prompt, rules)

    def lend_threads(self, context: LlamaContext) -> None:
        """Have another context of this thread use as many threads: otherwise the kernels make them anew."""
        self._companions.append(context)

    def use_adapter(self, name: str) -> None:
        if name != self._adapter:
            assert self._adapters is not None, "an adapter that nobody loaded"
            self._adapters.use(self._context.pointer, name)
            self._adapter = name

    def run(self, chunks: Sequence[Chunk]) -> list[int | NoToken]:
        self._adapt()
        if self._device is not None:
            self._device.settle(chunks)
        lent = self._lend(chunks)
        padding = self._padding(chunks)
        try:
            outputs = self._decode(chunks, lent, padding)
        except NoRoom:
            if self._context.is_uniform or not (lent or padding):
                raise
            outputs = self._decode(chunks, [], {})
        if self._threads.value == self._context.threads:
            self._team.spread()
        for chunk in chunks:
            self._lengths[chunk.slot] = chunk.start + len(chunk.tokens)
        self._outputs = outputs
        if len(chunks) == 1 and chunks[0].num_guesses:
            return self._verify(chunks[0], outputs)
        samplers = [chunk.sampler for chunk in chunks if isinstance(chunk.sampler, LlamaSampler)]
        return self._sample(samplers, outputs)

    def abort(self) -> None:
        self._context.abort()

    def last_logits(self, place: int) -> NDArray[np.float32]:
        """A view of what the last run's sampler of this place saw; until the next run."""
        logits: NDArray[np.float32] = self._context.logits()[self._outputs[place].index]
        return logits

    def logprobs(self, place: int, token: int, count: int) -> Logprobs:
        return logprobs(self.last_logits(place), token, count)

    def prompt_logprobs(self, slot: int, place: int, token: int, count: int) -> Logprobs:
        row = self._context.scored_at[slot] + place
        return logprobs(self._context.logits()[row], token, count, is_ranked=True)

    def trim(self, slot: int, keep: int) -> None:
        self._context.trim(slot, keep)
        self._lengths[slot] = keep

    def shift(self, slot: int, keep: int, count: int) -> None:
        self._context.shift(slot, keep, count)
        self._lengths[slot] -= count

    def copy(self, source: int, slot: int, count: int) -> None:
        self._context.copy(source, slot, count)
        self._lengths[slot] = count

    def save(self, slot: int, key: int, start: int = 0) -> None:
        self._saved[key] = self._context.states.save(slot, start)

    def restore(self, key: int, slot: int, count: int) -> None:
        if key not in self._saved:
            raise RunFailed("nothing was saved")
        self._context.states.restore(slot, self._saved[key], self._lengths[slot], count)
        self._lengths[slot] = count

    def saved_data(self, key: int) -> CellData:
        return self._saved[key].data

    def put_data(self, key: int, data: CellData) -> None:
        self._saved[key] = np.frombuffer(data, np.uint8)

    def forget(self, key: int) -> None:
        self._saved.pop(key, None)

    def _adapt(self) -> None:
        if self._threads.refresh():
            for context in (self._context, *self._companions):
                context.use_threads(self._threads.value)
            self._team.loosen()
            self._times = RowTimes()

    def _lend(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the idle slots that are to run a token beside the chunks, because that is quicker."""
        busy = [chunk.slot for chunk in chunks]
        if self._context.is_uniform:
            return tile_mates(busy) if _is_flat(chunks) else []
        if len(chunks) == 1 or min(len(chunk.tokens) for chunk in chunks) > 1:
            return []
        idle = self._idle(chunks)
        room = self._context.batch_tokens - sum(len(chunk.tokens) for chunk in chunks)
        closing = [] if self._context.is_unified else gaps(busy, idle)
        rows = len(busy) + len(closing)
        if not self._is_one_pass([*busy, *closing]):
            return closing[:room]
        most = len(busy) + min(room, len(idle))
        return [*closing, *neighbours(busy, idle, self._times.best(rows, most) - rows)][:room]

    def _is_one_pass(self, slots: list[int]) -> bool:
        return self._context.is_unified or max(slots) - min(slots) == len(slots) - 1

    def _idle(self, chunks: Sequence[Chunk]) -> set[int]:
        """Slots that can take a token behind what they hold; it is removed after the pass.

        None is deeper than the chunks are: attention takes as long for all as for the deepest.
        """
        deepest = reach(max(chunk.start for chunk in chunks))
        most = min(deepest, self._context.context - 1) if self._context.reuse == "parts" else 0
        return {slot for slot, length in self._lengths.items() if length <= most} - {
            chunk.slot for chunk in chunks
        }

    def _decode(self, chunks: Sequence[Chunk], lent: list[int], padding: dict[int, int]) -> list[Output]:
        """Run the padded chunks beside a token in each slot lent; return where the samplers' logits are."""
        extra = [Chunk(slot, self._lengths[slot], (0,) * self._rows_each, None) for slot in lent]
        rows = sorted([*chunks, *extra], key=lambda chunk: chunk.slot)
        num_decoding = sum(chunk.sampler is not None and len(chunk.tokens) == 1 for chunk in chunks)
        is_tiled = len(rows) % TILE == 0  # then the logits are too
        if self._context.is_uniform:
            num_outputs = len(rows) * self._rows_each if _is_flat(chunks) else 0
        else:
            num_outputs = tiled(num_decoding) if is_tiled else 0
        outputs = self._context.fill(rows, padding, num_outputs)
        started = time.perf_counter()
        try:
            self._context.decode()
        finally:
            seconds = time.perf_counter() - started
            self.decode_s += seconds
            for slot in lent:
                self._context.trim(slot, self._lengths[slot])
            for chunk in chunks:
                if chunk.slot in padding:
                    self._context.trim(chunk.slot, chunk.start + len(chunk.tokens))
        is_one_pass = self._is_one_pass([chunk.slot for chunk in rows])
        if is_one_pass and _is_flat(rows):
            self._times.observe(len(rows), seconds)
        return outputs

    def _padding(self, chunks: Sequence[Chunk]) -> dict[int, int]:
        """Return, by slot, how many tokens are to follow parts of prompts, to fill the kernels' tiles.

        They are removed after the pass.
        """
        if self._context.is_uniform and _is_flat(chunks):
            return {chunk.slot: self._rows_each - 1 for chunk in chunks if self._rows_each > 1}
        if self._context.reuse == "wholes" or min(len(chunk.tokens) for chunk in chunks) == 1:
            return {}
        room = self._context.batch_tokens - sum(len(chunk.tokens) for chunk in chunks)
        padding: dict[int, int] = {}
        for chunk in chunks:
            rows = len(chunk.tokens)
            wanted = full(rows, chunk.start, self._context.tile, fills_tall=self._context.fills_tall) - rows
            if 0 < wanted <= min(room, self._context.cells_per_slot - chunk.start - rows):
                padding[chunk.slot] = wanted
                room -= wanted
        return padding

    @property
    def _rows_each(self) -> int:
        """How many rows each of four slots gives for a step that decodes, to fill a tile."""
        return self._context.tile // TILE

    def _sample(self, samplers: list[LlamaSampler], outputs: list[Output]) -> list[int | NoToken]:
        if not samplers:
            return []
        logits = self._context.logits()
        return [
            self._pick(sampler, output.row, logits[output.index])
            for sampler, output in zip(samplers, outputs, strict=True)
        ]

    def _pick(self, sampler: LlamaSampler, row: int, logits: NDArray[np.float32]) -> int | NoToken:
        try:
            return sampler.pick(self._context.pointer, row, logits)
        except NoToken as error:
            return error

    def _verify(self, chunk: Chunk, outputs: list[Output]) -> list[int | NoToken]:
        """Pick place after place for as long as the guesses agree."""
        assert isinstance(chunk.sampler, LlamaSampler)
        picked: list[int | NoToken] = []
        guesses = chunk.tokens[len(chunk.tokens) - chunk.num_guesses :]
        for output, guess in zip(outputs, [*guesses, None], strict=True):
            picked += self._sample([chunk.sampler], [output])
            if picked[-1] != guess:
                break
        return picked


def _is_flat(chunks: Sequence[Chunk]) -> bool:
    """Whether each has one row."""
    return all(len(chunk.tokens) == 1 for chunk in chunks)
