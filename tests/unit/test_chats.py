"""Messages and tools in the shapes of templates, and what a template shows of its model's styles."""

from __future__ import annotations

import json

import pytest

from ocak.core.errors import InvalidRequest
from ocak.core.request import ChatPrompt, Message, Tool, ToolCall, prompt_bytes
from ocak.worker.chat import Chat
from ocak.worker.formats.forced import forced_call
from ocak.worker.formats.styles import MISTRAL_WITH_ARGS, TOOL_STYLES, reasoning_format, tool_format
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.template import ChatTemplate
from ocak.worker.turns import as_turns, in_plain_text

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", json.dumps({"name": "weather", "description": "Is it < or >?", "parameters": SCHEMA}))
CLOCK = Tool("clock", '{"name": "clock"}')
ASKED = Message("user", "Weather?")
CALLED = Message("assistant", "", (ToolCall("id1", "weather", '{"city": "Paris"}'),), reasoning="hm")
RESULT = Message("tool", "sun", tool_call_id="id1", name="weather")
HISTORY = (ASKED, CALLED, RESULT)

KNOWS_NONE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role == 'system' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
AS_OBJECT = (
    "{% if tools is defined and tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}"
    "{% endfor %}"
)
AS_TEXT = (
    "{{ tools }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ 'call:' + c.function.arguments }}{% endfor %}{% endfor %}"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {}, Stopwatch())


def chat(source: str) -> Chat:
    return Chat(template(source))


def test_templates_read_calls_and_results_as_hugging_faces_do() -> None:
    assert as_turns(HISTORY) == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "id1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
            ],
        },
        {"role": "tool", "content": "sun", "tool_call_id": "id1", "name": "weather"},
    ]


def test_tools_are_written_as_they_were_sent() -> None:
    written = template(AS_OBJECT).render([ASKED], [WEATHER])
    assert written == json.dumps([{"type": "function", "function": json.loads(WEATHER.definition)}])


def test_a_template_that_wants_arguments_as_text_gets_them() -> None:
    assert template(AS_OBJECT).render(HISTORY) == "weather(Paris)"
    assert template(AS_TEXT).render(HISTORY) == 'Nonecall:{"city": "Paris"}'


def test_without_tools_a_template_sees_none() -> None:
    assert template("{{ tools is none }}").render([ASKED]) == "True"
    assert chat(AS_OBJECT).open(ChatPrompt((ASKED,), (WEATHER,), "none")).text == ""


def test_a_template_that_knows_no_tools_gets_them_as_text() -> None:
    written = template(KNOWS_NONE).render((Message("system", "Be brief."), *HISTORY), (WEATHER, CLOCK))
    assert written.startswith("[system]Be brief.\n\n")
    assert '{"type":"function","function":{"name":"clock"}}' in written
    assert '[assistant]<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>' in written
    assert written.endswith("[user]<tool_response>\nsun\n</tool_response>")


def test_one_that_knows_no_system_message_either_is_told_by_the_user() -> None:
    written = template(ALTERNATES).render(HISTORY, (WEATHER,))
    assert written.startswith("[user]You can call functions") and "\n\nWeather?[assistant]" in written


def test_what_is_refused_in_every_shape_is_refused_with_the_first_reason() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        template(ALTERNATES).render([ASKED, ASKED], (WEATHER,))
    with pytest.raises(InvalidRequest, match="over here"):
        template("{{ tools }}{{ raise_exception('over here') }}").render(HISTORY)


def test_results_of_several_calls_are_one_message() -> None:
    plain = in_plain_text([ASKED, CALLED, RESULT, RESULT, ASKED], ())
    assert [message.role for message in plain] == ["user", "assistant", "user", "user"]
    assert plain[2].content.count("<tool_response>") == 2


@pytest.mark.parametrize(
    "attack", ["{{ tools[0].update({}) }}", "{{ tools.append(1) }}", "{{ tools | tojson(indent=99) }}"]
)
def test_templates_cannot_change_or_blow_up_tools(attack: str) -> None:
    with pytest.raises(InvalidRequest, match="template"):
        template(attack).render([ASKED], [WEATHER])


@pytest.mark.parametrize(
    ("source", "style"),
    [
        (KNOWS_NONE, "hermes"),
        ("{{ tools }}<tool_call></tool_call>", "hermes"),
        ("{{ tools }}<tool_call><function=x><parameter=y>", "qwen3_coder"),
        ("{{ tools }}[AVAILABLE_TOOLS] [TOOL_CALLS]", "mistral"),
        ("{{ tools }}<|python_tag|>", "llama3"),
        ("""{{ tools }}{{ '{"name": "' + n + '", "parameters": ' }}""", "llama3"),
        ("{{ tools }}", "json"),
        ("{{ builtin_tools }}[TOOL_CALLS]", "hermes"),
        ("{{ tools }}<|start|>assistant<|channel|>final<|message|>", "harmony"),
    ],
)
def test_a_template_shows_how_its_model_writes_calls(source: str, style: str) -> None:
    assert tool_format(source) == style


@pytest.mark.parametrize(
    ("source", "style"), [("", "none"), ("{# </think> #}", "think"), ("[THINK]", "mistral"), ("think", "none")]
)
def test_a_template_shows_how_its_model_thinks(source: str, style: str) -> None:
    assert reasoning_format(source) == style


def test_the_configuration_goes_before_what_the_template_shows() -> None:
    configured = Chat(template("<think>"), "llama3", "none")
    assert (configured.tool_format, configured.reasoning_format) == ("llama3", "none")
    assert configured.open(ChatPrompt((ASKED,))).reader is None


def test_a_chat_without_tools_and_reasoning_is_read_by_nobody() -> None:
    assert chat(AS_OBJECT).open(ChatPrompt((ASKED,))).reader is None
    assert chat(AS_OBJECT).open(ChatPrompt((ASKED,), (WEATHER,), "none")).reader is None


def test_a_forced_call_is_begun_and_closes_reasoning_that_the_template_opened() -> None:
    named = ChatPrompt((ASKED,), (WEATHER, CLOCK), "tool:clock")
    opened = chat(KNOWS_NONE + "<think>\n").open(named)
    assert opened.text.endswith('<think>\n\n</think>\n\n<tool_call>\n{"name": "clock", "arguments":')
    required = chat(KNOWS_NONE).open(ChatPrompt((ASKED,), (WEATHER, CLOCK), "required"))
    assert required.text.endswith('<tool_call>\n{"name": "')
    only = chat(KNOWS_NONE).open(ChatPrompt((ASKED,), (CLOCK,), "required"))
    assert only.text.endswith('{"name": "clock", "arguments":')


def test_an_answer_that_keeps_to_a_form_has_no_reasoning() -> None:
    asked = ChatPrompt((ASKED,))
    assert chat(KNOWS_NONE + "<think>\n").constrained_text(asked).endswith("<think>\n\n</think>\n\n")
    channels = chat(KNOWS_NONE + "{#<|channel|><|message|>#}").constrained_text(asked)
    assert channels.endswith("<|channel|>final<|message|>")
    assert chat(KNOWS_NONE).constrained_text(asked) == chat(KNOWS_NONE).open(asked).text


@pytest.mark.parametrize("name", [*TOOL_STYLES, "mistral with args"])
def test_the_grammar_of_a_forced_call_accepts_what_is_read_as_a_call(name: str) -> None:
    llguidance = pytest.importorskip("llguidance")
    style = {**TOOL_STYLES, "mistral with args": MISTRAL_WITH_ARGS}[name]  # type: ignore[dict-item]
    one, two = forced_call(style, (WEATHER,)), forced_call(style, (WEATHER, CLOCK))
    if name in ("qwen3_coder", "harmony"):
        assert two.rest is None
        return
    tokenizer = llguidance.LLTokenizer("byte")
    good, bad = ' {"city": "Paris"}' + style.after, ' {"town": "Paris"}' + style.after
    for rest, text, accepts in (
        (one.rest, good, True),
        (one.rest, bad, False),
        (two.rest, "weather" + style.before_arguments + good, True),
        (two.rest, "clock" + style.before_arguments + bad, True),
        (two.rest, "nobody" + style.before_arguments + bad, False),
    ):
        matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(rest))
        assert not matcher.get_error()
        assert (matcher.consume_tokens(tokenizer.tokenize_str(text)) and matcher.is_accepting()) == accepts


def test_tools_and_calls_count_as_parts_of_the_prompt() -> None:
    assert prompt_bytes(ChatPrompt((ASKED,), (CLOCK,))) == len("userWeather?") + len(CLOCK.definition)
    texts = ("assistant", "hm", "id1", "weather", '{"city": "Paris"}')
    assert prompt_bytes(ChatPrompt((CALLED,))) == sum(map(len, texts))
