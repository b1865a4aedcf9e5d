"""Turns a body's bytes into a typed struct, or into an `InvalidRequest` that names the field.

Two passes in C: the first over the top-level names alone (a name given twice, names nobody knows), the second
into the struct. Lone surrogates, NaN, trailing bytes and wrong types end here.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

import msgspec

from ocak.core.errors import InvalidRequest

Body = TypeVar("Body", bound=msgspec.Struct)

MAX_FIELDS = 256
PLACE = re.compile(r"^(?P<what>.*?) - at `(?:key` in `)?\$\.?(?P<path>.*)`$", re.DOTALL)
MISSING = re.compile(r"missing required field `(?P<field>.*?)`")
SEARCHED_BYTES = 1 << 20  # for the cause of an error, not for its verdict
HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
LONE_SURROGATE = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:" + HIGH + rb"(?!" + LOW + rb")|(?<!" + HIGH + rb")" + LOW + rb")"
)


def decode(data: bytes, kind: type[Body]) -> tuple[Body, dict[str, msgspec.Raw]]:
    """Return the struct, and the raw JSON of every field that it does not have."""
    try:
        names = _top_level(data)
        decoded = msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse(error, data)
    known = kind.__struct_encode_fields__
    return decoded, {name: raw for name, raw in names.items() if name not in known}


def decode_field(raw: msgspec.Raw, kind: Any, param: str) -> Any:
    """Decode one field that was left raw; errors name it as `param`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse(error, bytes(raw), param)


class _Name:
    """A top-level name. Equal to no other, so that a name given twice is seen twice."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


def _top_level(data: bytes) -> dict[str, msgspec.Raw]:
    seen: set[str] = set()

    def name(_: type, text: str) -> _Name:
        if text in seen:
            raise InvalidRequest(f"the body names {text[:100]!r} twice", param=text[:100])
        if len(seen) >= MAX_FIELDS:
            raise InvalidRequest(f"the body has more than {MAX_FIELDS} fields")
        seen.add(text)
        return _Name(text)

    raw = msgspec.json.decode(data, type=dict[_Name, msgspec.Raw], dec_hook=name)
    return {key.text: value for key, value in raw.items()}


def _refuse(error: Exception, data: bytes, param: str = "") -> NoReturn:
    if isinstance(error, msgspec.ValidationError):
        raise _invalid_field(str(error), param) from None
    if isinstance(error, RecursionError):
        raise InvalidRequest("the body is nested too deeply", param=param or None) from None
    if isinstance(error, UnicodeDecodeError):
        raise InvalidRequest("the body is not valid UTF-8", param=param or None) from None
    if LONE_SURROGATE.search(data, 0, SEARCHED_BYTES):
        raise InvalidRequest("the body holds a lone surrogate; send valid Unicode", param=param or None) from None
    raise InvalidRequest(f"the body is not valid JSON: {error}", param=param or None) from None


def _invalid_field(text: str, param: str) -> InvalidRequest:
    place = PLACE.match(text)
    what, path = (place["what"], place["path"]) if place else (text, "")
    what = what.replace("`", "").replace(" | ", " or ")
    if missing := MISSING.search(text):
        path = f"{path}.{missing['field']}" if path else missing["field"]
    where = param + (f".{path}" if param and path and path[0] != "[" else path)
    return InvalidRequest(f"{where}: {what}" if where else f"the body: {what}", param=where[:200] or None)
