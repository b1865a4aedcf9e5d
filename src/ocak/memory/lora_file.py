"""Decides whether a LoRA adapter fits a model, from both headers alone, before llama.cpp sees the file.

An adapter holds two matrices for each of the model's that it changes: NAME.lora_a (row length as the model's) and
NAME.lora_b (rows as the model's), with the rank between them. llama.cpp checks a part of that and aborts the
process over the rest.
Invariant: what is accepted multiplies with the model's tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ocak.core.shown import quoted
from ocak.memory.gguf_cursor import refuse
from ocak.memory.gguf_header import GgufHeader, GgufModel, read_header
from ocak.memory.gguf_tensors import TensorInfo

_A, _B = ".lora_a", ".lora_b"
_EMBEDDING: Final = "token_embd.weight"
_UNUSABLE: Final = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")
_HINT: Final = "it was made for another model"


def read_adapter(path: Path, model: GgufModel) -> GgufHeader:
    """Read and check an adapter for `model`; raises `ModelFileError`."""
    header = read_header(path)
    _check_kind(header, model.header.architecture)
    tensors = {tensor.name: tensor for part in model.parts for tensor in part.tensors}
    pairs = _pairs(header)
    if not pairs:
        raise refuse(path, "it holds no LoRA tensors")
    for name, (a, b) in pairs.items():
        _check_pair(header, a, b, tensors.get(name))
    if _EMBEDDING in pairs and "output.weight" not in tensors:
        raise refuse(path, f"it changes {_EMBEDDING}, which is this model's output too: llama.cpp cannot do that")
    return header


def _check_kind(header: GgufHeader, architecture: str) -> None:
    expected = {"general.type": "adapter", "adapter.type": "lora"}
    for key, value in expected.items():
        found = header.metadata.get(key)
        if found != value:
            raise refuse(header.path, f"it is no LoRA adapter: {key} is {quoted(found)}, not {value!r}")
    if header.architecture != architecture:
        raise refuse(
            header.path, f"its architecture is {header.architecture}, the model's {architecture}: {_HINT}"
        )
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise refuse(header.path, "it is an activated LoRA (aLoRA), which is not supported")
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise refuse(header.path, f"adapter.lora.alpha is {alpha!r}, it must be a finite float")


def _pairs(header: GgufHeader) -> Mapping[str, tuple[TensorInfo, TensorInfo]]:
    """The tensors, two by two, by the name of the model's."""
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = dict.fromkeys(name.removesuffix(_A).removesuffix(_B) for name in tensors if _is_used(header, name))
    for name in names:
        for half in (name + _A, name + _B):
            if half not in tensors:
                raise refuse(header.path, f"{half} is missing")
    return {name: (tensors[name + _A], tensors[name + _B]) for name in names}


def _is_used(header: GgufHeader, name: str) -> bool:
    if name.endswith((_A, _B)):
        return True
    if name.endswith("_norm.weight"):
        return False  # llama.cpp passes over changed norms
    raise refuse(header.path, f"tensor {name!r} is neither a .lora_a nor a .lora_b")


def _check_pair(header: GgufHeader, a: TensorInfo, b: TensorInfo, base: TensorInfo | None) -> None:
    name = a.name.removesuffix(_A)
    if base is None:
        raise refuse(header.path, f"the model has no tensor {name!r}: {_HINT}")
    for half in (a, b):
        if half.ggml_type in _UNUSABLE:
            raise refuse(header.path, f"tensor {half.name!r} is of type {half.ggml_type}, of no use here")
    if len(base.shape) < 2:
        raise refuse(header.path, f"the model's {name!r} is no matrix, a LoRA cannot change it")
    expected = _expected(name, base, rank=b.shape[0])
    for half, shape in zip((a, b), expected, strict=True):
        if _padded(half.shape) != shape:
            shown = " x ".join(map(str, half.shape))
            wanted = " x ".join(map(str, shape))
            raise refuse(header.path, f"tensor {half.name!r} is {shown}, the model needs {wanted}: {_HINT}")


def _expected(name: str, base: TensorInfo, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of both halves; an embedding is looked up by rows, so its halves lie the other way."""
    row, rows, *experts = _padded(base.shape)
    if name == _EMBEDDING:
        return (rank, rows, *experts), (rank, row, *experts)
    return (row, rank, *experts), (rank, rows, *experts)


def _padded(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1, 1, 1)[:4]
