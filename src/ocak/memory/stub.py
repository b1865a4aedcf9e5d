"""Decides what a *stub* of a model is: a GGUF that llama.cpp plans from as from the model, and reads in no time.

It has the model's metadata, byte for byte, and its tensors, laid out anew as one file; their data is a hole. Left
out are the tokens themselves, which take most of the time: its tokenizer is `none`, with as many of them as the
embedding has rows. What needs a token's text must not be asked of a stub.
Invariant: whatever llama.cpp derives sizes from is the same as in the model's own files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from ocak.memory.ggml_types import TYPE_BY_ID
from ocak.memory.gguf_cursor import STRING_TYPE, UINT32_TYPE, refuse
from ocak.memory.gguf_header import GgufHeader, GgufModel
from ocak.memory.gguf_tensors import TensorInfo, align

_VERSION: Final = 3
_TYPE_IDS: Final = {ggml_type.name: number for number, ggml_type in TYPE_BY_ID.items()}
_EMBEDDING: Final = "token_embd.weight"
_TOKENIZER: Final = "tokenizer."
_TOKENIZER_MODEL: Final = "tokenizer.ggml.model"


@dataclass(frozen=True, slots=True)
class Stub:
    """The first bytes of the file, and how long it is; all behind the first ones is a hole."""

    header: bytes
    file_bytes: int


def make_stub(model: GgufModel) -> Stub:
    """Return the stub of all parts of a model. Raises `ModelFileError` where there can be none."""
    try:
        with model.header.path.open("rb") as file:
            entries = [*_kept_entries(model.header, file), *_own_entries(model)]
    except OSError as error:
        raise refuse(model.header.path, f"cannot be read: {error.strerror or error}") from error
    tensors = [tensor for part in model.parts for tensor in part.tensors]
    return _lay_out(entries, tensors, model.header.alignment)


def _kept_entries(header: GgufHeader, file: BinaryIO) -> Iterator[bytes]:
    own = (_TOKENIZER_MODEL, _vocab_size_key(header))
    for key, (start, end) in header.spans.items():
        if key in own or key.startswith("split.") or _is_of_tokens(header, key):
            continue
        file.seek(start)
        yield file.read(end - start)


def _is_of_tokens(header: GgufHeader, key: str) -> bool:
    """Whether it is the tokenizer's, and no number: some of those are dimensions."""
    return key.startswith(_TOKENIZER) and not isinstance(header.metadata[key], int | float)


def _own_entries(model: GgufModel) -> tuple[bytes, bytes]:
    return (
        _text(_TOKENIZER_MODEL) + struct.pack("<I", STRING_TYPE) + _text("none"),
        _text(_vocab_size_key(model.header)) + struct.pack("<II", UINT32_TYPE, _num_tokens(model)),
    )


def _vocab_size_key(header: GgufHeader) -> str:
    return f"{header.architecture}.vocab_size"


def _num_tokens(model: GgufModel) -> int:
    for part in model.parts:
        for tensor in part.tensors:
            if tensor.name == _EMBEDDING and len(tensor.shape) > 1:
                return tensor.shape[1]
    raise refuse(model.header.path, f"it has no {_EMBEDDING}, so nobody can tell how many tokens it knows")


def _lay_out(entries: list[bytes], tensors: list[TensorInfo], alignment: int) -> Stub:
    table, end = [], 0
    for tensor in tensors:
        offset = align(end, alignment)
        table.append(_tensor_entry(tensor, offset))
        end = offset + tensor.num_bytes
    counts = struct.pack("<IQQ", _VERSION, len(tensors), len(entries))
    header = b"".join((b"GGUF", counts, *entries, *table))
    return Stub(header, align(align(len(header), alignment) + end, alignment))


def _tensor_entry(tensor: TensorInfo, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return _text(tensor.name) + shape + struct.pack("<IQ", _TYPE_IDS[tensor.ggml_type], offset)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
