"""Writes the OpenAPI document out of the routes and the structs that they read and write.

Version 3.0.3, the newest that the bundled page can show: there a null is `nullable`, not a type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from ocak import __version__
from ocak.api.errors import ErrorBody

REFERENCE = "#/components/schemas/{name}"
PATH_PARAMETER = re.compile(r"\{(\w+)(?::path)?\}")


class Operation(NamedTuple):
    """A route as the document shows it."""

    method: str
    path: str
    summary: str
    is_public: bool
    body: type[msgspec.Struct] | None = None
    answer: type[msgspec.Struct] | None = None
    answer_type: str = "application/json"
    example: dict[str, Any] | None = None  # of the body


def document(operations: Sequence[Operation]) -> bytes:
    """Return the document as JSON."""
    structs = {kind for operation in operations for kind in (operation.body, operation.answer) if kind}
    ordered = sorted(structs | {ErrorBody}, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(ordered, ref_template=REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = PATH_PARAMETER.sub(r"{\1}", operation.path)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation)
    return msgspec.json.encode(
        {
            "openapi": "3.0.3",
            "info": {
                "title": "ocak",
                "version": __version__,
                "description": "A self-hosted LLM inference server.",
            },
            "paths": paths,
            "components": {
                "schemas": _without_null_types(schemas),
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
        }
    )


def _without_null_types(schema: Any) -> Any:
    """Rewrite JSON Schema's null types the way of OpenAPI 3.0, at every depth."""
    if isinstance(schema, list):
        return [_without_null_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "null":
        return {"nullable": True, "enum": [None]}
    rewritten = {name: _without_null_types(value) for name, value in schema.items()}
    options = rewritten.get("anyOf", [])
    if {"nullable": True, "enum": [None]} in options:
        others = [option for option in rewritten.pop("anyOf") if not option.get("nullable")]
        is_plain = len(others) == 1 and "$ref" not in others[0]
        rewritten |= {"nullable": True} | (others[0] if is_plain else {"anyOf": others})
    return rewritten


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": _answer(operation),
            "default": {"description": "An error.", "content": _content(ErrorBody)},
        },
        "security": [] if operation.is_public else [{"key": []}],
    }
    if operation.body is not None:
        content = _content(operation.body)
        if operation.example is not None:
            content["application/json"]["example"] = operation.example
        described["requestBody"] = {"required": True, "content": content}
    if names := PATH_PARAMETER.findall(operation.path):
        described["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "The answer.", "content": {operation.answer_type: {}}}
    return {"description": "The answer.", "content": _content(operation.answer)}


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(name=kind.__name__)}}}
