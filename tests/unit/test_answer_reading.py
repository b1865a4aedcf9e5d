"""Calls and reasoning are found in an answer's text, however it is cut, and nothing that was written is lost."""

from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ocak.core.request import ToolCall
from ocak.gateway.collected_calls import CollectedCalls
from ocak.worker.formats.answer import AnswerReader, InTurn, Reading, Splitter
from ocak.worker.formats.bodies import Parameters
from ocak.worker.formats.calls import CallSplitter
from ocak.worker.formats.harmony import HarmonySplitter
from ocak.worker.formats.reasoning import ReasoningMarks, ReasoningSplitter
from ocak.worker.formats.styles import MISTRAL_WITH_ARGS, TOOL_STYLES, ToolStyle

TOOLS = {"get_weather": {"city": "string", "days": "integer"}, "f": {}}
STYLES: dict[str, ToolStyle] = {**TOOL_STYLES, "mistral with args": MISTRAL_WITH_ARGS}
THINK = ReasoningMarks("<think>", "</think>")
PIECES = (
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<function=f>",
    "<function=get_weather>\n",
    "<parameter=city>",
    "</parameter>",
    "</function>",
    "<think>",
    "</think>",
    "<|start|>assistant",
    "<|channel|>analysis",
    "<|channel|>final",
    "<|channel|>commentary to=functions.f ",
    "<|constrain|>json",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    '{"name": "f", "arguments": {}}',
    '{"name": "f", "parameters": {"a": [1, {"b": "}"}]}}',
    '{"arguments": {"city": "x"}, "name": "get_weather"}',
    '{"name": "f", "arguments": "{\\"a\\": 1}"}',
    '{"name": "f", "arguments": {"a": ',
    '{"name": "nobody", "arguments": {}}',
    '"',
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    "f",
    "\\",
    "\n",
    " ",
    "x",
    "ç",
    "<",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)
cuts = st.lists(st.integers(0, 400), max_size=20)
styles = st.sampled_from(sorted(STYLES))
marked = st.sampled_from(sorted(STYLES.keys() - {"harmony"}))


def reader(style: str | None = "hermes", *, thinks: bool = False, is_inside: bool = False, **more: bool | str):
    numbers = count(1)
    reasoning = ReasoningSplitter(THINK, is_inside=is_inside) if thinks else None
    calls = None if style is None else splitter(style, TOOLS, is_single=bool(more.pop("is_single", 0)))
    parts = calls if isinstance(calls, HarmonySplitter) else InTurn(reasoning, calls)
    return AnswerReader(parts, lambda: f"id{next(numbers)}", **more)  # type: ignore[arg-type]


def splitter(style: str, tools: Parameters, *, is_single: bool = False) -> Splitter:
    marks = STYLES[style].marks
    return (
        HarmonySplitter(tools, is_single=is_single)
        if marks is None
        else CallSplitter(marks, tools, is_single=is_single)
    )


def parts(text: str, places: list[int]) -> list[str]:
    at = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in zip(at, at[1:], strict=False)]


def read(reading: AnswerReader, pieces: list[str]) -> list[Reading]:
    return [*(reading.read(piece) for piece in pieces), reading.read("", is_end=True)]


def together(readings: list[Reading]) -> tuple[str, str, tuple[ToolCall, ...]]:
    """The answer's text, its reasoning, and its whole calls."""
    calls = CollectedCalls()
    for reading in readings:
        calls.add(reading.calls)
    return "".join(r.text for r in readings), "".join(r.reasoning for r in readings), calls.whole()


def whole(text: str, style: str | None = "hermes", **more: bool) -> tuple[str, str, tuple[ToolCall, ...]]:
    return together(read(reader(style, **more), [text]))


modes = st.fixed_dictionaries({name: st.booleans() for name in ("thinks", "is_inside", "is_single")})


@given(texts, cuts, styles, modes)
@example('[{"name": "f", "arguments": {}}', [31], "json", {})
def test_however_the_text_is_cut_the_same_is_read(text, places, style, mode):
    assert together(read(reader(style, **mode), parts(text, places))) == whole(text, style, **mode)


@given(texts, cuts, marked, st.booleans())
@example("<", [], "hermes", True)
def test_nothing_is_lost_but_marks_and_blanks(text, places, style, thinks):
    """Every character that is neither blank nor a call's own comes out, in its order."""
    shown, reasoning, calls = together(read(reader(style, thinks=thinks), parts(text, places)))
    if not calls and not reasoning:
        trimmed = text.replace("<think>", "").replace("</think>", "")
        assert shown == text or (thinks and shown.strip() == trimmed.strip())
    left = iter(text)
    assert all(char in left for char in reasoning + shown if not char.isspace())


@given(st.text(st.characters(exclude_characters="{[<", exclude_categories=["Cs"])), cuts, styles, st.booleans())
def test_a_text_without_marks_comes_out_as_it_is(text, places, style, thinks):
    shown, reasoning, calls = together(read(reader(style, thinks=thinks), parts(text, places)))
    assert (shown, reasoning, calls) == (text, "", ())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(), json_values, max_size=4)


def written(style: str, name: str, arguments: dict, *, indent: int | None = None, ascii: bool = False) -> str:
    text = json.dumps(arguments, ensure_ascii=ascii, indent=indent)
    given = STYLES[style]
    return f"{given.before_name}{name}{given.before_arguments} {text}{given.after}"


@given(
    st.sampled_from([style for style in STYLES if style != "qwen3_coder"]),
    objects,
    st.sampled_from([None, 0, 2]),
    st.booleans(),
    cuts,
)
def test_a_call_in_any_style_arrives_whole(style, arguments, indent, ascii, places):
    text = written(style, "get_weather", arguments, indent=indent, ascii=ascii)
    if style == "mistral with args":
        text = text.replace("[ARGS] ", "[ARGS]")
    assume(style != "harmony" or "<|" not in json.dumps(arguments))  # its marks end a message wherever they stand
    readings = read(reader(style), parts(text, places))
    shown, _, (call,) = together(readings)
    assert (shown, call.id, call.name) == ("", "id1", "get_weather")
    assert json.loads(call.arguments) == arguments
    first = next(reading.calls[0] for reading in readings if reading.calls)
    assert (first.index, first.id, first.name, first.arguments) == (0, "id1", "get_weather", "")


@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), min_size=1).map(str.strip),
        st.text().filter(lambda value: "</parameter>" not in value),
        max_size=4,
    ),
    cuts,
)
def test_a_call_written_as_xml_becomes_json(arguments, places):
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    text = f"<tool_call>\n<function=typed>\n{body}</function>\n</tool_call>"
    types = {"typed": dict.fromkeys(arguments, "string")}
    reading = AnswerReader(splitter("qwen3_coder", types), lambda: "id")
    shown, _, (call,) = together(read(reading, parts(text, places)))
    assert (shown, json.loads(call.arguments)) == ("", arguments)


def test_xml_values_follow_the_declared_types():
    text = (
        "<tool_call><function=get_weather><parameter=city>\n42\n</parameter><parameter=days>3</parameter>"
        '<parameter=when>not json</parameter><parameter=deep>\n{"a": [1]}\n</parameter></function></tool_call>'
    )
    _, _, (call,) = whole(text, "qwen3_coder")
    assert json.loads(call.arguments) == {"city": "42", "days": 3, "when": "not json", "deep": {"a": [1]}}


F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "get_weather", "parameters": {}}'


@pytest.mark.parametrize(
    ("style", "text", "shown"),
    [
        ("hermes", f"<tool_call>\n{F}\n</tool_call>\n<tool_call>\n{G}\n</tool_call>", ""),
        ("hermes", f"Let me see. \n<tool_call>{F}</tool_call>  <tool_call>{G}</tool_call> \n", "Let me see."),
        ("hermes", f"<tool_call>{F}<tool_call>{G}", ""),
        ("hermes", f"<tool_call>{F}</tool_call> and <tool_call>{G}</tool_call>!", " and!"),
        ("llama3", f"{F}; {G}", ""),
        ("llama3", f"<|python_tag|>{F}\n{G}", ""),
        ("llama3", f"I call <|python_tag|>{F};{G}", "I call"),
        ("mistral", f"[TOOL_CALLS][{F}, {G}]", ""),
        ("mistral", f"[TOOL_CALLS] [{F},{G}] done", " done"),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]get_weather{}', ""),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]abc123def[ARGS]{"a": 1}[TOOL_CALLS]get_weather[ARGS]{}', ""),
        ("json", f"[{F}, {G}]", ""),
        ("json", f"{F}\n{G}", ""),
        (
            "qwen3_coder",
            "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>"
            "<tool_call><function=get_weather></function></tool_call>",
            "",
        ),
    ],
)
def test_several_calls_are_told_apart(style, text, shown):
    found, _, calls = whole(text, style)
    assert found == shown
    assert [(call.id, call.name, json.loads(call.arguments)) for call in calls] == [
        ("id1", "f", {"a": 1}),
        ("id2", "get_weather", {}),
    ]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hermes", "<tool_call>\nI would call f\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a" 1}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\n"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}, "name": "get_weather"}</tool_call>'),
        ("hermes", "<tool_call>" + '{"name":"f","arguments":{"a":' + "[" * 100_000),
        ("hermes", '<tool_call>{"name":"f","arguments":{"a":' + "[" * 50_000 + "]" * 50_000 + "}}"),
        ("hermes", "  a <tool_call"),
        ("llama3", '{"name": "Alice", "parameters": {}}'),
        ("llama3", "<|python_tag|>print(1)"),
        ("llama3", '{"answer": 42}'),
        ("mistral", "[TOOL_CALLS]nobody[ARGS]{}"),
        ("mistral", "[TOOL_CALLS]f[ARGS]{]}"),
        ("mistral", "[TOOL_CALLS]" + "f" * 5000),
        ("json", "[1, 2, 3]"),
        ("json", "[a link](https://example.com)"),
        ("qwen3_coder", "<tool_call><function=f><parameter=a>1</function></tool_call>"),
        ("qwen3_coder", "<tool_call><function=f><parameter=a>1</parameter><parameter=a>2</parameter></function>"),
        ("qwen3_coder", "<tool_call><fun"),
        ("qwen3_coder", "<tool_call><function=nobody></function></tool_call>"),
        ("qwen3_coder", "<tool_call><function=" + "f" * 5000),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_call_comes_out_as_it_was_written(style, text):
    for pieces in ([text], list(text[:3000]) + [text[3000:]]):
        assert together(read(reader(style), pieces)) == (text, "", ())


def test_a_broken_call_leaves_the_whole_ones_before_and_behind_it():
    text = f"[TOOL_CALLS][{F}, oh no"
    assert whole(text, "mistral")[2] == (ToolCall("id1", "f", '{"a": 1}'),)
    assert whole(text, "mistral")[0] == ", oh no"
    text = f'<tool_call>{{"name": "f", "arguments": {{x<tool_call>{F}</tool_call>'
    shown, _, calls = whole(text)
    assert shown == '<tool_call>{"name": "f", "arguments": {x'
    assert [(call.id, call.arguments) for call in calls] == [("id2", '{"a": 1}')]


def test_arguments_are_told_as_they_are_written():
    reading = reader()
    for piece in ("<tool", '_call>{"name": "f", ', '"argum'):
        assert reading.read(piece) == Reading()
    begun = reading.read('ents": {"a": "x')
    assert [(piece.id, piece.name, piece.arguments) for piece in begun.calls] == [
        ("id1", "f", ""),
        ("", "", '{"a": "x'),
    ]
    assert [piece.arguments for piece in reading.read('y"').calls] == ['y"']
    assert not reading.has_calls
    assert [piece.arguments for piece in reading.read("}}").calls] == ["}"]
    assert reading.has_calls


def test_text_is_held_back_only_while_it_may_be_a_mark():
    reading = reader()
    assert [reading.read(piece).text for piece in ("a <", "b", " <tool", "x")] == ["a", " <b", "", " <toolx"]


def test_an_answer_that_may_call_once_is_over_with_its_first_call():
    reading = reader(is_single=True)
    found = reading.read(f"<tool_call>{F}</tool_call><tool_call>{G}</tool_call> more")
    assert {piece.index for piece in found.calls} == {0} and reading.is_over and found.text == ""
    assert reading.read("more", is_end=True) == Reading()


@pytest.mark.parametrize(
    ("text", "is_inside", "expected"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, ("yes", "hm")),
        (" \n<think>hm</think>yes", False, ("yes", "hm")),
        ("hm, so\n</think>\n\nyes", True, ("yes", "hm, so")),
        ("\n\n</think>\n\nyes", True, ("yes", "")),
        ("<think>never ends ", False, ("", "never ends")),
        ("<think></think>", False, ("", "")),
        ("no <think>marks</think>", False, ("no <think>marks</think>", "")),
        ("<thin", False, ("<thin", "")),
        ("a </thin b", True, ("", "a </thin b")),
        ("x</think>y</think>z", True, ("y</think>z", "x")),
    ],
)
def test_reasoning_is_set_apart(text, is_inside, expected):
    for pieces in ([text], list(text)):
        found = together(read(reader(None, thinks=True, is_inside=is_inside), pieces))
        assert found == (*expected, ())


def test_reasoning_comes_before_calls_and_calls_in_it_are_none():
    text = f"<think>I call <tool_call>{F}</tool_call></think>\n<tool_call>{G}</tool_call>"
    shown, reasoning, (call,) = whole(text, thinks=True)
    assert (shown, reasoning, call.name) == ("", f"I call <tool_call>{F}</tool_call>", "get_weather")


def test_reasoning_that_nobody_wants_is_left_out():
    reading = reader(None, thinks=True, is_reasoning_told=False)
    assert together(read(reading, ["<think>secret</think>", "open"])) == ("open", "", ())


@pytest.mark.parametrize("style", sorted(STYLES))
def test_what_the_prompt_wrote_of_a_call_belongs_to_it(style):
    given = STYLES[style]
    rest = "<parameter=a>1</parameter>" if style == "qwen3_coder" else '{"a": 1}'
    reading = reader(style, pushed=f"{given.before_name}f{given.before_arguments}")
    shown, _, (call,) = together(read(reading, [rest, given.after]))
    assert (shown, call.name, json.loads(call.arguments)) == ("", "f", {"a": 1})
    broken = reader(style, pushed=f"{given.before_name}f{given.before_arguments}")
    text, _, calls = together(read(broken, ["oh no"]))
    assert (text, calls) == (f"{given.before_name}f{given.before_arguments}oh no", ())


HEADED = (
    "<|channel|>analysis<|message|>Let me <b> see.<|end|><|start|>assistant<|channel|>commentary<|message|>I look."
    '<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'
    "<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>So<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Done."
)


@given(cuts)
@example(list(range(400)))
def test_messages_on_channels_are_sorted(places):
    shown, reasoning, calls = together(read(reader("harmony"), parts(HEADED, places)))
    assert (shown, reasoning) == ("I look.\nDone.", "Let me <b> see.\nSo")
    assert calls == (ToolCall("id1", "f", '{"a": 1}'), ToolCall("id2", "get_weather", "{}"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("just text", "just text"),
        ("<b>bold</b> <|end|>and more", "<b>bold</b> and more"),
        ("<|channel|>final", "<|channel|>final"),
        ("<|channel|>" + "x" * 5000, "<|channel|>" + "x" * 5000),
        ("<|channel|>final<|message|>a <|mess", "a <|mess"),
        *(
            (f"{head}<|message|>{body}", f"{head}<|message|>{body}")
            for head in (
                "<|channel|>commentary to=functions.f ",
                "<|start|>assistant to=functions.f<|channel|>commentary",
            )
            for body in ('{"a": 1', "[1]", "oh no", "")
        ),
        (
            "<|channel|>commentary to=functions.nobody <|constrain|>json<|message|>{}<|call|>",
            "<|channel|>commentary to=functions.nobody <|constrain|>json<|message|>{}",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_message_or_to_nobody_is_text(text, shown):
    for pieces in ([text], list(text)):
        assert together(read(reader("harmony"), pieces)) == (shown, "", ())
