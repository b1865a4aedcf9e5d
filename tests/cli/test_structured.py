"""Answers of a certain form, asked of a real server with OpenAI's own client."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.cli.processes import RunningServer, serving

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 10},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WRONG = {"type": "object", "properties": {"a": {"type": "strin"}}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
GBNF = 'root ::= "a" [0-9]{2}'


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with serving(tiny_model, "--parallel", "4", "--served-name", "tiny") as running:
        yield running


def chat(server: RunningServer, **body: Any) -> tuple[str, str]:
    """The text of an answer, and how it ended."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            **{"max_tokens": 600, "seed": 3, "temperature": 1.5} | body,
        )
    return answer.choices[0].message.content or "", answer.choices[0].finish_reason


@pytest.mark.parametrize(
    "fields",
    [
        {"structured_outputs": {"json": PERSON}},
        {"guided_json": PERSON},
        {"guided_json": json.dumps(PERSON)},
        {"json_schema": PERSON},
        {"response_format": FORMAT},
    ],
    ids=["structured_outputs", "guided_json", "as text", "json_schema", "response_format"],
)
def test_every_way_to_send_a_schema_is_kept(server: RunningServer, fields: dict[str, object]) -> None:
    text, reason = chat(server, extra_body=fields)
    person = json.loads(text)
    assert list(person) == ["name", "age"] and 1 <= len(person["name"]) <= 10 and 1 <= person["age"] <= 99
    assert reason == "stop"


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[a-f]{4}"}}, "[a-f]{4}"),
        ({"guided_regex": "[a-f]{4}"}, "[a-f]{4}"),
        ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
        ({"guided_choice": ["left", "right"]}, "left|right"),
        ({"structured_outputs": {"grammar": GBNF}}, "a[0-9]{2}"),
        ({"guided_grammar": 'start: "a" /[0-9]{2}/'}, "a[0-9]{2}"),
        ({"grammar": GBNF}, "a[0-9]{2}"),
    ],
)
def test_every_way_to_send_another_form_is_kept(
    server: RunningServer, fields: dict[str, object], pattern: str
) -> None:
    text, reason = chat(server, extra_body=fields)
    assert re.fullmatch(pattern, text) and reason == "stop"


def test_json_mode_gives_an_object(server: RunningServer) -> None:
    for seed in range(3):
        text, reason = chat(server, response_format={"type": "json_object"}, seed=seed)
        assert text.startswith("{")
        assert reason == "length" or isinstance(json.loads(text), dict)


def test_an_answer_that_streams_keeps_its_form(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=600,
            response_format=FORMAT,  # type: ignore[arg-type]
            stream=True,
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert list(json.loads(text)) == ["name", "age"]


def test_completions_and_each_of_many_choices_keep_their_form(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="tiny", prompt="x", n=4, max_tokens=600, seed=1, extra_body={"guided_json": PERSON}, logprobs=2
        )
    texts = [choice.text for choice in answer.choices]
    assert all(list(json.loads(text)) == ["name", "age"] for text in texts) and len(set(texts)) > 1


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"guided_json": WRONG}, "guided_json", "at /properties/a: "),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": WRONG}}},
            "response_format.json_schema.schema",
            "strin",
        ),
        ({"guided_regex": "a(b"}, "guided_regex", "unclosed group"),
        ({"grammar": "root ::= [a"}, "grammar", "line 1"),
        ({"guided_grammar": "start: thing"}, "guided_grammar", "thing"),
        ({"guided_choice": []}, "guided_choice", "1 to"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "exclude"),
        ({"guided_regex": "a" * 70000}, "guided_regex", "65536"),
        ({"guided_regex": "ab", "allowed_token_ids": [70]}, "allowed_token_ids", "no token"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "required"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "xml"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "not supported"),
    ],
)
def test_a_wrong_form_is_refused_with_its_field_and_place(
    server: RunningServer, fields: dict[str, object], param: str, words: str
) -> None:
    with pytest.raises(BadRequestError) as refusal:
        chat(server, extra_body=fields)
    assert refusal.value.param == param and words in refusal.value.message


def test_the_end_of_a_turn_is_ignored_up_to_the_end_of_the_form(server: RunningServer) -> None:
    fields = {"guided_regex": "a{1,30}", "ignore_eos": True}
    assert chat(server, extra_body=fields) == ("a" * 30, "stop")


def test_a_stop_string_cuts_a_form(server: RunningServer) -> None:
    assert chat(server, stop=["b"], extra_body={"guided_regex": "aab+c"}) == ("aa", "stop")


def test_bombs_are_refused_or_cut_short_while_others_are_served(server: RunningServer) -> None:
    """A neighbour without a form gets the same answer as ever, all the time."""
    quiet, _ = chat(server, max_tokens=30)
    heard: list[str] = []
    bombing = threading.Event()

    def neighbour() -> None:
        while not bombing.is_set():
            heard.append(chat(server, max_tokens=30)[0])

    thread = threading.Thread(target=neighbour)
    thread.start()
    try:
        for fields in BOMBS:
            try:
                chat(server, extra_body=fields, max_tokens=20)
            except BadRequestError as error:
                assert error.param
    finally:
        bombing.set()
        thread.join()
    assert heard and set(heard) == {quiet}


NESTED = "((((a{1,99}){1,99}){1,99}){1,99}){1,99}"
BOMBS: list[dict[str, object]] = [
    {"guided_regex": NESTED},
    {"guided_regex": "(a|aa|aaa)*" * 500},
    {"guided_regex": "(.*a.{200}|.*b.{200}){9}"},
    {"guided_regex": "(" * 20000 + "a" + ")" * 20000},
    {"guided_regex": "|".join(f"{i}[0-9]{{1,9}}" for i in range(5000))},
    {"guided_json": {"type": "array", "items": {"type": "array"}, "minItems": 10**9}},
    {"guided_json": {"type": "string", "pattern": NESTED, "minLength": 10**6}},
    {"guided_json": {"allOf": [{"pattern": f".*{i}.*"} for i in range(300)], "type": "string"}},
    {"guided_grammar": 'start: "(" ' * 3000},
    {"guided_grammar": "start: " + "(" * 20000 + '"a"' + ")" * 20000},
    {"guided_grammar": 'start: a\na: a a a a a a "x" | "x" | ""'},
    {"grammar": "root ::= r0\n" + "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(400)) + '\nr400 ::= "a"'},
]
