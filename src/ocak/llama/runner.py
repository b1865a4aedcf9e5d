"""Executes the engine's batches on llama.cpp."""

from __future__ import annotations

import time
from collections.abc import Sequence

from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.engine.runner import Chunk
from ocak.llama.context import LlamaContext
from ocak.llama.sampler import LlamaSampler
from ocak.llama.vocabulary import Vocabulary


class LlamaRunner:
    """Implements `engine.runner.Runner`. Used by one thread."""

    def __init__(self, context: LlamaContext, vocabulary: Vocabulary) -> None:
        self._context = context
        self._vocabulary = vocabulary
        self.decode_s = 0.0

    def new_sampler(self, sampling: Sampling, prompt: Sequence[int]) -> LlamaSampler:
        return LlamaSampler(sampling, self._vocabulary, prompt)

    def run(self, chunks: Sequence[Chunk]) -> list[int]:
        rows = self._context.fill(chunks)
        started = time.perf_counter()
        try:
            self._context.decode()
        finally:
            self.decode_s += time.perf_counter() - started
        samplers = [chunk.sampler for chunk in chunks if isinstance(chunk.sampler, LlamaSampler)]
        return self._sample(samplers, rows)

    def clear(self, slot: int) -> None:
        self._context.clear(slot)

    def _sample(self, samplers: list[LlamaSampler], rows: list[int]) -> list[int]:
        if not samplers:
            return []
        if all(sampler.chain is None for sampler in samplers):
            tokens: list[int] = self._context.logits(len(rows)).argmax(axis=1).tolist()
            return tokens
        logits = self._context.logits(len(rows))
        return [
            int(logits[index].argmax())
            if sampler.chain is None
            else int(c.llama_sampler_sample(sampler.chain, self._context.pointer, row))
            for index, (sampler, row) in enumerate(zip(samplers, rows, strict=True))
        ]
