"""The fields that ask for an answer of a certain form: OpenAI's, vLLM's older and newer, llama-server's. Pure.

Whether a schema or a grammar means anything, the worker knows; here it is carried on as it came, with the name of
its field. Empty values ask for nothing.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ocak.api.errors import UnsupportedParameter
from ocak.api.json_body import decode_field
from ocak.api.samplers_wire import SamplersBody
from ocak.core.errors import InvalidRequest
from ocak.core.request import Constraint, ConstraintKind

ANY_OBJECT = '{"type":"object"}'
EMPTY = (b"", b"null", b"{}", b'""')
SCHEMA = {
    "description": "A JSON schema, as an object or as its text.",
    "oneOf": [{"type": "object"}, {"type": "string"}],
}
OTHER = {"description": "Not supported."}
GRAMMAR = "A grammar in GBNF or in llguidance's Lark."

Schema = Annotated[msgspec.Raw, Meta(extra_json_schema=SCHEMA)]
Other = Annotated[msgspec.Raw, Meta(extra_json_schema=OTHER)]


class JsonSchemaBody(msgspec.Struct, frozen=True):
    name: str | None = None
    description: str | None = None
    schema: Schema = msgspec.field(default_factory=msgspec.Raw)
    strict: Annotated[bool, Meta(description="The schema is kept either way.")] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None
    schema: Schema = msgspec.field(default_factory=msgspec.Raw)  # as llama-server reads it


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's: one of them."""

    json: Schema = msgspec.field(default_factory=msgspec.Raw)
    regex: str | None = None
    choice: list[str] | None = None
    grammar: Annotated[str, Meta(description=GRAMMAR)] | None = None
    json_object: bool | None = None
    structural_tag: Other = msgspec.field(default_factory=msgspec.Raw)
    whitespace_pattern: Other = msgspec.field(default_factory=msgspec.Raw)
    disable_any_whitespace: Other = msgspec.field(default_factory=msgspec.Raw)
    disable_additional_properties: Other = msgspec.field(default_factory=msgspec.Raw)


NOT_SERVED = ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")


class StructuredBody(SamplersBody, frozen=True, kw_only=True):
    """What chats and completions share; at most one may be given."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema = msgspec.field(default_factory=msgspec.Raw)
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: Annotated[str, Meta(description=GRAMMAR)] | None = None
    json_schema: Schema = msgspec.field(default_factory=msgspec.Raw)
    grammar: Annotated[str, Meta(description=GRAMMAR)] | None = None


def constraint(body: StructuredBody) -> Constraint | None:
    """Return what the body asks of the answer's form. Raises `InvalidRequest` for two wishes at once."""
    wishes = [wish for wish in _wishes(body) if wish is not None]
    if len(wishes) > 1:
        raise InvalidRequest(
            f"{wishes[0].param} and {wishes[1].param} exclude each other; send one", param=wishes[1].param
        )
    return wishes[0] if wishes else None


def _wishes(body: StructuredBody) -> list[Constraint | None]:
    return [
        _format(body.response_format),
        *_outputs(body.structured_outputs),
        _schema(body.guided_json, "guided_json"),
        _text("regex", body.guided_regex, "guided_regex"),
        _choice(body.guided_choice, "guided_choice"),
        _text("grammar", body.guided_grammar, "guided_grammar"),
        _schema(body.json_schema, "json_schema"),
        _text("grammar", body.grammar, "grammar"),
    ]


def _format(body: ResponseFormat | None) -> Constraint | None:
    if body is None or body.type == "text":
        return None
    inner = "response_format.schema"
    if body.type == "json_object":
        return _schema(body.schema, inner) or Constraint("json_schema", ANY_OBJECT, "response_format")
    named = "response_format.json_schema.schema"
    found = _schema(body.json_schema.schema, named, may_be_empty=False) if body.json_schema else None
    found = found or _schema(body.schema, inner, may_be_empty=False)
    if found is None:
        raise InvalidRequest(f"{named} is required by the type json_schema", param=named)
    return found


def _outputs(body: StructuredOutputs | None) -> list[Constraint | None]:
    if body is None:
        return []
    name = "structured_outputs"
    for other in NOT_SERVED:
        if bytes(getattr(body, other)) not in (*EMPTY, b"false"):
            raise UnsupportedParameter(f"{name}.{other} is not supported by this server", param=f"{name}.{other}")
    return [
        _schema(body.json, f"{name}.json"),
        _text("regex", body.regex, f"{name}.regex"),
        _choice(body.choice, f"{name}.choice"),
        _text("grammar", body.grammar, f"{name}.grammar"),
        Constraint("json_schema", ANY_OBJECT, f"{name}.json_object") if body.json_object else None,
    ]


def _schema(raw: msgspec.Raw, param: str, *, may_be_empty: bool = True) -> Constraint | None:
    data = bytes(raw)
    if data in EMPTY and not (data == b"{}" and not may_be_empty):
        return None
    text = decode_field(raw, str, param) if data.startswith(b'"') else data.decode()
    return Constraint("json_schema", text, param)


def _text(kind: ConstraintKind, text: str | None, param: str) -> Constraint | None:
    return Constraint(kind, text, param) if text else None


def _choice(choices: list[str] | None, param: str) -> Constraint | None:
    if choices is None:
        return None
    return Constraint("choice", msgspec.json.encode(choices).decode(), param)
