"""Measures what models would take, without taking it. `python -m ocak.worker.dry_run` does so for others.

llama.cpp builds model and context without allocating (`no_alloc`), and its log tells how large buffers would be.
It is shown a stub of the model (`memory/stub.py`), or the model's own file where it refuses that. Recurrent states
are really allocated, for as long as a measure takes. What ends the process in a real load does so here.
The process reads `LoadOptions` as JSON, one a line, and answers each with a `Measured`, a line each.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from ocak.core.errors import LoadFailed, ModelFileError, OcakError
from ocak.llama import library
from ocak.llama.buffer_log import (
    BufferLog,
    Bytes,
    by_device,
    cache_bytes,
    listening,
    pass_bytes,
    refuses_flash_attention,
    weight_bytes,
)
from ocak.llama.context import ContextOptions, LlamaContext, pad_cells
from ocak.llama.embedding import EmbeddingContext, EmbeddingOptions
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.memory.gguf_header import GgufModel
from ocak.memory.model_kind import pooling_of
from ocak.memory.needs import Measured, Needs
from ocak.memory.stub import make_stub
from ocak.memory.vocabulary_bytes import vocabulary_bytes
from ocak.memory.work_bytes import matrix_work, score_work
from ocak.worker.attention import flash_attention
from ocak.worker.embedding_load import embedding_options
from ocak.worker.messages import LoadOptions
from ocak.worker.model_file import read_once
from ocak.worker.sizes import context_options

FLOAT_BYTES = 4
USED_CODE_BYTES = 4 * 2**20  # pages of the libraries that a load and a first pass read: 23.5 MiB became 27.8
T = TypeVar("T")
Make = Callable[[LlamaModel, T], LlamaContext | EmbeddingContext]


@dataclass(frozen=True, slots=True)
class FirstBatch(ContextOptions):
    """Cells for a batch of each sequence and no more, logits for a row of each: what the first answers touch."""

    @property
    def max_outputs(self) -> int:
        return self.num_sequences  # with fewer llama.cpp ends the process


@dataclass(frozen=True, slots=True)
class Context:
    """What a dry context said, by device, and what comes on top of that: see `Needs`."""

    num_slots: int
    num_cells: int
    cache: Bytes
    passes: Bytes
    work: int
    touched: int


class DryModel:
    """A model without its weights, and without its tokens if it is a stub."""

    def __init__(self, file: GgufModel, options: LoadOptions, log: BufferLog) -> None:
        self.header = file.header
        self.tensors = [tensor for part in file.parts for tensor in part.tensors]
        weights = WeightOptions(options.gpu_layers, tensor_overrides=options.tensor_overrides, is_dry=True)
        log.lines.clear()
        self.model = _load_stub(file, weights) or _load(options.path, weights)
        self.weights = weight_bytes(log.lines, self.tensors)

    def close(self) -> None:
        self.model.close()


class DryRuns:
    """Keeps the last model for what is asked next."""

    def __init__(self, log: BufferLog) -> None:
        self._log = log
        self._process_bytes = int(psutil.Process().memory_info().rss)
        self._models: dict[object, DryModel] = {}  # one at most

    def measure(self, options: LoadOptions) -> Needs:
        """Return what loading so would take. Raises `OcakError`."""
        dry = self._model(options)
        pooling = pooling_of(dry.header, embedding=options.embedding, pooling=options.pooling)
        sizes = context_options(options, dry.model.trained_context)
        if pooling is None:
            context = self._writer(dry, options, sizes)
        else:
            context = self._embedder(dry, embedding_options(dry.header, pooling, sizes))
        return Needs(
            context=sizes.context,
            parallel=context.num_slots,
            kv_cells=context.num_cells,
            trained_context=dry.model.trained_context,
            weights_bytes=dry.weights.total(),
            kv_bytes=context.cache.total(),
            compute_bytes=context.passes.total(),
            work_bytes=context.work,
            touched_bytes=min(context.touched, context.passes.total() + context.work),
            vocabulary_bytes=vocabulary_bytes(dry.header, has_tables=pooling is None),
            process_bytes=self._process_bytes + USED_CODE_BYTES,
            saved_bytes=options.cache_ram_bytes if options.prefix_cache and pooling is None else 0,
            devices=by_device(dry.weights, context.cache, context.passes),
        )

    def close(self) -> None:
        while self._models:
            self._models.popitem()[1].close()

    def _model(self, options: LoadOptions) -> DryModel:
        key = (options.path, options.gpu_layers, options.tensor_overrides)
        if key not in self._models:
            file = read_once(Path(options.path))
            self.close()
            self._models[key] = DryModel(file, options, self._log)
        return self._models[key]

    def _writer(self, dry: DryModel, options: LoadOptions, sizes: ContextOptions) -> Context:
        is_on_cpu = options.gpu_layers == 0 or library.gpu_device() is None
        sizes = replace(sizes, flash_attn=flash_attention(sizes, dry.header, is_on_cpu=is_on_cpu))
        first = _first_batch(sizes)
        cache, passes = self._try(LlamaContext, dry.model, sizes)
        is_plain = is_on_cpu and (sizes.flash_attn == "off" or refuses_flash_attention(self._log.lines))
        _, touched = self._try(LlamaContext, dry.model, first)
        more_logits = max(0, sizes.max_outputs - sizes.num_sequences) * dry.model.vocabulary.size * FLOAT_BYTES
        work = _work(dry, sizes, is_plain=is_plain) + more_logits
        touched_work = _work(dry, first, is_plain=is_plain)
        return Context(sizes.parallel, sizes.kv_cells, cache, passes, work, touched.total() + touched_work)

    def _embedder(self, dry: DryModel, options: EmbeddingOptions) -> Context:
        cache, passes = self._try(EmbeddingContext, dry.model, options)
        work = matrix_work(dry.header, dry.tensors, options.num_rows)
        return Context(options.num_slots, options.num_cells, cache, passes, work, passes.total() + work)

    def _try(self, make: Make[T], model: LlamaModel, sizes: T) -> tuple[Bytes, Bytes]:
        """Return what a context keeps, and what it reserves for passes."""
        self._log.lines.clear()
        make(model, sizes).close()
        return cache_bytes(self._log.lines), pass_bytes(self._log.lines)


@contextmanager
def dry_runs() -> Iterator[DryRuns]:
    """What measures, in this thread, until the block ends; nothing of it is left then."""
    with listening() as log:
        library.initialise()
        runs = DryRuns(log)
        try:
            yield runs
        finally:
            runs.close()


def measure(options: LoadOptions) -> Needs:
    """Return what loading so would take, as a process that will load it. Raises `OcakError`."""
    with dry_runs() as runs:
        return runs.measure(options)


def _first_batch(sizes: ContextOptions) -> FirstBatch:
    """Each sequence's context as long as a batch; shared cells stay shared.

    Where there are several, one's batch may go through a pass with another's next token, and attend as far.
    """
    context = min(sizes.context, pad_cells(sizes.batch_tokens + (sizes.parallel > 1)))
    all_cells = context * sizes.parallel
    kv_cells = max(context, min(sizes.kv_cells, all_cells - 1)) if sizes.is_unified else all_cells
    same = {field.name: getattr(sizes, field.name) for field in fields(sizes)}
    return FirstBatch(**same | {"context": context, "kv_cells": kv_cells})


def _work(dry: DryModel, sizes: ContextOptions, *, is_plain: bool) -> int:
    work = matrix_work(dry.header, dry.tensors, sizes.batch_tokens)
    if not is_plain:
        return work
    cells = sizes.kv_cells if sizes.is_unified else sizes.cells_per_slot
    return max(work, score_work(dry.header, sizes.batch_tokens, cells, sizes.kv_type))


def _load_stub(file: GgufModel, weights: WeightOptions) -> LlamaModel | None:
    """None where the file itself must do."""
    with suppress(ModelFileError, LoadFailed, OSError), tempfile.NamedTemporaryFile(suffix=".gguf") as sparse:
        stub = make_stub(file)
        sparse.write(stub.header)
        sparse.truncate(stub.file_bytes)
        return _load(sparse.name, weights)
    library.forget_errors()
    return None


def _load(path: str, weights: WeightOptions) -> LlamaModel:
    return LlamaModel(path, weights, lambda _progress: None)


def main() -> None:
    """Answer until the input ends."""
    import ocak.worker.service  # noqa: F401 - as much is resident then as in a worker without a model

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
