"""Builds everything a worker serves with, from a GGUF file: weights, context, engine, prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from ocak.core.embedding import Pooling
from ocak.core.errors import InvalidRequest, LoadFailed
from ocak.core.request import Message, Sampling
from ocak.core.status import ModelInfo
from ocak.engine.draft_pay import DraftPay
from ocak.engine.drafting import Draft
from ocak.engine.embedder import Embedder
from ocak.engine.engine import Engine
from ocak.engine.runner import Chunk
from ocak.engine.scheduler import SchedulerLimits
from ocak.llama import library
from ocak.llama.adapters import LlamaAdapters
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.drafter import LlamaDrafter
from ocak.llama.embedding import EmbeddingContext
from ocak.llama.grammar import GrammarCompiler
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.llama.sampler import SamplerFactory
from ocak.llama.uniform import settle_tile
from ocak.memory.devices import present_gpu
from ocak.memory.estimate import KvSettings, kv_bytes
from ocak.memory.gguf_header import GgufHeader
from ocak.memory.lora_file import read_adapter
from ocak.memory.model_kind import pooling_of
from ocak.worker.attention import flash_attention
from ocak.worker.chat import Chat
from ocak.worker.device_sampling import samples_on_device
from ocak.worker.draft_load import is_used, load_draft
from ocak.worker.embedding import EmbeddingWork
from ocak.worker.embedding_load import embedding_info, embedding_options, embedding_work, load_embedder
from ocak.worker.fitting import ContextRules, context_rules
from ocak.worker.messages import LoadOptions
from ocak.worker.model_file import read_once
from ocak.worker.prompt import PromptReader
from ocak.worker.sizes import context_options
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.template import ChatTemplate

logger = logging.getLogger("ocak.worker")

WARM_UP_TOKENS = 8


@dataclass(frozen=True, slots=True)
class LoadedModel:
    model: LlamaModel
    engine: Engine | Embedder
    prompts: PromptReader
    info: ModelInfo
    samplers: SamplerFactory
    rules: ContextRules
    context: LlamaContext | EmbeddingContext
    grammars: GrammarCompiler | None = None  # None: it writes no text
    embedding: EmbeddingWork | None = None  # instead of text
    draft: LlamaDrafter | None = None

    def close(self) -> None:
        """Free it all, adapters too; nothing of it may be used any more."""
        if self.grammars is not None:
            self.grammars.close()
        if self.draft is not None:
            self.draft.close()
        self.context.close()
        self.model.close()


def load(
    options: LoadOptions, on_progress: Callable[[float], object], watch: Stopwatch, *, is_awaited: bool = False
) -> LoadedModel:
    """Load the model and run it once, so that the first request pays for nothing. Raises `LoadFailed`.

    If somebody waits for it, the tables that answers in a form need are left for later.
    """
    started = time.perf_counter()
    file = read_once(Path(options.path))
    for adapter in options.lora:
        read_adapter(Path(adapter.path), file)
    pooling = pooling_of(file.header, embedding=options.embedding, pooling=options.pooling)
    library.initialise()
    weights = WeightOptions(options.gpu_layers, options.mmap, options.mlock, options.tensor_overrides)
    model = LlamaModel(options.path, weights, on_progress)
    with _freed_on_failure(model):
        if pooling is None:
            loaded = _load_writer(model, file.header, options, watch, on_progress)
            if loaded.grammars is not None and not is_awaited:
                loaded.grammars.prepare()
        else:
            loaded = _load_embedder(model, file.header, pooling, options)
    return replace(loaded, info=msgspec.structs.replace(loaded.info, load_s=time.perf_counter() - started))


@contextmanager
def _freed_on_failure(part: LlamaModel | LlamaContext | EmbeddingContext) -> Iterator[None]:
    """A process that loads another model after this one needs the memory."""
    try:
        yield
    except BaseException:
        part.close()
        raise


def _load_writer(
    model: LlamaModel,
    header: GgufHeader,
    options: LoadOptions,
    watch: Stopwatch,
    on_progress: Callable[[float], object],
) -> LoadedModel:
    if not model.can_generate:
        raise LoadFailed(f"{options.path} is no text-generation model (architecture {model.architecture})")
    template = _template(options, model, watch)
    chat = None if template is None else Chat(template, options.tool_format, options.reasoning_format)
    prompts = PromptReader(model.vocabulary, chat)
    sizes = context_options(options, model.trained_context)
    gpu = library.gpu_device() if options.gpu_layers != 0 else None
    sizes = replace(sizes, flash_attn=flash_attention(sizes, header, is_on_cpu=gpu is None))
    on_device = samples_on_device(options, num_layers=model.num_layers, has_gpu=gpu is not None)
    adapters = LlamaAdapters(model, options.lora)
    context = LlamaContext(model, sizes)
    with _freed_on_failure(context):
        runner = LlamaRunner(
            context, model.vocabulary, adapters, holds_cores=options.holds_cores, samples_on_device=on_device
        )
        _warm_up(runner, context, sizes, adapters.names)
        if sizes.is_uniform:
            if context.reuse != "parts":
                raise LoadFailed("deterministic needs a model whose memory gives single tokens back: leave it out")
            settle_tile(runner, context)
        # A sequence that cannot lose its end cannot lose its middle either.
        can_shift = context.reuse == "parts"
        rules = context_rules(sizes.context, options.context_policy, options.n_keep, can_shift=can_shift)
        draft = None
        if is_used(options, sizes, can_trim=context.reuse == "parts"):
            draft = load_draft(options, sizes, model.vocabulary, on_progress)
            runner.lend_threads(draft.cells)
    info = ModelInfo(
        architecture=model.architecture,
        name=model.name,
        num_parameters=model.num_parameters,
        weights_bytes=model.weights_bytes,
        kv_bytes=kv_bytes(header, KvSettings(sizes.kv_cells, options.kv_type, options.kv_type)),
        cache_ram_bytes=_cache_ram(options, context),
        vocabulary=model.vocabulary.size,
        context=sizes.context,
        trained_context=model.trained_context,
        parallel=sizes.parallel,
        kv_cells=sizes.kv_cells,
        context_policy=rules.policy,
        n_keep=rules.num_keep,
        can_shift=rules.can_shift,
        has_chat_template=chat is not None,
        has_infill=model.vocabulary.infill is not None,
        gpu=gpu,
        idle_gpu=present_gpu() if library.gpu_device() is None else None,
        load_s=0.0,
        lora=adapters.names,
        draft=None if draft is None else draft.name,
        draft_bytes=0 if draft is None else draft.num_bytes,
        tool_format=chat.tool_format if chat else None,
        reasoning_format=chat.reasoning_format if chat else None,
        samples_on_device=on_device,
    )
    engine = Engine(
        runner,
        _limits(context, sizes, options, info),
        step_target_s=options.step_target_s,
        speculates=options.speculation == "lookup" and not sizes.is_uniform,
        draft=None if draft is None else Draft(draft, DraftPay(options.step_target_s, options.draft_tokens)),
    )
    grammars = GrammarCompiler(model.vocabulary)
    return LoadedModel(model, engine, prompts, info, runner.samplers, rules, context, grammars, draft=draft)


def _load_embedder(model: LlamaModel, header: GgufHeader, pooling: Pooling, options: LoadOptions) -> LoadedModel:
    """As `_load_writer`, for a model that gives vectors or scores."""
    if options.lora:
        raise LoadFailed("adapters need a model that writes text, and this one embeds; leave --lora out")
    if options.draft_path is not None:
        raise LoadFailed("a draft needs a model that writes text, and this one embeds; leave --draft-model out")
    sizes = context_options(msgspec.structs.replace(options, kv_cells=0), model.trained_context)
    settled = embedding_options(header, pooling, sizes)
    engine, context = load_embedder(model, settled)
    info = embedding_info(model, header, settled, context)
    info = msgspec.structs.replace(info, gpu=library.gpu_device() if options.gpu_layers != 0 else None)
    prompts = PromptReader(model.vocabulary, None)
    work = embedding_work(prompts, model, info)
    rules = context_rules(info.context, "error", 0, can_shift=False)
    samplers = SamplerFactory(model.vocabulary)
    return LoadedModel(model, engine, prompts, info, samplers, rules, context, embedding=work)


def _cache_ram(options: LoadOptions, context: LlamaContext) -> int:
    """The budget for saved prefixes: none where cells cannot be taken back."""
    can_save = options.prefix_cache and context.reuse == "parts" and context.can_save
    return options.cache_ram_bytes if can_save else 0


def _limits(
    context: LlamaContext, sizes: ContextOptions, options: LoadOptions, info: ModelInfo
) -> SchedulerLimits:
    return SchedulerLimits(
        parallel=sizes.parallel,
        context=sizes.context,
        num_cells=sizes.kv_cells,
        batch_tokens=sizes.batch_tokens,
        num_slots=sizes.num_slots,
        shares_cells=sizes.is_unified,
        reuse=context.reuse,
        keeps_prefixes=options.prefix_cache,
        moves_cells=context.moves_cells and not sizes.is_uniform,  # as one that was computed again
        fills_tall=context.fills_tall,
        is_on_cpu=info.gpu is None or not sizes.kv_offload,
        is_uniform=sizes.is_uniform,
        host_tokens=info.cache_ram_bytes * sizes.kv_cells // max(1, info.kv_bytes),
    )


def _template(options: LoadOptions, model: LlamaModel, watch: Stopwatch) -> ChatTemplate | None:
    """Compile the chat template and render a first conversation: a template that hangs, hangs here.

    One that the owner gave must compile; without its own, a model serves plain completions.
    """
    source = options.chat_template or model.chat_template
    if source is None:
        return None
    tokens = {"bos_token": model.vocabulary.bos_text, "eos_token": model.vocabulary.eos_text}
    try:
        template = ChatTemplate(source, {**tokens, **options.chat_template_kwargs}, watch)
    except LoadFailed as error:
        if options.chat_template:
            raise
        logger.warning("%s; no chat without --chat-template FILE", error.message)
        return None
    try:
        template.render([Message("user", "hello")])
    except InvalidRequest as error:
        logger.warning("a first conversation: %s", error.message)
    return template


def _warm_up(runner: LlamaRunner, context: LlamaContext, sizes: ContextOptions, adapters: Sequence[str]) -> None:
    """Run once with every adapter and without, and see whether the model's memory gives single cells back."""
    sampler = runner.new_sampler(Sampling(temperature=0), ())
    num_tokens = min(WARM_UP_TOKENS, sizes.batch_tokens, sizes.context)
    for adapter in (*adapters, ""):
        runner.use_adapter(adapter)
        runner.run([Chunk(slot=0, start=0, tokens=[0] * num_tokens, sampler=sampler)])
        if not context.trim(0, 1):
            context.reuse = "wholes"
        runner.trim(0, 0)
    runner.decode_s = 0.0
