"""Gathers the bytes of one file and hashes them on the way. Knows neither where they come from nor where they go.

Invariant: what the hasher has seen is exactly what lies in the file, and never more than the file's listed size.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Final, Self

from ocak.hub.reference import RepoFile

_CHUNK: Final = 1 << 20


class PartialFile:
    """A file being downloaded; opening it hashes what an earlier try has left."""

    def __init__(self, path: Path, file: RepoFile) -> None:
        self._path = path
        self._file = file
        self.num_bytes = 0

    def __enter__(self) -> Self:
        self._stream = self._path.open("r+b" if self._path.exists() else "w+b")
        self._hasher = _Hasher(self._file)
        self.num_bytes = self._hasher.read(self._stream)
        if self.num_bytes > self._file.num_bytes:
            self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def is_complete(self) -> bool:
        return self.num_bytes == self._file.num_bytes

    def write(self, chunk: bytes) -> None:
        """Append; bytes beyond the listed size are dropped."""
        kept = chunk[: self._file.num_bytes - self.num_bytes]
        self._stream.write(kept)
        self._hasher.update(kept)
        self.num_bytes += len(kept)

    def restart(self) -> None:
        """Forget all bytes."""
        self._stream.seek(0)
        self._stream.truncate()
        self._hasher = _Hasher(self._file)
        self.num_bytes = 0

    def finish(self) -> str:
        """Make the bytes durable; returns their digest."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._hasher.digest()


def digest_of(path: Path, file: RepoFile) -> str:
    """The digest of what lies at `path`, of the kind that `file` has."""
    hasher = _Hasher(file)
    with path.open("rb") as stream:
        hasher.read(stream)
    return hasher.digest()


class _Hasher:
    """SHA-256 of the content (LFS), or git's SHA-1 of the blob for small files."""

    def __init__(self, file: RepoFile) -> None:
        self._algorithm = file.digest.partition(":")[0]
        if self._algorithm == "sha256":
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % file.num_bytes, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self._hash.update(chunk)

    def read(self, stream: IO[bytes]) -> int:
        """Hash the rest of a stream; returns how many bytes that were."""
        num_bytes = 0
        while chunk := stream.read(_CHUNK):
            self._hash.update(chunk)
            num_bytes += len(chunk)
        return num_bytes

    def digest(self) -> str:
        return f"{self._algorithm}:{self._hash.hexdigest()}"
