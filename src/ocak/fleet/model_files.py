"""Notices that a file from which a worker reads its weights is no longer what it was. Knows no worker.

With `mmap` the file itself is the worker's memory: written over in place, it makes wrong answers; cut, it ends the
worker by SIGBUS. A new file under the same name changes nothing for a worker that has the old one open.
"""

from __future__ import annotations

import os
from pathlib import Path

from ocak.memory.split_names import parse_split_name
from ocak.worker.messages import LoadOptions

Identity = tuple[int, int]  # device and inode
Stamp = tuple[int, int]  # bytes, and when it was written


class ModelFiles:
    """The files of one load, as they were when this was made."""

    def __init__(self, options: LoadOptions) -> None:
        self._before = {path: found for path in _mapped(options) if (found := _look(path)) is not None}

    def are_those_of(self, before: ModelFiles | None) -> bool:
        """Whether they are known, and as they were then."""
        return before is not None and bool(self._before) and self._before == before._before

    def changed(self) -> Path | None:
        """Return a file that was written to or cut since; None while there is none."""
        for path, (identity, stamp) in self._before.items():
            now = _look(path)
            if now is not None and now[0] == identity and now[1] != stamp:
                return path
        return None


def _mapped(options: LoadOptions) -> list[Path]:
    models = [Path(path) for path in (options.path, options.draft_path) if path is not None]
    return [part for model in models for part in _parts(model)] if options.mmap else []


def _parts(path: Path) -> list[Path]:
    split = parse_split_name(path.name)
    return [path.with_name(name) for name in split.siblings()] if split else [path]


def _look(path: Path) -> tuple[Identity, Stamp] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino), (status.st_size, status.st_mtime_ns)
