"""Turns what a request asks of its answer's text into a grammar's source, and finds the place of a mistake in it.

Knows no model. White space between the tokens of JSON is what people write, and bounded: a model that likes it too
much would never come to its end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from llguidance.gbnf_to_lark import gbnf_to_lark, is_lark_syntax

from ocak.core.errors import InvalidRequest
from ocak.core.limits import check_text
from ocak.core.request import Constraint

JSON_SPACE = r" ?|\n[ \t]{0,20}"
MAX_CHOICES = 1024
MAX_GBNF_RULES = 512  # their conversion takes the square of it
MAX_TRIALS = 100  # parts of a schema that are tried alone, to find the wrong one
SHOWN_ERROR = 600  # characters
PARTS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS_OF_PARTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
PARTS = ("items", "additionalProperties", "additionalItems", "unevaluatedProperties", "contains", "not")
GBNF_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([\s\S]))")
GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)

ErrorIn = Callable[[str], str]


def source(constraint: Constraint) -> str:
    """Return the grammar in one of llguidance's own forms. Raises `InvalidRequest`."""
    match constraint.kind:
        case "json_schema":
            return _schema_source(_schema(constraint))
        case "regex":
            return _regex_source(constraint.text)
        case "choice":
            return _regex_source("|".join(map(_literally, _choices(constraint))))
        case "grammar":
            return constraint.text if is_lark_syntax(constraint.text) else _from_gbnf(constraint)


def refusal(constraint: Constraint, message: str, error_in: ErrorIn) -> InvalidRequest:
    """Return the error for a source that does not compile; for a schema it names the place."""
    place = ""
    if constraint.kind == "json_schema":
        place = f" at {_place(_schema(constraint), message, error_in) or 'its root'}"
    what = {"json_schema": "JSON schema", "choice": "list of choices"}.get(constraint.kind, constraint.kind)
    shown = message.strip()[:SHOWN_ERROR]
    return InvalidRequest(f"{constraint.param}: this {what} is wrong{place}: {shown}", param=constraint.param)


def _schema(constraint: Constraint) -> dict[str, Any]:
    schema = _decoded(constraint)
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{constraint.param} must be a JSON schema: an object", param=constraint.param)
    return schema


def _decoded(constraint: Constraint) -> Any:
    try:
        return msgspec.json.decode(constraint.text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"{constraint.param} is not valid JSON: {error}", param=constraint.param) from None


def _schema_source(schema: dict[str, Any]) -> str:
    own = schema.get("x-guidance")
    options = {"whitespace_pattern": JSON_SPACE} | (own if isinstance(own, dict) else {})
    grammar = {"grammars": [{"json_schema": schema | {"x-guidance": options}}]}
    return msgspec.json.encode(grammar).decode()


def _regex_source(pattern: str) -> str:
    return msgspec.json.encode({"grammars": [{"lark_grammar": f"start: /{_for_lark(pattern)}/\n"}]}).decode()


def _for_lark(pattern: str) -> str:
    """Escape what would end the pattern between slashes, and empty lines."""
    return re.sub(r"(\\[\s\S])|/|\n", _escaped, pattern)


def _escaped(found: re.Match[str]) -> str:
    if found[1]:
        return "\\n" if found[1] == "\\\n" else found[1]
    return "\\/" if found[0] == "/" else "\\n"


def _choices(constraint: Constraint) -> list[str]:
    choices = _decoded(constraint)
    is_list = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not is_list or not 1 <= len(choices) <= MAX_CHOICES or not all(choices):
        raise InvalidRequest(
            f"{constraint.param} must be a list of 1 to {MAX_CHOICES} texts, none empty", param=constraint.param
        )
    for choice in choices:
        check_text(choice, constraint.param)
    return list(choices)


def _literally(text: str) -> str:
    """Return the pattern that matches the text alone."""
    return "".join(c if c.isalnum() else f"\\x{{{ord(c):X}}}" for c in text)


def _from_gbnf(constraint: Constraint) -> str:
    text, param = constraint.text, constraint.param
    if len(GBNF_RULE.findall(text)) > MAX_GBNF_RULES:
        raise InvalidRequest(f"{param} has more than {MAX_GBNF_RULES} rules; send fewer, or Lark", param=param)
    try:
        return str(gbnf_to_lark(GBNF_ESCAPE.sub(_gbnf_escape, text)))
    except RecursionError:
        raise InvalidRequest(f"{param} is nested too deeply", param=param) from None
    except Exception as error:  # noqa: BLE001 - the converter's errors have no common class
        raise InvalidRequest(
            f"{param}: this is neither a GBNF nor a Lark grammar: {str(error)[:SHOWN_ERROR]}", param=param
        ) from None


def _gbnf_escape(found: re.Match[str]) -> str:
    """Write an escape in a way that GBNF and Lark share: the character itself, or by two digits."""
    digits = found[1] or found[2] or found[3]
    if digits is None:
        return f"\\x{ord('-'):02x}" if found[4] == "-" else found[0]
    number = int(digits, 16)
    if number < 0x80:
        return f"\\x{number:02x}"
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else found[0]


def _place(root: dict[str, Any], message: str, error_in: ErrorIn) -> str:
    """Return the pointer of the deepest part that has the same error when it stands alone."""
    place, part, trials = "", root, MAX_TRIALS
    while True:
        for pointer, inner in _parts(place, part, root):
            trials -= 1
            if trials < 0:
                return place
            if error_in(_schema_source(_alone(inner, root))) == message:
                place, part = pointer, inner
                break
        else:
            return place


def _alone(part: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return the part as a schema whose references still find their targets."""
    return part | {name: root[name] for name in ("$defs", "definitions", "x-guidance") if name in root}


def _parts(place: str, part: dict[str, Any], root: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas inside one, with their pointers."""
    target = _target(part.get("$ref"), root)
    if target is not None and target[0] != place:
        yield target
    found: list[tuple[str, object]] = [(f"{place}/{name}", part[name]) for name in PARTS if name in part]
    for name in PARTS_BY_NAME:
        if isinstance(inner := part.get(name), dict):
            found += [(f"{place}/{name}/{_pointed(key)}", value) for key, value in inner.items()]
    for name in LISTS_OF_PARTS:
        if isinstance(inner := part.get(name), list):
            found += [(f"{place}/{name}/{i}", value) for i, value in enumerate(inner)]
    yield from ((pointer, value) for pointer, value in found if isinstance(value, dict))


def _target(reference: object, root: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    value: Any = root
    for step in reference[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return (reference[1:], value) if isinstance(value, dict) else None


def _pointed(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
