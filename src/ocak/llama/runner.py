"""Executes the engine's batches on llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.engine.padding import TILE, RowTimes, lenders, tiled
from ocak.engine.runner import Chunk, NoRoom
from ocak.llama.context import LlamaContext
from ocak.llama.sampler import LlamaSampler
from ocak.llama.threads import ThreadCount
from ocak.llama.vocabulary import Vocabulary


class LlamaRunner:
    """Implements `engine.runner.Runner`. Used by one thread."""

    def __init__(self, context: LlamaContext, vocabulary: Vocabulary) -> None:
        self._context = context
        self._vocabulary = vocabulary
        self._empty = set(range(context.parallel))  # slots without cells
        self._times = RowTimes()
        self._threads = ThreadCount(context.threads)
        self.decode_s = 0.0

    def new_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> LlamaSampler:
        return LlamaSampler(sampling, self._vocabulary, prompt)

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        self._empty.difference_update(chunk.slot for chunk in chunks)
        self._adapt()
        lent = self._lend(chunks)
        try:
            rows = self._decode(chunks, lent)
        except NoRoom:
            if not lent:
                raise
            rows = self._decode(chunks, [])
        samplers = [chunk.sampler for chunk in chunks if isinstance(chunk.sampler, LlamaSampler)]
        return self._sample(samplers, rows)

    def clear(self, slot: int) -> None:
        self._context.clear(slot)
        self._empty.add(slot)

    def _adapt(self) -> None:
        if self._threads.refresh():
            self._context.use_threads(self._threads.value)
            self._times = RowTimes()

    def _lend(self, chunks: Sequence[Chunk]) -> list[int]:
        """Return the empty slots that are to run a token beside the chunks, because that is quicker."""
        if min(len(chunk.tokens) for chunk in chunks) > 1:
            return []
        busy = [chunk.slot for chunk in chunks]
        room = self._context.batch_tokens - sum(len(chunk.tokens) for chunk in chunks)
        rows = len(busy) + len(lenders(busy, self._empty, 0))
        best = self._times.best(rows, len(busy) + min(room, len(self._empty)))
        return lenders(busy, self._empty, best)[:room]

    def _decode(self, chunks: Sequence[Chunk], lent: list[int]) -> list[int]:
        """Run the chunks beside a token in each of the slots lent; return the rows that have a sampler."""
        padded = sorted([*chunks, *(Chunk(slot, 0, (0,), None) for slot in lent)], key=lambda chunk: chunk.slot)
        num_decoding = sum(chunk.sampler is not None and len(chunk.tokens) == 1 for chunk in chunks)
        is_tiled = len(padded) % TILE == 0  # then the logits are too
        rows = self._context.fill(padded, tiled(num_decoding) if is_tiled else 0)
        started = time.perf_counter()
        try:
            self._context.decode()
        finally:
            seconds = time.perf_counter() - started
            self.decode_s += seconds
            for slot in lent:
                self._context.clear(slot)
        is_one_pass = padded[-1].slot - padded[0].slot == len(padded) - 1
        if is_one_pass and all(len(chunk.tokens) == 1 for chunk in padded):
            self._times.observe(len(padded), seconds)
        return rows

    def _sample(self, samplers: list[LlamaSampler], rows: list[int]) -> list[int]:
        if not samplers:
            return []
        logits = self._context.logits()
        outputs = self._context.outputs(rows)
        if all(sampler.chain is None for sampler in samplers):
            best = logits.argmax(axis=1)
            return [int(best[output]) for output in outputs]
        return [
            int(logits[output].argmax())
            if sampler.chain is None
            else int(c.llama_sampler_sample(sampler.chain, self._context.pointer, row))
            for sampler, row, output in zip(samplers, rows, outputs, strict=True)
        ]
