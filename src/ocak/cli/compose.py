"""Builds the parts out of the settings: the one place that knows all of them. Starts nothing.

Invariant: every model file has been read and found sound before a worker is told of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ocak.cli.adaptation import adapter_bytes, lora_adapters, rope_options, tensor_overrides
from ocak.cli.model_source import locate
from ocak.cli.progress import bytes_text
from ocak.cli.settings import ModelSettings, ServerSettings, Settings
from ocak.cli.sizes import parse_size
from ocak.core.embedding import INPUTS_IN_A_PASS
from ocak.core.errors import ConfigError
from ocak.fleet.fleet import Fleet, host_limit
from ocak.fleet.spec import ModelSpec
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Gateway, ServedModel
from ocak.memory.devices import memory_bytes, present_gpu
from ocak.memory.estimate import KvSettings, draft_bytes, estimate
from ocak.memory.gguf_header import GgufModel, read_model
from ocak.memory.ledger import HOST
from ocak.memory.model_kind import is_encoder, pooling_of
from ocak.providers.local import LocalProvider
from ocak.worker.messages import LoadOptions

DEFAULT_CONTEXT_LIMIT = 4096  # a model trained for more gets it only when asked
MAX_TEMPLATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """One model, its file found and checked: ready to be loaded."""

    spec: ModelSpec
    names: tuple[str, ...]
    queue: QueueLimits
    adapters: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.spec.key


def plan_models(settings: Settings) -> list[Plan]:
    """Find, pull and check every model; raises `ModelFileError`, `DownloadError` or `ConfigError`."""
    return [_plan(key, model) for key, model in settings.models.items()]


def plan_options(model: ModelSettings) -> LoadOptions:
    """How a model would be loaded, whether or not it fits; raises as `plan_models` does."""
    file = read_model(locate(model.source))
    draft = read_model(locate(model.draft_model)) if model.draft_model else None
    return _load_options(model, file, draft)


def other_bytes(model: ModelSettings, options: LoadOptions) -> int:
    """What is loaded beside a model: its adapters, and a draft model with the cache of one sequence."""
    adapters = adapter_bytes(options.lora)
    if options.draft_path is None:
        return adapters
    return adapters + draft_bytes(read_model(Path(options.draft_path)), model.context or DEFAULT_CONTEXT_LIMIT)


def build_fleet(plans: Sequence[Plan], server: ServerSettings) -> Fleet:
    """The fleet, with the memory that its models may take. Raises `ConfigError`."""
    limits = host_limit(server.memory_fraction)
    if server.memory_limit:
        limits = {HOST: min(memory_bytes(), parse_size("memory_limit", server.memory_limit))}
    return Fleet((plan.spec for plan in plans), limits, server.eviction, standby=server.standby)


def build_gateway(plans: Sequence[Plan], fleet: Fleet) -> Gateway:
    created = int(time.time())
    return Gateway(_served(plan, LocalProvider(fleet, plan.key), created) for plan in plans)


def _served(plan: Plan, provider: LocalProvider, created: int) -> ServedModel:
    return ServedModel(
        key=plan.key,
        provider=provider,
        admission=Admission(plan.queue),
        names=plan.names,
        adapters=plan.adapters,
        created=created,
        residence=provider,
    )


def _plan(key: str, model: ModelSettings) -> Plan:
    """The first served name, if any, is what the model is called; its own name keeps working."""
    file = read_model(locate(model.source))
    draft = read_model(locate(model.draft_model)) if model.draft_model else None
    options = _load_options(model, file, draft)
    needed = _bytes(model, file, draft) + adapter_bytes(options.lora)
    _check_memory(key, needed, draft)
    names = (*model.served_name, key)
    return Plan(
        spec=ModelSpec(
            key=names[0],
            options=options,
            estimated_bytes=needed,
            besides_bytes=other_bytes(model, options),
            priority=model.priority,
            keep_alive_s=None if model.keep_alive < 0 else model.keep_alive,
            preload=model.preload,
        ),
        names=names[1:],
        adapters=tuple(adapter.name for adapter in options.lora),
        queue=QueueLimits(parallel=_served_at_once(model, file), max_queued=model.max_queued),
    )


def _load_options(model: ModelSettings, file: GgufModel, draft: GgufModel | None) -> LoadOptions:
    return LoadOptions(
        path=str(file.paths[0].resolve()),
        context=model.context,
        parallel=model.parallel,
        kv_cells=model.kv_cells,
        context_policy=model.context_policy,
        n_keep=model.n_keep,
        batch_tokens=model.batch_tokens,
        step_target_s=model.inter_token_ms / 1000,
        prefix_cache=model.prefix_cache,
        cache_ram_bytes=model.cache_ram * 2**20,
        speculation=model.speculation,
        draft_path=None if draft is None else str(draft.paths[0].resolve()),
        draft_tokens=model.draft_tokens,
        device_sampling=model.device_sampling,
        deterministic=model.deterministic,
        threads=model.threads,
        gpu_layers=model.gpu_layers,
        kv_offload=model.kv_offload,
        kv_type=model.kv_type,
        flash_attn=model.flash_attn,
        mmap=model.mmap,
        mlock=model.mlock,
        lora=lora_adapters(model, file),
        rope=rope_options(model),
        tensor_overrides=tensor_overrides(model, file),
        chat_template=_template(model.chat_template),
        chat_template_kwargs=model.chat_template_kwargs,
        embedding=model.embedding,
        pooling=model.pooling,
        tool_format=None if model.tool_format == "auto" else model.tool_format,
        reasoning_format=None if model.reasoning_format == "auto" else model.reasoning_format,
    )


def _served_at_once(model: ModelSettings, file: GgufModel) -> int:
    """Sequences that generate, or inputs in one pass."""
    pooling = pooling_of(file.header, embedding=model.embedding, pooling=model.pooling)
    return model.parallel if pooling is None else max(model.parallel, INPUTS_IN_A_PASS)


def _bytes(model: ModelSettings, file: GgufModel, draft: GgufModel | None) -> int:
    trained = file.header.context_length or DEFAULT_CONTEXT_LIMIT
    context = model.context or min(trained, DEFAULT_CONTEXT_LIMIT)
    pooling = pooling_of(file.header, embedding=model.embedding, pooling=model.pooling)
    if pooling is not None and is_encoder(file.header):
        return file.weights_bytes
    cells = max(context, model.batch_tokens) if pooling else model.kv_cells or context * model.parallel
    own = estimate(file, KvSettings(cells, model.kv_type, model.kv_type)).total_bytes
    return own if draft is None else own + draft_bytes(draft, context)


def _check_memory(key: str, needed: int, draft: GgufModel | None) -> None:
    """Refuse what this machine cannot hold by any means; a GPU may hold what its memory cannot."""
    most = memory_bytes()
    if needed > most and present_gpu() is None:
        raise ConfigError(
            f"model {key!r} needs {bytes_text(needed)} for its weights and KV cache, and this machine has "
            f"{bytes_text(most)}; set a smaller --context, --parallel or --kv-cells, or a smaller --kv-type"
            + ("" if draft is None else "; its draft model is counted, leave out --draft-model"),
            param="context",
        )


def _template(path: str) -> str | None:
    if not path:
        return None
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--chat-template {path}: {reason}", param="chat_template") from error
    if len(text) > MAX_TEMPLATE_BYTES:
        raise ConfigError(f"--chat-template {path}: over {MAX_TEMPLATE_BYTES} characters", param="chat_template")
    return text
