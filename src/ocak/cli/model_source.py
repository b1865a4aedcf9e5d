"""Decides which file a model's source means: `embedded`, a path, or `hf:owner/repo[:file-or-quant]`.

Downloads where it must. Knows no settings and no worker.
"""

from __future__ import annotations

import os
from pathlib import Path

from ocak.core.errors import ModelFileError
from ocak.core.limits import check_text

HUB = "hf:"
EMBEDDED = "embedded"


def default_key(source: str) -> str:
    """The name under which a model is served when the user gives none."""
    if source.startswith(HUB):
        return source.removeprefix(HUB).split(":")[0].split("/")[-1] or source
    if source == EMBEDDED:
        return EMBEDDED
    from ocak.memory.split_names import parse_split_name

    name = Path(source).name
    split = parse_split_name(name)
    return split.prefix if split else name.removesuffix(".gguf") or source


def locate(source: str) -> Path:
    """Return the model's file (a split's first part), pulled if need be, or raise why there is none."""
    check_text(source, "MODEL")
    if source == EMBEDDED:
        from ocak.embedded import embedded_model_path

        return embedded_model_path()
    if source.startswith(HUB):
        return _pull(source)
    path = Path(source).expanduser()
    if not path.exists():
        raise ModelFileError(f"there is no model file {path}{_hint(source)}", param="source")
    return path


def _hint(source: str) -> str:
    """What the user may have meant by a path that does not exist."""
    if source.count("/") == 1 and not source.endswith(".gguf"):
        return f"; for a repository on Hugging Face write hf:{source}"
    return "; MODEL is embedded, a path to a GGUF, or hf:owner/repo[:file-or-quant]"


def _pull(source: str) -> Path:
    from ocak.hub.download import find_local, pull
    from ocak.hub.progress import rich_progress
    from ocak.hub.settings import HubSettings

    hub = HubSettings.from_environ(os.environ)
    if (path := find_local(source, hub)) is not None:
        return path
    with rich_progress() as show:
        return pull(source, settings=hub, progress=show)
