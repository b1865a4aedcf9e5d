"""Turns the settings that bend a model into a worker's options, checked against the model's file."""

from __future__ import annotations

from pathlib import Path

from ocak.cli.adaptation_settings import AdaptationSettings
from ocak.cli.model_source import locate
from ocak.core.errors import ConfigError
from ocak.core.lora import MAX_ADAPTERS, LoraAdapter, parse_adapter
from ocak.core.placement import TensorOverride, check_found, overrides
from ocak.core.rope import RopeOptions, freq_scale
from ocak.memory.gguf_header import GgufModel
from ocak.memory.lora_file import read_adapter


def rope_options(model: AdaptationSettings) -> RopeOptions:
    return RopeOptions(
        scaling=model.rope_scaling,
        freq_base=model.rope_freq_base,
        freq_scale=freq_scale(model.rope_scale, model.rope_freq_scale),
        yarn_orig_ctx=model.yarn_orig_ctx,
        yarn_ext_factor=model.yarn_ext_factor,
        yarn_attn_factor=model.yarn_attn_factor,
        yarn_beta_fast=model.yarn_beta_fast,
        yarn_beta_slow=model.yarn_beta_slow,
    )


def tensor_overrides(model: AdaptationSettings, file: GgufModel) -> tuple[TensorOverride, ...]:
    """Raises `ConfigError` for what cannot be read, or is found in none of the file's tensors."""
    found = overrides(model.override_tensor, cpu_moe=model.cpu_moe, n_cpu_moe=model.n_cpu_moe)
    check_found(model.override_tensor, [tensor.name for part in file.parts for tensor in part.tensors])
    return found


def lora_adapters(model: AdaptationSettings, file: GgufModel) -> tuple[LoraAdapter, ...]:
    """Find and check every adapter. Raises `ConfigError`, `ModelFileError` or `DownloadError`."""
    if len(model.lora) > MAX_ADAPTERS:
        raise ConfigError(f"{len(model.lora)} LoRA adapters; a model may have {MAX_ADAPTERS}", param="lora")
    return tuple(_adapter(name, text, file) for name, text in model.lora.items())


def _adapter(name: str, text: str, file: GgufModel) -> LoraAdapter:
    adapter = parse_adapter(name, text)
    header = read_adapter(locate(adapter.path), file)
    return LoraAdapter(name, str(header.path.resolve()), adapter.scale)


def adapter_bytes(adapters: tuple[LoraAdapter, ...]) -> int:
    """About what they take in memory: as much as their files."""
    return sum(Path(adapter.path).stat().st_size for adapter in adapters)
