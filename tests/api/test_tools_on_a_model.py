"""Tool calls and reasoning end to end: a model that writes them, its worker, the server, the `openai` package."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

from ocak.fleet.fleet import Fleet, ModelSpec
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import ServedModel
from ocak.providers.local import LocalProvider
from ocak.worker.messages import LoadOptions
from tests.api.serving import serving
from tests.models import TinyModel, write_model

PATIENCE_S = 30.0
HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
CALLS = "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
TOOLS_FIRST = "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PLAIN = HEAD + END
HERMES = TOOLS_FIRST + HEAD + CALLS + END
QWEN3 = HERMES + "{# <think> </think> #}"
THINKS_AT_ONCE = QWEN3 + "<think>{{ '\n' }}"
LLAMA3 = HERMES.replace("<tool_call>", "<|python_tag|>").replace("</tool_call>", "")
MISTRAL = HERMES.replace("<tool_call>", "[TOOL_CALLS]").replace("</tool_call>", "")

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASK = {"messages": [{"role": "user", "content": "Weather in Paris?"}], "tools": [WEATHER]}
CITY, ARGUMENTS = {"city": "Paris"}, ('"arguments": ', '{"city"', ': "Par', 'is"}', "}")
CALL = ("<tool_call>", '\n{"name": ', '"get_weather", ', *ARGUMENTS, "\n</tool_call>")


@asynccontextmanager
async def client(
    folder: Path, script: tuple[str, ...], template: str, *, special: tuple[str, ...] = (), start: str = "\n"
) -> AsyncIterator[AsyncOpenAI]:
    """Serve a model that answers with `script`, whatever it is asked."""
    written = TinyModel(
        chat_template=template,
        script=(start, *script),
        special_tokens=special,
        embedding_length=256,
        num_heads=4,
        num_layers=1,
    )
    model = write_model(folder / "model.gguf", written)
    fleet = Fleet([ModelSpec("m", LoadOptions(path=str(model), context=2048, parallel=2))])
    await fleet.start()
    try:
        await fleet.wait_ready("m", wait_s=PATIENCE_S)
        served = ServedModel("m", LocalProvider(fleet, "m"), Admission(QueueLimits(2, 100)))
        async with (
            serving([served]) as running,
            AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as api,
        ):
            yield api
    finally:
        await fleet.stop()


async def ask(api: AsyncOpenAI, **more):
    return await api.chat.completions.create(**({"model": "m", "max_tokens": 100} | ASK | more))


async def streamed(api: AsyncOpenAI, **more):
    """Return the streamed answer as the client's own accumulator puts it together, and the chunks."""
    chunks = []
    async with api.chat.completions.stream(**({"model": "m", "max_tokens": 100} | ASK | more)) as stream:
        async for event in stream:
            if event.type == "chunk":
                chunks.append(event.chunk)
        return (await stream.get_final_completion()).choices[0], chunks


@pytest.mark.parametrize(
    ("template", "script", "special"),
    [
        (HERMES, CALL, ()),
        (HERMES, CALL, ("<tool_call>",)),
        (PLAIN, CALL, ()),
        (LLAMA3, ('{"name": ', '"get_weather", ', '"parameters": ', *ARGUMENTS[1:]), ()),
        (
            LLAMA3,
            ("<|python_tag|>", '{"name": "get_weather", ', '"parameters": ', *ARGUMENTS[1:]),
            ("<|python_tag|>",),
        ),
        (MISTRAL, ("[TOOL_CALLS]", '[{"name": "get_weather", ', *ARGUMENTS, "]"), ("[TOOL_CALLS]",)),
        (
            MISTRAL + "{#[ARGS]#}",
            ("[TOOL_CALLS]", "get_", "weather", "[ARGS]", *ARGUMENTS[1:-1]),
            ("[TOOL_CALLS]", "[ARGS]"),
        ),
        (
            HERMES + "{#<function= <parameter=#}",
            (
                "<tool_call>",
                "\n<function=get_",
                "weather>\n",
                "<parameter=",
                "city>\nPa",
                "ris\n</par",
                "ameter>\n</function>",
                "\n</tool_call>",
            ),
            (),
        ),
    ],
    ids=[
        "hermes",
        "hermes, special",
        "no tools",
        "llama3",
        "llama3, tag",
        "mistral",
        "mistral, args",
        "qwen3-coder",
    ],
)
async def test_a_call_reaches_the_client_whole_and_streamed(tmp_path, template, script, special):
    async with client(tmp_path, script, template, special=special) as api:
        whole = (await ask(api)).choices[0]
        final, chunks = await streamed(api)
    for choice in (whole, final):
        (call,) = choice.message.tool_calls
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        assert (call.type, call.function.name, json.loads(call.function.arguments)) == (
            "function",
            "get_weather",
            CITY,
        )
    assert whole.message.content is None
    deltas = [c.choices[0].delta for c in chunks]
    pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
    assert pieces[0].id and pieces[0].function.name == "get_weather" and pieces[0].type == "function"
    assert len(pieces) > 2 and all(p.index == 0 and p.id is None and p.function.name is None for p in pieces[1:])
    assert len(pieces[0].id) == (9 if "TOOL_CALLS" in template else 29)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_text_and_several_calls_in_one_answer(tmp_path):
    script = (
        "Two",
        " calls.\n",
        *CALL,
        "\n<tool_call>\n",
        '{"name": "get_weather", "arguments": {}}',
        "</tool_call>",
    )
    async with client(tmp_path, script, HERMES) as api:
        whole = (await ask(api)).choices[0]
        final, _ = await streamed(api)
        single = (await ask(api, parallel_tool_calls=False)).choices[0]
        several = await ask(api, n=2, logprobs=True)
    for choice in (whole, final, *several.choices):
        assert choice.message.content == "Two calls."
        assert [json.loads(call.function.arguments) for call in choice.message.tool_calls] == [CITY, {}]
        assert len({call.id for call in choice.message.tool_calls}) == 2
    assert len(single.message.tool_calls) == 1 and single.finish_reason == "tool_calls"
    assert len(several.choices[0].logprobs.content) == len(script)


async def test_a_call_that_breaks_off_is_text(tmp_path):
    async with client(tmp_path, (*CALL[:-3], "oops"), HERMES) as api:
        whole = (await ask(api)).choices[0]
        _, chunks = await streamed(api)
        short = (await ask(api, max_tokens=5)).choices[0]
    written = "".join((*CALL[:-3], "oops"))
    assert (whole.message.tool_calls, whole.message.content, whole.finish_reason) == (None, written, "stop")
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == written
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (short.message.content, short.finish_reason) == ("".join(CALL[:5]), "length")


async def test_tools_that_may_not_be_used_are_not(tmp_path):
    async with client(tmp_path, CALL, HERMES) as api:
        none = (await ask(api, tool_choice="none")).choices[0]
        without = (await ask(api, tools=openai.omit)).choices[0]
        other = {"type": "function", "function": {"name": "other"}}
        unknown = (await ask(api, tools=[other])).choices[0]
    for choice in (none, without, unknown):
        assert (choice.message.tool_calls, choice.message.content) == (None, "".join(CALL))
        assert choice.finish_reason == "stop"


@pytest.mark.parametrize("template", [HERMES, THINKS_AT_ONCE, PLAIN])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_call_that_must_come_is_begun_for_the_model(tmp_path, template, choice):
    async with client(tmp_path, (' {"city": ', '"Paris"}', "}\n</tool_call>"), template, start=":") as api:
        whole = (await ask(api, tool_choice=choice)).choices[0]
        final, _ = await streamed(api, tool_choice=choice)
    for answer in (whole, final):
        assert answer.finish_reason == "tool_calls" and not answer.message.content
        assert json.loads(answer.message.tool_calls[0].function.arguments) == CITY


async def test_a_call_of_one_of_several_tools_begins_with_its_name(tmp_path):
    script = ("get_", 'weather", "arguments": ', *ARGUMENTS[1:])
    other = {"type": "function", "function": {"name": "other"}}
    async with client(tmp_path, script, HERMES, start='"') as api:
        answer = (await ask(api, tools=[other, WEATHER], tool_choice="required")).choices[0]
    assert answer.message.tool_calls[0].function.name == "get_weather"


@pytest.mark.parametrize("special", [(), ("<think>", "</think>")])
@pytest.mark.parametrize("template", [QWEN3, THINKS_AT_ONCE])
async def test_reasoning_is_told_apart_and_calls_follow_it(tmp_path, template, special):
    opening = () if template is THINKS_AT_ONCE else ("<think>",)
    script = (*opening, "Let me", " look.\n\n", "</think>", "\n\nLooking", *CALL)
    async with client(tmp_path, script, template, special=special) as api:
        whole = (await ask(api)).choices[0]
        _, chunks = await streamed(api)
        quiet = (await ask(api, extra_body={"include_reasoning": False})).choices[0]
    assert whole.message.reasoning_content == "Let me look."
    assert whole.message.content == quiet.message.content == "Looking"
    assert not hasattr(quiet.message, "reasoning_content")
    assert whole.message.tool_calls[0].function.name == quiet.message.tool_calls[0].function.name == "get_weather"
    deltas = [c.choices[0].delta for c in chunks]
    assert [d.reasoning_content for d in deltas if getattr(d, "reasoning_content", None)] == ["Let me", " look."]
    assert "".join(d.content or "" for d in deltas) == "Looking"


async def test_channels_are_sorted_though_their_marks_are_no_text(tmp_path):
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>")
    script = ("<|channel|>", "analysis", "<|message|>", "Let me look.")
    template = HERMES + "{#<|channel|><|message|>#}"
    async with client(tmp_path, script, template, special=marks) as api:
        thinking = (await ask(api)).choices[0].message
    call = ("<|channel|>", "commentary to=functions.", "get_weather ", "<|constrain|>", "json", "<|message|>")
    async with client(tmp_path, (*call, *ARGUMENTS[1:-1]), template, special=marks) as api:
        calling = (await ask(api)).choices[0]
        final, _ = await streamed(api)
    async with client(tmp_path, ARGUMENTS[1:-1], template, special=marks, start="<|message|>") as api:
        forced = (await ask(api, tool_choice="required")).choices[0]
    assert (thinking.reasoning_content, thinking.content) == ("Let me look.", "")
    for choice in (calling, final, forced):
        assert choice.finish_reason == "tool_calls" and not choice.message.content
        assert json.loads(choice.message.tool_calls[0].function.arguments) == CITY


async def test_completions_leave_everything_in_the_text(tmp_path):
    script = ("<think>", "hm", "</think>", *CALL)
    async with client(tmp_path, script, QWEN3) as api:
        answer = await api.completions.create(model="m", prompt="x\n", max_tokens=100)
    assert answer.choices[0].text == "".join(script)


async def test_a_stop_string_ends_reasoning_and_calls_too(tmp_path):
    script = ("<think>", "one two", "</think>", *CALL)
    async with client(tmp_path, script, QWEN3) as api:
        in_reasoning = (await ask(api, stop=[" two"])).choices[0]
        in_call = (await ask(api, stop=["Paris"])).choices[0]
    assert (in_reasoning.message.reasoning_content, in_reasoning.message.content) == ("one", "")
    assert in_call.message.tool_calls is None and in_call.finish_reason == "stop"
    assert in_call.message.content == "".join(CALL).partition("Paris")[0]


async def test_tools_count_where_a_chat_is_tokenised(tmp_path):
    async with client(tmp_path, CALL, HERMES) as api:
        root = str(api.base_url).removesuffix("v1/")
        plain, full = [
            await api.post(f"{root}tokenize", cast_to=dict[str, object], body=body)
            for body in ({"messages": ASK["messages"]}, ASK)
        ]
        used = (await ask(api)).usage
    assert full["count"] == used.prompt_tokens > plain["count"]


async def test_the_agents_loop_sends_calls_and_results_back(tmp_path):
    async with client(tmp_path, CALL, HERMES) as api:
        message = (await ask(api)).choices[0].message
        result = {
            "role": "tool",
            "tool_call_id": message.tool_calls[0].id,
            "content": [{"type": "text", "text": "sun"}],
        }
        history = [*ASK["messages"], message.model_dump(exclude_none=True), result]
        again = await ask(api, messages=history)
        plain = await ask(
            api, messages=[*ASK["messages"], {"role": "assistant", "content": "?"}, *ASK["messages"]]
        )
    assert again.choices[0].finish_reason == plain.choices[0].finish_reason == "tool_calls"
