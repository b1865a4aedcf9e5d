"""Keeps one repository's files on disk. Knows neither network nor references.

    OCAK_HOME/models/OWNER/REPO/…           files under their own names, verified
    OCAK_HOME/models/OWNER/REPO/.ocak/      state.json, lock, partial/…, staged/…

Invariant: a file has its final name only after its digest matched; the parts of one model get theirs together,
and `state.json` names a file only while what lies there is what was verified. The name of a partial file
holds the digest it is to have, so bytes of two versions never mix.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from ocak.core.errors import DownloadError
from ocak.hub.partial import digest_of
from ocak.hub.reference import HubReference, RepoFile


class _Verified(msgspec.Struct, frozen=True):
    size: int
    digest: str


class _State(msgspec.Struct, frozen=True):
    """What was verified, by path, and which files each selector chose."""

    files: dict[str, _Verified] = {}
    choices: dict[str, list[str]] = {}


class Store:
    """The folder of one repository. Reading needs no lock; everything that writes wants `try_lock`."""

    def __init__(self, home: Path, reference: HubReference) -> None:
        self.folder = home / "models" / reference.owner / reference.repo
        self._private = self.folder / ".ocak"

    def path(self, file: RepoFile) -> Path:
        """Where `file` lies in the end; refused when links lead out of the folder."""
        path = self.folder / file.path
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise DownloadError(f"{file.path!r} would be written outside of {self.folder}: refused.")
        return path

    def chosen(self, selector: str) -> tuple[Path, ...]:
        """The verified files that `selector` chose before, all still here; else nothing."""
        state = self._state()
        paths = state.choices.get(_key(selector), [])
        files = {file.path: file for file in self.verified()}
        return tuple(self.path(files[path]) for path in paths) if all(path in files for path in paths) else ()

    def verified(self) -> tuple[RepoFile, ...]:
        """Every file that was verified and still has its size."""
        known = (RepoFile(path, v.size, v.digest) for path, v in self._state().files.items())
        return tuple(file for file in known if _size(self.folder / file.path) == file.num_bytes)

    @contextmanager
    def try_lock(self) -> Iterator[bool]:
        """Become the only writer; yields False when another process is. It ends with the process at last."""
        self._private.mkdir(parents=True, exist_ok=True)
        with (self._private / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def has(self, file: RepoFile) -> bool:
        """Whether `file` is verified already, in its place or staged."""
        return file in self.verified() or _size(self._staged(file)) == file.num_bytes

    def adopt(self, file: RepoFile) -> bool:
        """Take what lies at the final path as verified when its digest is right (say, put there by hand)."""
        path = self.path(file)
        if _size(path) != file.num_bytes or digest_of(path, file) != file.digest:
            return False
        state = self._state()
        known = state.files | {file.path: _Verified(file.num_bytes, file.digest)}
        self._write(_State(known, state.choices))
        return True

    def partial(self, file: RepoFile) -> Path:
        """Where the bytes of `file` gather."""
        path = self._private / "partial" / _name(file)
        path.parent.mkdir(exist_ok=True)
        return path

    def missing_bytes(self, file: RepoFile) -> int:
        """How much of `file` is still to fetch."""
        return 0 if self.has(file) else max(file.num_bytes - (_size(self.partial(file)) or 0), 0)

    def stage(self, file: RepoFile) -> None:
        """Take the partial file as verified."""
        self._staged(file).parent.mkdir(exist_ok=True)
        os.replace(self.partial(file), self._staged(file))

    def commit(self, files: Sequence[RepoFile], selector: str) -> tuple[Path, ...]:
        """Give all staged files their final names and remember the choice; returns the paths."""
        state = self._state()
        staged = [file for file in files if self._staged(file).exists()]
        others = {path: v for path, v in state.files.items() if path not in {file.path for file in staged}}
        self._write(_State(others, state.choices))
        for file in staged:
            self.path(file).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._staged(file), self.path(file))
        known = others | {file.path: _Verified(file.num_bytes, file.digest) for file in files}
        self._write(_State(known, state.choices | {_key(selector): [file.path for file in files]}))
        return tuple(self.path(file) for file in files)

    def require_room(self, num_bytes: int) -> None:
        """Raise `DownloadError` when the disk cannot take `num_bytes` more."""
        free = shutil.disk_usage(self._private).free
        if free < num_bytes:
            raise DownloadError(
                f"{self.folder} has room for {free} bytes, the model needs {num_bytes} more. "
                "Free some, or set OCAK_HOME to another disk."
            )

    def _staged(self, file: RepoFile) -> Path:
        return self._private / "staged" / _name(file)

    def _state(self) -> _State:
        """The state, empty when there is none or it cannot be read (the files are then hashed again)."""
        try:
            return msgspec.json.decode((self._private / "state.json").read_bytes(), type=_State)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return _State()

    def _write(self, state: _State) -> None:
        path = self._private / "state.json.new"
        path.write_bytes(msgspec.json.encode(state))
        os.replace(path, self._private / "state.json")


def _key(selector: str) -> str:
    """A quantisation is the same in any case, a file's name is not."""
    return selector if selector.lower().endswith(".gguf") else selector.lower()


def _name(file: RepoFile) -> str:
    """A file name of its own for each content and place."""
    place = hashlib.sha256(file.path.encode()).hexdigest()[:8]
    return f"{file.digest.replace(':', '-')}-{place}"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
