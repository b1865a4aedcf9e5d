"""Builds what a worker embeds with: a context that gives vectors, the embedder above it, how inputs are read."""

from __future__ import annotations

from ocak.core.embedding import INPUTS_IN_A_PASS, Pooling
from ocak.core.status import ModelInfo
from ocak.engine.embedder import Embedder, EmbedderLimits
from ocak.engine.runner import Chunk
from ocak.llama import library
from ocak.llama.context import ContextOptions
from ocak.llama.embedding import PROBABILITIES, EmbeddingContext, EmbeddingOptions
from ocak.llama.model import LlamaModel
from ocak.llama.pairs import PairReader
from ocak.memory.devices import present_gpu
from ocak.memory.estimate import KvSettings, kv_bytes
from ocak.memory.gguf_header import GgufHeader
from ocak.memory.model_kind import can_split, kind_of
from ocak.worker.embedding import EmbeddingWork
from ocak.worker.prompt import PromptReader

WARM_UP_TOKENS = 8


def embedding_options(header: GgufHeader, pooling: Pooling, sizes: ContextOptions) -> EmbeddingOptions:
    """Settle the sizes. Pure."""
    return EmbeddingOptions(
        pooling=pooling,
        context=sizes.context,
        num_slots=max(sizes.parallel, min(INPUTS_IN_A_PASS, sizes.batch_tokens)),
        batch_tokens=sizes.batch_tokens,
        threads=sizes.threads,
        can_split=can_split(header, pooling),
        kv_type=sizes.kv_type,
        kv_offload=sizes.kv_offload,
        flash_attn=sizes.flash_attn,
    )


def load_embedder(model: LlamaModel, options: EmbeddingOptions) -> tuple[Embedder, EmbeddingContext]:
    """Make the context, run it once, so that the first request pays for nothing. Raises `LoadFailed`."""
    context = EmbeddingContext(model, options)
    num_tokens = min(WARM_UP_TOKENS, options.context, options.num_rows)
    context.run([Chunk(slot=0, start=0, tokens=[0] * num_tokens, sampler=None)], [0])
    context.clear(0)
    context.decode_s = 0.0
    limits = EmbedderLimits(
        num_slots=options.num_slots,
        context=options.context,
        batch_tokens=options.batch_tokens,
        num_cells=options.num_cells,
        can_split=options.can_split,
    )
    return Embedder(context, limits), context


def embedding_info(
    model: LlamaModel, header: GgufHeader, options: EmbeddingOptions, context: EmbeddingContext
) -> ModelInfo:
    """What the front is told; the time of the load and the GPU are the caller's to fill in."""
    cells = context.num_cells
    return ModelInfo(
        architecture=model.architecture,
        name=model.name,
        num_parameters=model.num_parameters,
        weights_bytes=model.weights_bytes,
        kv_bytes=kv_bytes(header, KvSettings(cells, options.kv_type, options.kv_type)) if cells else 0,
        cache_ram_bytes=0,
        vocabulary=model.vocabulary.size,
        context=options.context,
        trained_context=model.trained_context,
        parallel=options.num_slots,
        kv_cells=cells,
        has_chat_template=False,
        has_infill=False,
        gpu=None,
        idle_gpu=present_gpu() if library.gpu_device() is None else None,
        load_s=0.0,
        kind=kind_of(options.pooling),
        pooling=options.pooling,
        embedding_length=0 if options.pooling == "rank" else context.length,
    )


def embedding_work(prompts: PromptReader, model: LlamaModel, info: ModelInfo) -> EmbeddingWork:
    return EmbeddingWork(prompts, PairReader(model), info, has_probabilities=model.architecture in PROBABILITIES)
