"""The file of a saved conversation: a head, its token ids, llama.cpp's cells, a checksum. Knows no engine.

Cells are read by C, so nothing of a file reaches it that this program did not write for this very model: the head
says what for, the checksum that it is whole, the file's owner and rights that nobody else could have written it.
A file is either whole or not there: it is written beside its place and moved into it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ocak.core.errors import StateFileError
from ocak.core.rope import RopeOptions

VERSION = 1
MAGIC = b"ocak-state\n"
LENGTH = struct.Struct(">Q")
DIGEST_BYTES = hashlib.sha256().digest_size
MAX_HEAD_BYTES = 64 * 1024 * 1024
READ_BYTES = 8 * 1024 * 1024
Cells = bytes | memoryview


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What the cells are of; all but `tokens` must be the same where they are restored."""

    version: int = VERSION
    library: str  # of llama-cpp-python: the form of the cells is its own
    model: str  # SHA-256 of the model's files
    kv_type: str
    rope: RopeOptions
    tenant: str
    cache_salt: str
    tokens: bytes  # int32, little endian

    @property
    def token_ids(self) -> list[int]:
        ids: list[int] = np.frombuffer(self.tokens, "<i4").tolist()
        return ids


@dataclass(frozen=True, slots=True)
class State:
    head: Head
    cells: Cells


def pack_tokens(tokens: Sequence[int]) -> bytes:
    return np.asarray(tokens, "<i4").tobytes()


def fingerprint(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of a model's files, read whole: seconds for each GB."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def write_state(path: Path, head: Head, cells: Cells) -> None:
    """Raises `StateFileError`: no such folder, no rights, a full disk."""
    encoded = msgspec.msgpack.encode(head)
    pieces = (MAGIC, LENGTH.pack(len(encoded)), encoded, cells)
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    try:
        _write_whole(path, (*pieces, digest.digest()))
    except OSError as error:
        raise StateFileError(
            f"{path.name} could not be written: {error.strerror or error}", param="path"
        ) from error


def read_state(path: Path, expected: Head) -> State:
    """Return a conversation that was saved for just that. Raises `StateFileError` that says what differs."""
    try:
        data = _read_own(path)
    except OSError as error:
        raise StateFileError(f"{path.name} could not be read: {error.strerror or error}", param="path") from error
    body, digest = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    start = len(MAGIC) + LENGTH.size
    if body[: len(MAGIC)] != MAGIC or len(body) < start:
        raise StateFileError(f"{path.name} is no saved conversation", param="path")
    if hashlib.sha256(body).digest() != digest:
        raise StateFileError(f"{path.name} is damaged: its checksum is another; delete it", param="path")
    (length,) = LENGTH.unpack(body[len(MAGIC) : start])
    try:
        head = msgspec.msgpack.decode(body[start : start + min(length, MAX_HEAD_BYTES)], type=Head)
    except msgspec.MsgspecError as error:
        raise StateFileError(f"{path.name} is of another version of ocak: save it anew", param="path") from error
    _check(path, head, expected)
    return State(head, body[start + length :])


def _check(path: Path, head: Head, expected: Head) -> None:
    for name in ("version", "library", "model", "kv_type", "rope", "tenant", "cache_salt"):
        if getattr(head, name) != getattr(expected, name):
            raise StateFileError(f"{path.name} is of another {DIFFERENCES[name]}; save it anew", param="path")


DIFFERENCES = {
    "version": "version of ocak",
    "library": "version of llama-cpp-python",
    "model": "model file",
    "kv_type": "kv_type",
    "rope": "RoPE scaling",
    "tenant": "tenant",
    "cache_salt": "cache_salt",
}


def _write_whole(path: Path, pieces: Sequence[Cells]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # for its owner alone
    try:
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _read_own(path: Path) -> bytes:
    """Read a file that nobody else may write to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise StateFileError(
                f"{path.name} must be a file of this user's that nobody else may write: cells go to C as they are",
                param="path",
            )
        return file.read()
