"""Decides whether the tensor table of a GGUF is sound. Knows no architecture and reads no weights.

Invariant: the tensors returned have distinct names, known types, whole blocks, and lie one after the other,
aligned, inside the file; the same rules as llama.cpp's `gguf.cpp`, checked before it sees the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from ocak.memory.ggml_types import TYPE_BY_ID, GgmlType
from ocak.memory.gguf_cursor import Cursor

TENSOR_ENTRY_BYTES: Final = 8 + 1 + 4 + 4 + 8  # length, name of one byte, no dimension, type, offset
_MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME - 1
_MAX_DIMS: Final = 4  # GGML_MAX_DIMS
_MAX_ELEMENTS: Final = 2**63 - 1

Fail = Callable[[str], NoReturn]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` as in ggml (row length first), `offset` from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    ggml_type: str
    offset: int
    num_bytes: int


def read_tensor_infos(cursor: Cursor, count: int, fail: Fail) -> tuple[TensorInfo, ...]:
    """Read `count` entries of the tensor table; `fail` raises."""
    infos: dict[str, TensorInfo] = {}
    for index in range(count):
        cursor.field = f"tensor {index}"
        info = _read_tensor_info(cursor, fail)
        if info.name in infos:
            fail(f"two tensors are named {info.name!r}")
        infos[info.name] = info
    return tuple(infos.values())


def check_layout(tensors: Sequence[TensorInfo], alignment: int, data_bytes: int, fail: Fail) -> None:
    """Refuse tensors that overlap, leave gaps, are misaligned or end after `data_bytes`."""
    expected = 0
    for tensor in tensors:
        if tensor.offset % alignment:
            fail(f"tensor {tensor.name!r} has offset {tensor.offset}, not a multiple of {alignment}")
        if tensor.offset != expected:
            fail(f"tensor {tensor.name!r} has offset {tensor.offset}, the one before it ends at {expected}")
        if tensor.offset + tensor.num_bytes > data_bytes:
            missing = tensor.offset + tensor.num_bytes - data_bytes
            fail(f"tensor {tensor.name!r} ends {missing} bytes after the end of the file: it is truncated")
        expected = align(tensor.offset + tensor.num_bytes, alignment)


def align(offset: int, alignment: int) -> int:
    """The next multiple of `alignment`, `offset` itself included."""
    return -(-offset // alignment) * alignment


def _read_tensor_info(cursor: Cursor, fail: Fail) -> TensorInfo:
    name = cursor.short_text(f"the name of {cursor.field}", _MAX_NAME_BYTES)
    cursor.field = f"tensor {name!r}"
    shape = _read_shape(cursor, fail)
    ggml_type = _read_type(cursor, fail)
    block = ggml_type.block_size
    if shape[0] % block:
        fail(f"{cursor.field} has rows of {shape[0]} elements, {ggml_type.name} needs multiples of {block}")
    num_bytes = ggml_type.row_bytes(math.prod(shape))
    return TensorInfo(name, shape, ggml_type.name, cursor.u64(), num_bytes)


def _read_shape(cursor: Cursor, fail: Fail) -> tuple[int, ...]:
    num_dims = cursor.u32()
    if not 1 <= num_dims <= _MAX_DIMS:
        fail(f"{cursor.field} has {num_dims} dimensions, it must have 1 to {_MAX_DIMS}")
    shape = tuple(cursor.u64() for _ in range(num_dims))
    if not 0 < math.prod(shape) <= _MAX_ELEMENTS:
        fail(f"{cursor.field} has the impossible shape {shape}")
    return shape


def _read_type(cursor: Cursor, fail: Fail) -> GgmlType:
    type_id = cursor.u32()
    if type_id not in TYPE_BY_ID:
        fail(f"{cursor.field} has the unknown type {type_id}; a newer ocak may know it")
    return TYPE_BY_ID[type_id]
