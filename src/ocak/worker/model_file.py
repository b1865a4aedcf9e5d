"""Reads a model's header once for all who want it: planning, loading and saved states ask for the same one."""

from __future__ import annotations

import os
from pathlib import Path

from ocak.memory.gguf_header import GgufModel, read_model

Stamp = tuple[int, int, int]
_last: dict[Path, tuple[GgufModel, list[Stamp]]] = {}  # one at most


def read_once(path: Path) -> GgufModel:
    """As `read_model`, but the last file is not read again unless one of its parts has changed since."""
    if path in _last:
        model, stamps = _last[path]
        if _stamps(model) == stamps:
            return model
    model = read_model(path)
    _last.clear()
    _last[path] = model, _stamps(model)
    return model


def _stamps(model: GgufModel) -> list[Stamp]:
    return [_stamp(part) for part in model.paths]


def _stamp(path: Path) -> Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns
