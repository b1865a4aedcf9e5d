"""`python -m ocak.worker.dry_run`: measures what models would take, without taking it.

Reads `LoadOptions` as JSON, one a line, and answers each with a `Measured`, a line each. llama.cpp builds model
and context without allocating (`no_alloc`), and its log tells how large the buffers would be. What the vocabulary
and a worker's own code take is there, and is read from this process. A model is kept for the next lines.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import psutil

from ocak.core.errors import OcakError
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.embedding import EmbeddingContext
from ocak.llama.grammar import GrammarCompiler
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.memory.gguf_header import GgufHeader, read_model
from ocak.memory.model_kind import pooling_of
from ocak.memory.needs import Measured, Needs
from ocak.worker.attention import flash_attention
from ocak.worker.embedding_load import embedding_options
from ocak.worker.messages import LoadOptions
from ocak.worker.sizes import context_options

MIB = 2**20
KV = re.compile(r"^llama_(?:kv_cache|memory_recurrent): size = +([\d.]+) MiB")
BUFFERS = re.compile(r"(?:compute|output) buffer size = +([\d.]+) MiB")


class Log(logging.Handler):
    """Keeps what llama.cpp says."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def num_bytes(self, pattern: re.Pattern[str]) -> int:
        """The sum of all sizes that the pattern finds."""
        found = (pattern.search(line) for line in self.lines)
        return round(sum(float(match[1]) for match in found if match) * MIB)


class DryModel:
    """A model of which only the vocabulary is there, and what a worker makes of that."""

    def __init__(self, options: LoadOptions, header: GgufHeader) -> None:
        weights = WeightOptions(options.gpu_layers, tensor_overrides=options.tensor_overrides, is_dry=True)
        self.header = header
        self.model = LlamaModel(options.path, weights, lambda _progress: None)
        self._grammars = GrammarCompiler(self.model.vocabulary)
        self.process_bytes = int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        self._grammars.close()
        self.model.close()


class DryRuns:
    def __init__(self, log: Log) -> None:
        self._log = log
        self._models: dict[object, DryModel] = {}  # one at most

    def measure(self, options: LoadOptions) -> Needs:
        """Raises `OcakError`."""
        dry = self._load(options)
        pooling = pooling_of(dry.header, embedding=options.embedding, pooling=options.pooling)
        sizes = context_options(options, dry.model.trained_context)
        self._log.lines.clear()
        if pooling is None:
            kv_cells = self._try_context(dry, sizes, is_on_cpu=not self._uses_gpu(options))
            parallel = sizes.parallel
        else:
            settled = embedding_options(dry.header, pooling, sizes)
            context = EmbeddingContext(dry.model, settled)
            context.close()
            kv_cells, parallel = settled.num_cells, settled.num_slots
        return Needs(
            context=sizes.context,
            parallel=parallel,
            kv_cells=kv_cells,
            trained_context=dry.model.trained_context,
            weights_bytes=dry.model.weights_bytes,
            kv_bytes=self._log.num_bytes(KV),
            compute_bytes=self._log.num_bytes(BUFFERS),
            process_bytes=dry.process_bytes,
        )

    def _load(self, options: LoadOptions) -> DryModel:
        key = (options.path, options.gpu_layers, options.tensor_overrides)
        if key not in self._models:
            header = read_model(Path(options.path)).header
            self.close()
            self._models[key] = DryModel(options, header)
        return self._models[key]

    def close(self) -> None:
        """Free the model that is kept, if any."""
        while self._models:
            self._models.popitem()[1].close()

    @staticmethod
    def _uses_gpu(options: LoadOptions) -> bool:
        return options.gpu_layers != 0 and library.gpu_device() is not None

    @staticmethod
    def _try_context(dry: DryModel, sizes: ContextOptions, *, is_on_cpu: bool) -> int:
        chosen = flash_attention(sizes, dry.header, is_on_cpu=is_on_cpu)
        LlamaContext(dry.model, replace(sizes, flash_attn=chosen)).close()
        return sizes.kv_cells


@contextmanager
def dry_runs() -> Iterator[DryRuns]:
    """Listen to llama.cpp for as long as the block runs; nothing of it is left behind."""
    log = Log()
    level, propagates = library.logger.level, library.logger.propagate
    library.logger.setLevel(logging.DEBUG)
    library.logger.addHandler(log)
    library.logger.propagate = False
    library.initialise()
    runs = DryRuns(log)
    try:
        yield runs
    finally:
        runs.close()
        library.logger.removeHandler(log)
        library.logger.setLevel(level)
        library.logger.propagate = propagates


def measure(options: LoadOptions) -> Needs:
    """Return what loading so would take, as a process that will load it. Raises `OcakError`."""
    with dry_runs() as runs:
        return runs.measure(options)


def main() -> None:
    """Answer until the input ends."""
    with dry_runs() as runs:
        for line in sys.stdin.buffer:
            try:
                measured = Measured(needs=runs.measure(msgspec.json.decode(line, type=LoadOptions)))
            except OcakError as error:
                measured = Measured(error=error.message, param=error.param)
            sys.stdout.buffer.write(msgspec.json.encode(measured) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
