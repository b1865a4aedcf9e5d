"""Turns a source and settings, by the names that `ocak serve` knows, into a plan to load. Reads the file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping

from ocak.cli.compose import Plan, plan_models
from ocak.cli.model_source import default_key
from ocak.cli.schema import settings_of
from ocak.cli.settings import ModelSettings, ServerSettings, Settings
from ocak.core.errors import ConfigError

FOR_SERVERS = frozenset({"provider", "source", "served_name", "max_queued"})  # mean nothing without one


def plan(source: str | os.PathLike[str], settings: Mapping[str, object]) -> Plan:
    """Raises `ConfigError`, `ModelFileError`, `DownloadError`."""
    source = os.fspath(source)
    known = {name: setting for name, setting in settings_of(ModelSettings).items() if name not in FOR_SERVERS}
    values: dict[str, object] = {"source": source}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"there is no setting {name!r}; {_nearest(name, list(known))}", param=name)
        values[name] = known[name].check(value, name)
    model = ModelSettings(**values)  # type: ignore[arg-type]
    [planned] = plan_models(Settings(ServerSettings(), {default_key(source): model}))
    return planned


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "there are " + ", ".join(known)
