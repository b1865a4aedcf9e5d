"""A call that must come does come, whole and of its tool's schema, from a model that writes anything."""

from __future__ import annotations

import asyncio
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
from tests.models import CHATML_TEMPLATE, TinyModel, write_model

PATIENCE_S = 30.0
THINKS = CHATML_TEMPLATE + "<think>{{ '\n' }}"
LIGHTS = {
    "type": "object",
    "properties": {"room": {"enum": ["kitchen", "hall"]}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
    "additionalProperties": False,
}
LEVEL = {"type": "object", "properties": {"level": {"enum": [1, 2, 3]}}, "required": ["level"]}
TOOLS = [
    {"type": "function", "function": {"name": "lights", "parameters": LIGHTS}},
    {"type": "function", "function": {"name": "heat", "parameters": LEVEL | {"additionalProperties": False}}},
]
ASK = {"model": "m", "messages": [{"role": "user", "content": "Light!"}], "tools": TOOLS, "max_tokens": 300}


@asynccontextmanager
async def client(folder: Path, template: str = CHATML_TEMPLATE, **options: str) -> AsyncIterator[AsyncOpenAI]:
    model = write_model(folder / "model.gguf", TinyModel(chat_template=template))
    fleet = Fleet([ModelSpec("m", LoadOptions(path=str(model), context=2048, parallel=4, **options))])
    await fleet.start()
    try:
        await fleet.wait_ready("m", wait_s=PATIENCE_S)
        served = ServedModel("m", LocalProvider(fleet, "m"), Admission(QueueLimits(4, 100)))
        async with (
            serving([served]) as running,
            AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as api,
        ):
            yield api
    finally:
        await fleet.stop()


async def any_call(api: AsyncOpenAI, seed: int):
    """Nearly every token is as likely as the others."""
    flat = {"top_k": 0, "min_p": 0}
    return await api.chat.completions.create(
        **ASK, tool_choice="required", seed=seed, temperature=20, top_p=1, extra_body=flat
    )


def check(call) -> None:
    arguments = json.loads(call.function.arguments)
    if call.function.name == "lights":
        assert set(arguments) == {"room", "on"} and arguments["room"] in ("kitchen", "hall")
        assert isinstance(arguments["on"], bool)
    else:
        assert call.function.name == "heat" and arguments["level"] in (1, 2, 3)


@pytest.mark.parametrize("style", ["hermes", "llama3", "mistral", "json"])
@pytest.mark.parametrize("template", [CHATML_TEMPLATE, THINKS])
async def test_a_required_call_is_always_one_of_the_tools(tmp_path, style, template):
    async with client(tmp_path, template, tool_format=style) as api:
        answers = await asyncio.gather(*(any_call(api, seed) for seed in range(12)))
    for answer in answers:
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls
        check(call)
    assert {answer.choices[0].message.tool_calls[0].function.name for answer in answers} == {"lights", "heat"}


async def test_a_named_call_is_of_that_tool_and_streams(tmp_path):
    named = {"type": "function", "function": {"name": "heat"}}
    async with client(tmp_path) as api:
        stream = await api.chat.completions.create(**ASK, tool_choice=named, stream=True, temperature=0)
        pieces = [p async for chunk in stream for p in chunk.choices[0].delta.tool_calls or []]
    assert (pieces[0].function.name, len({piece.index for piece in pieces})) == ("heat", 1)
    assert json.loads("".join(piece.function.arguments for piece in pieces))["level"] in (1, 2, 3)


async def test_a_form_and_a_forced_call_exclude_each_other(tmp_path):
    form = {"type": "json_object"}
    async with client(tmp_path) as api:
        with pytest.raises(openai.BadRequestError, match="send one of the two") as caught:
            await api.chat.completions.create(**ASK, tool_choice="required", response_format=form)
    assert caught.value.param == "tool_choice"


async def test_a_form_leaves_no_room_for_reasoning(tmp_path):
    form = {
        "type": "json_schema",
        "json_schema": {"name": "level", "schema": LEVEL | {"additionalProperties": False}},
    }
    async with client(tmp_path, THINKS) as api:
        answer = (await api.chat.completions.create(**ASK, response_format=form)).choices[0]
    assert json.loads(answer.message.content)["level"] in (1, 2, 3)
    assert not hasattr(answer.message, "reasoning_content") and answer.finish_reason == "stop"


async def test_a_schema_that_cannot_be_kept_to_is_refused_and_harms_nobody(tmp_path):
    def tool(parameters):
        return [{"type": "function", "function": {"name": "f", "parameters": parameters}}]

    async with client(tmp_path) as api:
        for parameters in ({"type": "nonsense"}, {"type": "object", "description": "x" * 70_000}):
            with pytest.raises(openai.BadRequestError, match="tools"):
                await api.chat.completions.create(**(ASK | {"tools": tool(parameters)}), tool_choice="required")
        check((await api.chat.completions.create(**ASK, tool_choice="required")).choices[0].message.tool_calls[0])
