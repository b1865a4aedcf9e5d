"""Decides the value of every setting: defaults < ocak.toml < environment < flags. Starts nothing.

Knows no command line; flags come as a mapping of names to what was typed.
Invariant: each value has an origin, spelled as the user spelled it, and an unknown name is an error.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ocak.cli.model_source import default_key
from ocak.cli.schema import Setting, settings_of
from ocak.cli.settings import ModelSettings, ServerSettings, Settings
from ocak.core.errors import ConfigError

Struct = TypeVar("Struct", bound=msgspec.Struct)
Flags = Mapping[str, object]  # what was typed: a text, a list of texts, or a boolean
DEFAULT = "default"
FURTHER_VARIABLES = ("OCAK_MODEL", "OCAK_CONFIG", "OCAK_HOME")  # no settings, but known
TYPO_LIKENESS = 0.85


@dataclass(frozen=True, slots=True)
class Sources:
    """Where settings come from; `config` and `model` are what the command line said."""

    flags: Flags = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    config: str | None = None
    model: str | None = None


def load(sources: Sources) -> Settings:
    """Return all settings, or raise `ConfigError` naming the first wrong one, its limits and its place."""
    _check_environ(sources.environ)
    file = _read_file(sources.config or sources.environ.get("OCAK_CONFIG"))
    origins: dict[str, str] = {}
    server = _layered(ServerSettings, "server", file.table("server"), sources, origins)
    models = {
        key: _layered(ModelSettings, f"models.{key}", table, sources, origins)
        for key, table in _model_tables(file, sources, server).items()
    }
    _check_names(models)
    return Settings(server, models, origins)


@dataclass(frozen=True, slots=True)
class _Table:
    """Part of a file; `place` is its name in errors, `folder` what paths in it are relative to."""

    values: Mapping[str, Any]
    place: str
    folder: Path | None = None

    def table(self, name: str, label: str | None = None) -> _Table:
        values = self.values.get(name, {})
        place = f"{self.place}{label or name}"
        if not isinstance(values, dict):
            raise ConfigError(f"{place} must be a table: write [{label or name}]", param=name)
        return _Table(values, place, self.folder)

    def value(self, setting: Setting) -> object:
        value = setting.check(self.values[setting.name], f"{self.place}.{setting.name}")
        return _resolved(value, self.folder) if setting.is_path and self.folder else value


def _resolved(value: object, folder: Path) -> object:
    """Read paths as relative to the file they are written in."""
    if isinstance(value, dict):
        return {name: _resolved(path, folder) for name, path in value.items()}
    return str(folder / value) if isinstance(value, str) and _is_relative(value) else value


def _is_relative(path: str) -> bool:
    return path not in ("", "embedded") and not path.startswith(("hf:", "~", "/"))


def _read_file(path: str | None) -> _Table:
    """Return the whole file as a table whose place ends so that a table's name can follow."""
    if path is None:
        return _Table({}, "")
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}", param="config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}", param="config") from error
    _check_known(values, ("server", "models"), f"{path}:", "table")
    return _Table(values, f"{path}: ", Path(path).parent)


def _model_tables(file: _Table, sources: Sources, server: ServerSettings) -> dict[str, _Table]:
    """The models to serve: those of the file, or the one that was named, or the embedded one."""
    named = sources.model or sources.environ.get("OCAK_MODEL")
    configured = file.table("models")
    if server.no_models:
        return {}
    if named and configured.values:
        raise ConfigError(
            f"MODEL {named} and {configured.place} are both given; leave one of them out", param="model"
        )
    if not configured.values:
        origin = "MODEL" if sources.model else "OCAK_MODEL"
        return {default_key(named or "embedded"): _Table({"source": named} if named else {}, origin)}
    return {key: configured.table(key, f".{key}") for key in configured.values}


def _layered(kind: type[Struct], label: str, table: _Table, sources: Sources, origins: dict[str, str]) -> Struct:
    settings = settings_of(kind)
    _check_known(table.values, settings, f"{table.place}:", "setting")
    values: dict[str, object] = {}
    for name, setting in settings.items():
        origins[f"{label}.{name}"], values[name] = _winner(setting, table, sources)
        if setting.implied and origins[f"{label}.{name}"] == DEFAULT:
            origins[f"{label}.{name}"], values[name] = _implied(setting, kind, sources.environ)
    return kind(**values)


def _implied(setting: Setting, kind: type[Struct], environ: Mapping[str, str]) -> tuple[str, object]:
    """The default, or what it is where another service's variables are set: its users rely on that."""
    assert setting.implied is not None
    prefix, value = setting.implied
    given = (name for name in _variables(kind) if name.startswith(prefix) and _from_environ(environ, name))
    origin = next(given, None)
    return (DEFAULT, setting.default) if origin is None else (origin, value)


def _winner(setting: Setting, table: _Table, sources: Sources) -> tuple[str, object]:
    """The value that counts, after its origin: flag, else environment, else file, else default."""
    typed = sources.flags.get(setting.name)
    if typed is not None and not setting.is_file_only:
        return setting.flag, _from_flag(setting, typed)
    for variable in setting.env:
        if text := _from_environ(sources.environ, variable):
            return variable, setting.parse(text, variable)
    if setting.name in table.values:
        return table.place, table.value(setting)
    return DEFAULT, setting.default


def _from_flag(setting: Setting, typed: object) -> object:
    if isinstance(typed, str):
        return setting.parse(typed, setting.flag)
    return setting.check(typed, setting.flag)


def _from_environ(environ: Mapping[str, str], variable: str) -> str:
    """The variable's text; empty when it is unset, or set by Kubernetes for a service that is called ocak."""
    text = environ.get(variable, "")
    return "" if text.startswith("tcp://") else text


def _check_known(given: Iterable[str], known: Iterable[str], place: str, noun: str) -> None:
    names = list(known)
    for name in given:
        if name not in names:
            raise ConfigError(f"{place} there is no {noun} {name!r}; {_nearest(name, names)}", param=name)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else "there are " + ", ".join(known)


def _check_environ(environ: Mapping[str, str]) -> None:
    """Refuse what is nearly one of our variables: a typo there would be a setting silently lost."""
    known = [
        *FURTHER_VARIABLES,
        *(name for kind in (ServerSettings, ModelSettings) for name in _variables(kind)),
    ]
    for name in environ:
        if name.startswith(("OCAK_", "LLM_LLAMA_SERVICE_")) and name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=TYPO_LIKENESS)
            if close:
                raise ConfigError(f"there is no variable {name}; did you mean {close[0]}?", param=name)


def _variables(kind: type[msgspec.Struct]) -> Iterable[str]:
    return (variable for setting in settings_of(kind).values() for variable in setting.env)


def _check_names(models: Mapping[str, ModelSettings]) -> None:
    """No two models may answer to one name."""
    owners: dict[str, str] = {}
    for key, model in models.items():
        for name in {key, *model.served_name}:
            if name in owners:
                raise ConfigError(
                    f"models {owners[name]!r} and {key!r} both answer to {name!r}; give each its own names",
                    param="served_name",
                )
            owners[name] = key
