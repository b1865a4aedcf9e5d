"""Writes tiny LoRA adapters for the models of `tests.models`. Knows no test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGUFWriter

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

WIDTH, KV_WIDTH, HIDDEN = 64, 32, 96  # of `TinyModel`
MATRICES = {"attn_q": (WIDTH, WIDTH), "attn_v": (KV_WIDTH, WIDTH), "ffn_down": (WIDTH, HIDDEN)}  # rows, columns


@dataclass(frozen=True, slots=True)
class TinyAdapter:
    """`strength` is how far the random matrices move the model's; 0 leaves it as it was."""

    seed: int = 0
    strength: float = 1.0
    rank: int = 4
    alpha: float = 4.0
    architecture: str = "llama"
    num_layers: int = 2


def write_adapter(
    path: Path,
    adapter: TinyAdapter | None = None,
    *,
    tensors: Mapping[str, Array] | None = None,
    kind: str = gguf.GGUFType.ADAPTER,
) -> Path:
    """Write an adapter; `tensors` takes the place of its own."""
    adapter = adapter or TinyAdapter()
    writer = GGUFWriter(path, adapter.architecture)
    writer.add_type(kind)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
    for name, tensor in (adapter_tensors(adapter) if tensors is None else tensors).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def adapter_tensors(adapter: TinyAdapter) -> dict[str, Array]:
    random = np.random.default_rng(adapter.seed)
    tensors: dict[str, Array] = {}
    for layer in range(adapter.num_layers):
        for name, (rows, columns) in MATRICES.items():
            a = random.standard_normal((adapter.rank, columns), dtype=np.float32) / columns**0.5
            b = random.standard_normal((rows, adapter.rank), dtype=np.float32) * adapter.strength
            tensors[f"blk.{layer}.{name}.weight.lora_a"] = a.astype(np.float32)
            tensors[f"blk.{layer}.{name}.weight.lora_b"] = b.astype(np.float32)
    return tensors
