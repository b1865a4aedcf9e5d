"""Fifty bounded schemas of many kinds: whatever a model with random weights says under one of them ends."""

from itertools import cycle, islice
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1, "maxLength": 12}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 500}
SCALARS: list[Schema] = [
    TEXT,
    COUNT,
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", "blue", 7, None]},
    {"const": {"fixed": [1, 2, 3]}},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "integer", "exclusiveMinimum": -20, "exclusiveMaximum": 20},
    {"type": "integer", "minimum": 0, "maximum": 9000, "multipleOf": 5},
    {"type": "number", "minimum": -1.5, "maximum": 2.5},
    {"type": ["string", "null"], "maxLength": 6},
    {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"type": "string", "maxLength": 4}]},
    {"type": "string", "format": "ipv4"},
]


def bounded_schemas() -> list[Schema]:
    """Return all of them, each named by what is in it."""
    flat = [_object({f"f{i}": scalar}) for i, scalar in enumerate(SCALARS)]
    wide = [_object(dict(_turn(start, 5))) for start in range(10)]
    arrays = [{"type": "array", "items": scalar, "minItems": 1, "maxItems": 4} for scalar in SCALARS[:10]]
    return [*flat, *wide, *arrays, *_nested(), *_others()]


def _turn(start: int, count: int) -> list[tuple[str, Schema]]:
    return [(f"field_{i}", scalar) for i, scalar in enumerate(islice(cycle(SCALARS), start, start + count))]


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _list(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "maxItems": most}


def _nested() -> list[Schema]:
    address = _object({"street": TEXT, "number": COUNT})
    person = _object({"name": TEXT, "address": address, "phones": _list(SCALARS[6], 3)})
    deep = TEXT
    for level in range(6):
        deep = _object({f"level{level}": deep})
    return [
        person,
        deep,
        _list(person, 2),
        _list(_list(COUNT, 3), 3),
        _object({"people": _list(address, 2), "owner": person}),
        _object({"matrix": {**_list({**_list(COUNT, 2), "minItems": 2}, 2), "minItems": 2}}),
        _object({"maybe": TEXT, "always": COUNT}, ["always"]),
        _object({"a": COUNT, "b": COUNT, "c": COUNT}, []),
    ]


def _others() -> list[Schema]:
    """References, alternatives, tuples."""
    reference = {"$ref": "#/$defs/item"}
    item = _object({"id": COUNT, "kind": {"enum": ["x", "y"]}})
    cat = _object({"kind": {"const": "cat"}, "lives": COUNT})
    dog = _object({"kind": {"const": "dog"}, "name": TEXT})
    return [
        {"$defs": {"item": item}, **_object({"first": reference, "rest": _list(reference, 3)})},
        {"$defs": {"item": item}, **_list(reference, 3)},
        {"definitions": {"t": TEXT}, **_object({"t": {"$ref": "#/definitions/t"}})},
        {"oneOf": [cat, dog]},
        {"anyOf": [cat, dog, _list(COUNT, 2)]},
        {"type": "array", "prefixItems": [TEXT, COUNT], "items": False, "minItems": 2},
        {"allOf": [{"type": "string"}, {"minLength": 3, "maxLength": 9}]},
    ]
