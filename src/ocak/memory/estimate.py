"""Decides how many bytes a model needs for its weights and its KV cache, from the header alone.

Formula: per layer `row(type_k, n_kv*d_k) + row(type_v, n_kv*d_v)` bytes, times the cells
(`llama-kv-cache.cpp`); with multi-head latent attention only the keys are kept.
Does not know compute buffers, recurrent states, the vocabulary in host memory, or which layers use a sliding
window (those are counted in full): `KvBound` says in which direction the answer may be off. The planner's dry
run is the exact answer.
Invariant: pure and monotonic: more cells or wider types never cost less.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ocak.core.errors import ConfigError, ModelFileError
from ocak.memory.ggml_types import TYPE_BY_NAME
from ocak.memory.gguf_cursor import refuse
from ocak.memory.gguf_header import GgufHeader, GgufModel

KV_TYPES: Final = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
_CELL_PADDING: Final = 256  # llama.cpp rounds the context up to this many cells
_FLOAT_BYTES: Final = 4
_MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS
_SANE: Final = 1 << 24
_MOST_BYTES: Final = 1 << 56  # 64 PiB: sums of such sizes still fit 64 bits, wherever they are told


class KvBound(StrEnum):
    """How `kv_bytes` relates to what llama.cpp will allocate."""

    EXACT = "exact"
    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True)
class KvSettings:
    """`cells` tokens in all sequences together; the types of keys and values; raises `ConfigError`."""

    cells: int
    type_k: str = "f16"
    type_v: str = "f16"

    def __post_init__(self) -> None:
        if self.cells <= 0:
            raise ConfigError(f"A KV cache of {self.cells} cells was asked for; it must have one or more.")
        for kv_type in (self.type_k, self.type_v):
            if kv_type not in KV_TYPES:
                raise ConfigError(f"The KV type {kv_type!r} is not one of {', '.join(KV_TYPES)}.", param="kv_type")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes; compute buffers come on top."""

    weights_bytes: int
    kv_bytes: int
    kv_bound: KvBound

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes


def estimate(model: GgufModel, settings: KvSettings) -> MemoryEstimate:
    """What serving `model` takes; raises `ModelFileError` when the metadata needed is missing or absurd."""
    header = model.header
    return MemoryEstimate(model.weights_bytes, kv_bytes(header, settings), _bound(header))


def draft_bytes(model: GgufModel, context: int) -> int:
    """What a draft model takes that follows one sequence of so many tokens; raises `ModelFileError`."""
    cells = min(context, model.header.context_length or context)
    return estimate(model, KvSettings(cells)).total_bytes


def kv_bytes(header: GgufHeader, settings: KvSettings) -> int:
    """Bytes of the attention layers' KV cache."""
    cells = -(-settings.cells // _CELL_PADDING) * _CELL_PADDING
    key_length, value_length = _head_lengths(header)
    num_bytes = cells * sum(
        _row_bytes(header, settings.type_k, heads * key_length)
        + _row_bytes(header, settings.type_v, heads * value_length)
        for heads in _kv_heads(header)
    )
    if num_bytes > _MOST_BYTES:
        raise refuse(header.path, f"{settings.cells} KV cells of this model would take {num_bytes} bytes")
    return num_bytes


def score_bytes(header: GgufHeader, rows: int, cells: int) -> int:
    """Bytes that so many rows' attention to so many cells takes without flash attention, one layer at a time."""
    return rows * cells * _num_heads(header) * _FLOAT_BYTES


def _row_bytes(header: GgufHeader, kv_type: str, num_elements: int) -> int:
    ggml_type = TYPE_BY_NAME[kv_type.upper()]
    if num_elements % ggml_type.block_size:
        raise ModelFileError(
            f"{header.path}: a KV row of {num_elements} elements does not fill {kv_type}'s blocks of "
            f"{ggml_type.block_size}. Choose f16 as the KV type for this model.",
            param="kv_type",
        )
    return ggml_type.row_bytes(num_elements)


def _kv_heads(header: GgufHeader) -> tuple[int, ...]:
    """Key-value heads of each layer; 0 where a layer keeps no KV (recurrent layers)."""
    num_layers = _required(header, "block_count", _MAX_LAYERS)
    heads = header.metadata.get(f"{header.architecture}.attention.head_count_kv")
    if not isinstance(heads, tuple):
        return (_default_kv_heads(header),) * num_layers
    if len(heads) != num_layers or not all(isinstance(n, int) and 0 <= n <= _SANE for n in heads):
        raise refuse(header.path, f"attention.head_count_kv must hold {num_layers} whole numbers")
    return tuple(int(n) for n in heads)


def _default_kv_heads(header: GgufHeader) -> int:
    heads_kv = _optional(header, "attention.head_count_kv")
    return _num_heads(header) if heads_kv is None else heads_kv


def _head_lengths(header: GgufHeader) -> tuple[int, int]:
    """Elements of one key and one value head; the value is 0 where llama.cpp keeps keys only (MLA)."""
    num_heads = _num_heads(header)
    default = _required(header, "embedding_length", _SANE) // num_heads if num_heads else 0
    key, value = (
        max(_or(_optional(header, name), default), _or(_optional(header, f"{name}_swa"), 0))
        for name in ("attention.key_length", "attention.value_length")
    )
    return key, 0 if _has_latent_attention(header) else value


def _num_heads(header: GgufHeader) -> int:
    """Query heads; of a per-layer array, those of the first layer that has any."""
    heads = header.metadata.get(f"{header.architecture}.attention.head_count")
    if isinstance(heads, tuple):
        return next((n for n in heads if isinstance(n, int) and 0 < n <= _SANE), 0)
    return _required(header, "attention.head_count", _SANE)


def _has_latent_attention(header: GgufHeader) -> bool:
    lengths = (_optional(header, f"attention.{name}_length_mla") for name in ("key", "value"))
    return all(lengths)


def _bound(header: GgufHeader) -> KvBound:
    keys = {key.removeprefix(f"{header.architecture}.") for key in header.metadata}
    if any(key.startswith(("ssm.", "wkv.", "shortconv.")) for key in keys):
        return KvBound.AT_LEAST
    if keys & {"attention.sliding_window", "nextn_predict_layers", "attention.shared_kv_layers"}:
        return KvBound.AT_MOST
    return KvBound.EXACT


def _required(header: GgufHeader, key: str, limit: int) -> int:
    value = _optional(header, key, limit)
    if value is None:
        raise refuse(header.path, f"{header.architecture}.{key} is missing")
    return value


def _optional(header: GgufHeader, key: str, limit: int = _SANE) -> int | None:
    value = header.architecture_integer(key)
    if value is not None and value > limit:
        raise refuse(header.path, f"{header.architecture}.{key} is {value}, the limit is {limit}")
    return value


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
