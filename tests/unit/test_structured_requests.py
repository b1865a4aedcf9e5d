"""From the fields of three APIs to one constraint."""

from __future__ import annotations

import json

import pytest

from ocak.api.json_body import decode
from ocak.api.openai_requests import Origin, chat_requests
from ocak.api.openai_wire import ChatBody
from ocak.api.unsupported import check_others
from ocak.core.errors import InvalidRequest
from ocak.core.request import Constraint

SCHEMA = {"type": "object", "properties": {"ı": {"type": "integer"}}}


def asked(fields: dict[str, object]) -> Constraint | None:
    body, others = decode(json.dumps({"messages": [{"role": "user", "content": "x"}]} | fields).encode(), ChatBody)
    assert check_others(others) == ()
    (request,) = chat_requests(body, Origin("id", "model", "tenant"))
    return request.constraint


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, None),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, "structured_outputs.json"),
        ({"guided_json": SCHEMA}, "guided_json"),
        ({"guided_json": json.dumps(SCHEMA)}, "guided_json"),
        ({"json_schema": SCHEMA}, "json_schema"),
    ],
)
def test_a_schema_arrives_with_the_name_of_its_field(fields: dict[str, object], param: str | None) -> None:
    found = asked(fields)
    assert found is not None and found.kind == "json_schema" and json.loads(found.text) == SCHEMA
    assert found.param == (param or "response_format.json_schema.schema")


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"structured_outputs": {"regex": "a"}}, Constraint("regex", "a", "structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a"]}}, Constraint("choice", '["a"]', "structured_outputs.choice")),
        ({"structured_outputs": {"grammar": "g"}}, Constraint("grammar", "g", "structured_outputs.grammar")),
        ({"guided_regex": "a"}, Constraint("regex", "a", "guided_regex")),
        ({"guided_choice": ["a", "b"]}, Constraint("choice", '["a","b"]', "guided_choice")),
        ({"guided_grammar": "g"}, Constraint("grammar", "g", "guided_grammar")),
        ({"grammar": "g"}, Constraint("grammar", "g", "grammar")),
    ],
)
def test_another_form_arrives_as_it_was_sent(fields: dict[str, object], found: Constraint) -> None:
    assert asked(fields) == found


@pytest.mark.parametrize(
    "fields", [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}]
)
def test_json_mode_is_any_object(fields: dict[str, object]) -> None:
    found = asked(fields)
    assert found is not None and json.loads(found.text) == {"type": "object"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": {"type": "text"}},
        {"response_format": None, "guided_json": None, "grammar": "", "json_schema": {}, "guided_regex": ""},
        {"structured_outputs": {}},
        {"structured_outputs": {"json": None, "json_object": False, "disable_any_whitespace": False}},
    ],
)
def test_empty_fields_ask_for_nothing(fields: dict[str, object]) -> None:
    assert asked(fields) is None


def test_an_empty_schema_that_was_named_one_is_any_json() -> None:
    found = asked({"response_format": {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}})
    assert found is not None and found.text == "{}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "a", "grammar": "g"}, "grammar"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"structured_outputs": {"disable_any_whitespace": True}}, "structured_outputs.disable_any_whitespace"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        asked(fields)
    assert refusal.value.param == param
