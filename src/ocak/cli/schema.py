"""Describes one setting and judges its values, wherever they come from. Pure; knows no precedence.

Invariant: a value that `parse` or `check` returns is of the declared type and inside the declared limits.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

import msgspec

from ocak.core.errors import ConfigError

Kind = Literal["int", "float", "bool", "text", "texts", "choice", "table", "pairs"]
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
TRUE, FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True, slots=True)
class Setting:
    name: str
    kind: Kind
    default: object
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    further_flags: tuple[str, ...] = ()
    further_env: tuple[str, ...] = ()
    metavar: str | None = None
    is_secret: bool = False
    is_file_only: bool = False
    is_path: bool = False
    implied: tuple[str, str] | None = None  # a prefix of variables, and the default where one is set

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> tuple[str, ...]:
        """The variables that set it, the first one given winning."""
        return () if self.is_file_only else (f"OCAK_{self.name.upper()}", *self.further_env)

    @property
    def allowed(self) -> str:
        """What a value must be, in words."""
        match self.kind:
            case "int":
                return f"a whole number from {self.low} to {self.high}"
            case "float":
                return f"a number from {self.low:g} to {self.high:g}"
            case "bool":
                return "true or false"
            case "choice":
                return "one of " + ", ".join(self.choices)
            case "texts":
                return "a text or a list of texts"
            case "table":
                return "a table of texts, numbers and booleans"
            case "pairs":
                return "a table of texts, or a list of NAME=VALUE with each name once"
            case "text":
                return "a text"

    def parse(self, text: str, origin: str) -> object:
        """Read the value from a flag or a variable; `origin` is how the user spelled the setting."""
        match self.kind:
            case "int":
                return self.check(_whole_number(text), origin)
            case "float":
                return self.check(_number(text), origin)
            case "bool":
                return self.check(_truth(text), origin)
            case "texts" | "pairs":
                return self.check([part.strip() for part in text.split(",") if part.strip()], origin)
            case _:
                return self.check(text, origin)

    def check(self, value: object, origin: str) -> object:
        """Return `value` as the declared type, or raise `ConfigError` naming the setting and its limits."""
        match self.kind, value:
            case "int", int() if not isinstance(value, bool) and self._in_range(value):
                return value
            case "float", int() | float() if not isinstance(value, bool) and self._in_range(value):
                return float(value)
            case "bool", bool():
                return value
            case "text", str():
                return value
            case "choice", str() if value in self.choices:
                return value
            case "texts", str():
                return (value,)
            case "texts", list() | tuple() if all(isinstance(item, str) for item in value):
                return tuple(value)
            case "table", dict() if all(map(_is_plain, value.values())):
                return value
            case "pairs", dict() | list() if (pairs := _pairs(value)) is not None:
                return pairs
        raise self._refusal(value, origin)

    def _in_range(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def _refusal(self, value: object, origin: str) -> ConfigError:
        shown = "this value" if self.is_secret else repr(value)[:80]
        return ConfigError(f"{origin} must be {self.allowed}, not {shown}", param=self.name)


@cache
def settings_of(struct: type[msgspec.Struct]) -> dict[str, Setting]:
    """Return the settings that `struct` declares, by name."""
    hints = typing.get_type_hints(struct, include_extras=True)
    return {field.name: _setting(field.name, hints[field.name], field.default) for field in _fields(struct)}


def _fields(struct: type[msgspec.Struct]) -> list[msgspec.structs.FieldInfo]:
    """Its own before those it inherits."""
    return sorted(msgspec.structs.fields(struct), key=lambda field: field.name not in struct.__annotations__)


def _setting(name: str, annotation: object, default: object) -> Setting:
    base, metas = _unwrap(annotation)
    extra: dict[str, Any] = {key: value for meta in metas for key, value in (meta.extra or {}).items()}
    kind, choices = _kind(base)
    return Setting(
        name=name,
        kind=kind,
        default={} if default is msgspec.NODEFAULT else default,
        help=next(meta.description for meta in metas if meta.description),
        low=next((meta.ge for meta in metas if meta.ge is not None), None),
        high=next((meta.le for meta in metas if meta.le is not None), None),
        choices=choices,
        further_flags=tuple(extra.get("flags", ())),
        further_env=tuple(extra.get("env", ())),
        metavar=extra.get("metavar"),
        is_secret=extra.get("secret", False),
        is_file_only=extra.get("file_only", False),
        is_path=extra.get("path", False),
        implied=extra.get("implied"),
    )


def _unwrap(annotation: object) -> tuple[object, list[msgspec.Meta]]:
    if typing.get_origin(annotation) is Annotated:
        base, *metas = typing.get_args(annotation)
        return base, [meta for meta in metas if isinstance(meta, msgspec.Meta)]
    return annotation, []


def _kind(base: object) -> tuple[Kind, tuple[str, ...]]:
    origin = typing.get_origin(base) or base
    if origin is Literal:
        return "choice", typing.get_args(base)
    if base == dict[str, str]:
        return "pairs", ()
    kinds: dict[object, Kind] = {
        int: "int", float: "float", bool: "bool", str: "text", tuple: "texts", dict: "table",
    }  # fmt: skip
    return kinds[origin], ()


def _is_plain(value: object) -> bool:
    """Whether a worker can be told the value: MessagePack's integers have 64 bits."""
    if isinstance(value, int):
        return INT64_MIN <= value <= INT64_MAX
    return isinstance(value, str | float)


def _whole_number(text: str) -> object:
    try:
        return int(text)
    except ValueError:
        return text


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text


def _pairs(value: dict[object, object] | list[object]) -> dict[str, str] | None:
    """Read a table of texts, or a list of NAME=VALUE; None if it is neither, or names something twice."""
    if isinstance(value, list):
        split = [text.partition("=")[::2] if isinstance(text, str) else ("", "") for text in value]
        return _pairs(dict(split)) if len(dict(split)) == len(value) else None
    pairs = {name: text for name, text in value.items() if isinstance(name, str) and isinstance(text, str)}
    return pairs if len(pairs) == len(value) and all(pairs) and all(pairs.values()) else None


def _truth(text: str) -> object:
    lowered = text.strip().lower()
    return lowered in TRUE if lowered in TRUE + FALSE else text
