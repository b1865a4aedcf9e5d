"""Decides whether a model file can be trusted by llama.cpp, and tells what is in it. Reads no weights.

`read_model` is for serving: it takes any part of a split model and checks all parts and their counts.
`read_header` reads one file. What the values mean for memory is decided in `estimate.py`.
Invariant: whatever the bytes of a file are, the answer is a header whose every count, length and offset lies
within the file, or a `ModelFileError` naming the file and the field; in bounded time and memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, NoReturn

from ocak.core.shown import quoted
from ocak.memory.gguf_cursor import (
    FLOAT32_TYPE,
    LIMITS,
    SCALAR_NAMES,
    UINT32_TYPE,
    Cursor,
    LargeArray,
    MetadataValue,
    refuse,
)
from ocak.memory.gguf_tensors import (
    TENSOR_ENTRY_BYTES,
    Fail,
    TensorInfo,
    align,
    check_layout,
    read_tensor_infos,
)
from ocak.memory.split_names import parse_split_name

__all__ = [
    "GgufHeader", "GgufModel", "LargeArray", "MetadataValue", "TensorInfo", "read_header", "read_model",
]  # fmt: skip

_VERSIONS: Final = (2, 3)
_DEFAULT_ALIGNMENT: Final = 32
_MAX_ARCHITECTURE: Final = 64  # characters; every key that is looked up begins with it
_READ_AS: Final = {"general.alignment": UINT32_TYPE, "adapter.lora.alpha": FLOAT32_TYPE}  # or llama.cpp aborts
_KV_ENTRY_BYTES: Final = 8 + 1 + 4 + 1  # length, key of one byte, type, value of one byte
_OTHER_FORMATS: Final = {
    b"PK\x03\x04": "a zip or PyTorch file",
    b"vers": "a Git LFS pointer, not the file it points to",
    b"<!do": "a web page",
    b"<htm": "a web page",
    b"lmgg": "a GGML file of before August 2023",
    b"tjgg": "a GGJT file of before August 2023",
}


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Everything of one file but its weights; `architecture` is empty in the later parts of a split."""

    path: Path
    version: int
    architecture: str
    alignment: int
    data_offset: int
    file_bytes: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[TensorInfo, ...]
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # of the entries in the file, keys included

    @property
    def name(self) -> str:
        """The model's own name, else that of the file."""
        name = self.metadata.get("general.name")
        return name if isinstance(name, str) and name else self.path.stem

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        return self.architecture_integer("context_length")

    @property
    def block_count(self) -> int | None:
        """Number of layers."""
        return self.architecture_integer("block_count")

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors in this file, without padding."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def has_weights(self) -> bool:
        """False for a vocabulary-only file."""
        return bool(self.tensors)

    def integer(self, key: str) -> int | None:
        """The integer under `key`, None when it is absent; anything else there is a `ModelFileError`."""
        value = self.metadata.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        raise refuse(self.path, f"{key} is {quoted(value)}, it must be a whole number")

    def architecture_integer(self, key: str) -> int | None:
        """As `integer`, for a key below the architecture's name."""
        return self.integer(f"{self.architecture}.{key}")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """All parts of one model, in order; `header` is the first part's, which carries the metadata."""

    parts: tuple[GgufHeader, ...]

    @property
    def header(self) -> GgufHeader:
        return self.parts[0]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(part.path for part in self.parts)

    @property
    def weights_bytes(self) -> int:
        return sum(part.weights_bytes for part in self.parts)

    @property
    def file_bytes(self) -> int:
        return sum(part.file_bytes for part in self.parts)


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of one file; raises `ModelFileError`."""
    try:
        if path.exists() and not path.is_file():
            raise refuse(path, "it is not a regular file")
        with path.open("rb") as file:
            return _read(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise refuse(path, f"cannot be read: {error.strerror or error}") from error


def read_model(path: Path) -> GgufModel:
    """Read and check the model `path` belongs to, all parts of a split; raises `ModelFileError`."""
    header = read_header(path)
    parts = (header,) if _split_count(header) <= 1 else _read_parts(header)
    if not any(part.has_weights for part in parts):
        raise refuse(path, "it holds a vocabulary but no weights, so it cannot be served")
    return GgufModel(parts)


def _read(path: Path, file: BinaryIO, size: int) -> GgufHeader:
    def fail(problem: str) -> NoReturn:
        raise refuse(path, problem)

    cursor = Cursor(file, size, fail)
    version = _read_version(cursor, fail)
    num_tensors = cursor.count("the number of tensors", TENSOR_ENTRY_BYTES)
    num_entries = cursor.count("the number of metadata entries", _KV_ENTRY_BYTES)
    metadata, spans = _read_metadata(cursor, num_entries, fail)
    alignment = _alignment(metadata, fail)
    tensors = read_tensor_infos(cursor, num_tensors, fail)
    data_offset = align(cursor.position, alignment)
    check_layout(tensors, alignment, size - data_offset, fail)
    architecture = _architecture(metadata, fail)
    frozen, places = MappingProxyType(metadata), MappingProxyType(spans)
    return GgufHeader(path, version, architecture, alignment, data_offset, size, frozen, tensors, places)


def _read_version(cursor: Cursor, fail: Fail) -> int:
    magic = cursor.raw(4)
    if magic != b"GGUF":
        fail(f"it begins with {magic!r}, not GGUF: {_OTHER_FORMATS.get(magic.lower(), 'another format')}")
    version = cursor.u32()
    if version & 0xFFFF == 0:
        fail("it is a big-endian GGUF; convert it with gguf_convert_endian.py")
    if version not in _VERSIONS:
        fail(f"it is GGUF version {version}, ocak reads {_VERSIONS[0]} and {_VERSIONS[-1]}")
    return version


def _read_metadata(
    cursor: Cursor, count: int, fail: Fail
) -> tuple[dict[str, MetadataValue], dict[str, tuple[int, int]]]:
    metadata: dict[str, MetadataValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    for index in range(count):
        start = cursor.position
        cursor.field = f"metadata entry {index}"
        key = cursor.short_text(f"the key of {cursor.field}", LIMITS.key_bytes)
        if key in metadata:
            fail(f"metadata key {key!r} appears twice")
        cursor.field = key
        value_type = cursor.u32()
        wanted = _READ_AS.get(key, value_type)
        if value_type != wanted:
            fail(f"{key} has value type {value_type}, it must be {SCALAR_NAMES[wanted]}")
        metadata[key] = cursor.value(value_type)
        spans[key] = (start, cursor.position)
    return metadata, spans


def _alignment(metadata: Mapping[str, MetadataValue], fail: Fail) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        fail(f"general.alignment is {alignment!r}, it must be a power of two")
    return alignment


def _architecture(metadata: Mapping[str, MetadataValue], fail: Fail) -> str:
    """The architecture; llama.cpp's later parts of a split carry none."""
    is_later_part = metadata.get("split.no", 0) != 0
    architecture = metadata.get("general.architecture", "" if is_later_part else None)
    if not isinstance(architecture, str) or not (architecture or is_later_part):
        fail(f"general.architecture is {quoted(architecture)}: nobody can tell what model this is")
    if len(architecture) > _MAX_ARCHITECTURE or not architecture.isprintable():
        fail(f"general.architecture is {quoted(architecture)}, no name of at most {_MAX_ARCHITECTURE} characters")
    return architecture


def _split_count(header: GgufHeader) -> int:
    return header.integer("split.count") or 1


def _read_parts(header: GgufHeader) -> tuple[GgufHeader, ...]:
    name = parse_split_name(header.path.name)
    count = _split_count(header)
    if name is None or name.count != count:
        raise refuse(header.path, f"it is one of {count} parts, but is not named NAME-00001-of-{count:05d}.gguf")
    paths = [header.path.with_name(sibling) for sibling in name.siblings()]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise refuse(header.path, f"of its {count} parts these are missing beside it: {', '.join(missing[:8])}")
    parts = tuple(header if path == header.path else read_header(path) for path in paths)
    _check_parts(parts)
    return parts


def _check_parts(parts: tuple[GgufHeader, ...]) -> None:
    """Each part must know its place, and their tensors must add up to what the first one promises."""
    first = parts[0]
    for index, part in enumerate(parts):
        place = (part.integer("split.no"), part.integer("split.count"))
        if place != (index, len(parts)):
            raise refuse(part.path, f"its split.no and split.count are {place}, expected {(index, len(parts))}")
    if not first.architecture:
        raise refuse(first.path, "general.architecture is missing from the first part")
    names = [tensor.name for part in parts for tensor in part.tensors]
    promised = first.integer("split.tensors.count")
    if promised != len(names):
        raise refuse(first.path, f"split.tensors.count is {promised}, its parts hold {len(names)}")
    if len(set(names)) != len(names):
        raise refuse(first.path, "a tensor appears in two of its parts")
