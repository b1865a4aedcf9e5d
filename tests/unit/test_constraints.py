"""From a request's words about its answer's form to a grammar's source, and to the place of a mistake in them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher

from ocak.core.errors import InvalidRequest
from ocak.core.limits import MAX_CONSTRAINT_BYTES, check_constraint
from ocak.core.request import Constraint, ConstraintKind
from ocak.worker.constraints import MAX_GBNF_RULES, source
from ocak.worker.grammar_check import GrammarChecker, answer, byte_tokenizer

BYTES = byte_tokenizer()


def matches(kind: ConstraintKind, grammar: str, text: str) -> bool:
    """Whether the whole text follows the grammar."""
    matcher = LLMatcher(BYTES, source(Constraint(kind, grammar, "field")))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def message(kind: ConstraintKind, text: str) -> str:
    """How a wrong one is refused."""
    checked = answer(msgspec.json.encode(Constraint(kind, text, "the.field")), BYTES)
    assert checked.error is not None and checked.error.code == "invalid_request"
    assert checked.error.param == "the.field" and "the.field" in checked.error.message
    return checked.error.message


@given(
    st.lists(st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable() or "\n" in text), min_size=1)
)
def test_a_choice_is_one_of_the_texts_and_nothing_else(choices: list[str]) -> None:
    try:
        listed = json.dumps(choices)
        listed.encode().decode()
        "".join(choices).encode()
    except UnicodeEncodeError:
        return
    assert all(matches("choice", listed, choice) for choice in choices)
    longer = max(choices, key=len) + "x"
    assert not matches("choice", listed, longer)


@pytest.mark.parametrize(
    ("pattern", "text", "follows"),
    [
        ("[0-9]{3}", "123", True),
        ("[0-9]{3}", "1234", False),
        ("a/b", "a/b", True),
        (r"a\/b", "a/b", True),
        ("a\nb", "a\nb", True),
        ("^a$", "a", True),
        ("ç+", "çç", True),
        (r"\\", "\\", True),
    ],
)
def test_an_expression_is_matched_as_a_whole(pattern: str, text: str, follows: bool) -> None:
    assert matches("regex", pattern, text) is follows


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (r'root ::= "\u0041" [\u00e9-\u00ff]', "Aé"),
        (r'root ::= "\U0001F525"', "🔥"),
        (r"root ::= [a\-z]+", "a-z"),
        (r'root ::= "a\x41\n"', "aA\n"),
        (r'root ::= "say \"hi\""', 'say "hi"'),
        ("root ::= x-y{2}\nx-y ::= [0-9]", "12"),
        ('root ::= ("a" | "b")+ # many', "abba"),
        ('start: "a" word\nword: /[b-d]+/', "abcd"),
    ],
)
def test_gbnf_and_lark_are_both_read(grammar: str, text: str) -> None:
    assert matches("grammar", grammar, text)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "strin"}, "its root"),
        ({"properties": {"a": {"type": "objct"}}}, "/properties/a"),
        ({"properties": {"a": {"items": [{"type": "integer"}, {"type": "x"}]}}}, "/properties/a/items/1"),
        (
            {"properties": {"a/b": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "("}]}}},
            "/properties/a~1b/anyOf/1",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"format": "never"}}}, "/$defs/b"),
        ({"properties": {"a": {"$ref": "#/$defs/missing"}}}, "/properties/a"),
        ({"properties": {"a": {"items": {"uniqueItems": True, "type": "array"}}}}, "/properties/a/items"),
        ({"type": "object", "properties": {"a": {"enum": []}}, "required": ["a"]}, "its root"),
    ],
)
def test_a_wrong_schema_is_refused_with_its_place(schema: dict[str, object], place: str) -> None:
    assert f"at {place}: " in message("json_schema", json.dumps(schema))


def test_references_that_go_round_do_not_trouble_the_search() -> None:
    one = {"$ref": "#/$defs/two", "type": "x"}
    two = {"$ref": "#/$defs/one", "type": "x"}
    assert "at " in message("json_schema", json.dumps({"$defs": {"one": one, "two": two}, "$ref": "#/$defs/one"}))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("json_schema", "{", "JSON"),
        ("json_schema", "[]", "object"),
        ("json_schema", "3", "object"),
        ("json_schema", "[" * 60000, "JSON"),
        ("json_schema", '{"a":' * 9000 + "1" + "}" * 9000, "JSON"),
        ("regex", "a(b", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("choice", "[]", "1 to"),
        ("choice", '["a", 3]', "texts"),
        ("choice", '["a", ""]', "empty"),
        ("grammar", "start: foo", "foo"),
        ("grammar", 'start: "a" | (', "1(15)"),
        ("grammar", 'root ::= "a" | thing', "thing"),
        ("grammar", "root ::= [a", "line 1"),
        ("grammar", "hello", "GBNF"),
        ("grammar", "root ::= " + "(" * 20000 + '"a"' + ")" * 20000, "deeply"),
        ("grammar", "\n".join(f'r{i} ::= "a"' for i in range(MAX_GBNF_RULES + 1)), "rules"),
    ],
)
def test_a_mistake_is_told_in_words(kind: ConstraintKind, text: str, words: str) -> None:
    assert words in message(kind, text)


def test_a_constraint_has_a_size() -> None:
    check_constraint(Constraint("regex", "a" * MAX_CONSTRAINT_BYTES, "f"))
    for text in ("", "a" * (MAX_CONSTRAINT_BYTES + 1), "\ud800"):
        with pytest.raises(InvalidRequest) as raised:
            check_constraint(Constraint("regex", text, "f"))
        assert raised.value.param == "f"


@given(st.sampled_from(["json_schema", "regex", "choice", "grammar"]), st.text(max_size=60))
def test_any_text_has_a_source_or_is_refused(kind: ConstraintKind, text: str) -> None:
    checked = answer(msgspec.json.encode(Constraint(kind, text, "f")), BYTES)
    assert checked.error.param == "f" if checked.error else checked.source or not text


SPACED = '{ "a": [\n    1, 2\n ]\n}'


def test_white_space_in_json_is_allowed_and_bounded() -> None:
    schema = '{"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"}}}}'
    assert matches("json_schema", schema, SPACED)
    assert matches("json_schema", schema, '{"a":[1,2]}')
    assert not matches("json_schema", schema, "{  " + " " * 30 + '"a":[1]}')
    assert not matches("json_schema", schema, "{\n\n\n\n" + '"a":[1]}')


def test_true_and_an_empty_schema_are_any_json() -> None:
    for schema in ("true", "{}"):
        assert matches("json_schema", schema, '[1, {"a": null}]')


def test_a_grammar_that_takes_too_long_or_too_much_is_refused_and_the_next_one_is_compiled() -> None:
    endless = {"type": "string", "allOf": [{"pattern": f".*{i}.*"} for i in range(300)]}
    checker = GrammarChecker()
    with pytest.raises(InvalidRequest, match="simpler"):
        checker.check(Constraint("json_schema", json.dumps(endless), "f"))
    assert checker.check(Constraint("regex", "a", "f"))
    checker.close()


def test_a_process_that_ended_is_replaced() -> None:
    checker = GrammarChecker()
    assert checker.check(Constraint("regex", "a", "f")) == checker.check(Constraint("regex", "a", "f"))
    assert checker._process is not None
    checker._process.kill()
    checker._process.wait()
    assert checker.check(Constraint("regex", "b", "f"))
    checker.close()
