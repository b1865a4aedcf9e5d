"""The unmodified `openai` package against the running server."""

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from ocak.api import choices
from ocak.core.errors import GenerationFailed, ModelUnavailable, Overloaded, WorkerLost
from ocak.core.events import Delta, Finished, Started, Usage
from ocak.core.request import ChatPrompt, InfillPrompt, Message, TextPrompt, TokenPrompt
from ocak.providers.echo import EchoProvider
from tests.api.serving import Gate, Served, served_model, serving, serving_echo

HELLO = [{"role": "user", "content": "hello big world"}]


def client(served: Served, **more) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, **more)


async def test_a_chat_is_answered(served):
    async with client(served) as api:
        answer = await api.chat.completions.create(model="echo", messages=HELLO)
    assert answer.choices[0].message.content == "hello big world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 3
    assert answer.usage.total_tokens == 6
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("ocak-")


async def test_the_synchronous_client_works_too(served):
    def ask() -> tuple[str, str]:
        with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as api:
            whole = api.chat.completions.create(model="echo", messages=HELLO)
            stream = api.chat.completions.create(model="echo", messages=HELLO, stream=True)
            return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    assert await asyncio.to_thread(ask) == ("hello big world", "hello big world")


async def test_a_streamed_chat_begins_with_the_role_and_ends_with_the_reason(served):
    async with client(served) as api:
        stream = await api.chat.completions.create(model="echo", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert [d.content for d in deltas[1:-1]] == ["hello", " big", " world"]
    assert deltas[-1].content is None
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 4 + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


async def test_usage_comes_last_when_a_stream_asks_for_it(served):
    async with client(served) as api:
        stream = await api.chat.completions.create(
            model="echo", messages=HELLO, stream=True, stream_options={"include_usage": True}, max_tokens=2
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (3, 2)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "length"


async def test_words_reach_the_client_one_by_one():
    gate = Gate(3)
    async with serving_echo(EchoProvider(pause=gate)) as served, client(served) as api:
        stream = await api.completions.create(model="echo", prompt="one two three", stream=True)
        texts = [(await anext(stream)).choices[0].text, (await anext(stream)).choices[0].text]
        assert texts == ["one", " two"]
        gate.open()
        assert [chunk.choices[0].text async for chunk in stream] == [" three", ""]


async def test_a_completion_stops_after_sixteen_tokens_by_default(served):
    async with client(served) as api:
        answer = await api.completions.create(model="echo", prompt="word " * 20)
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"
    assert answer.id.startswith("cmpl-")


async def test_a_list_of_prompts_becomes_choices_in_order(served):
    async with client(served) as api:
        answer = await api.completions.create(model="echo", prompt=["a b", "c", "d e f"], n=2)
    assert [(c.index, c.text) for c in answer.choices] == list(
        enumerate(["a b", "a b", "c", "c", "d e f", "d e f"])
    )
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.completion_tokens == 12


async def test_a_streamed_list_of_prompts_keeps_its_choices_apart(served):
    prompts = [f"{name} one two" for name in "abcdefgh" * 8]
    texts = [""] * len(prompts)
    async with client(served) as api:
        async for chunk in await api.completions.create(model="echo", prompt=prompts, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == prompts


async def test_more_prompts_than_the_queue_holds_are_still_one_request():
    echo = EchoProvider()
    async with serving([served_model(echo, parallel=8, max_queued=24)]) as served, client(served) as api:
        answer = await api.completions.create(model="echo", prompt=["word"] * 200)
    assert len(answer.choices) == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_a_list_of_prompts_waits_for_its_turn_and_is_never_lost_halfway(monkeypatch, stream):
    monkeypatch.setattr(choices, "LONGEST_WAIT_S", 0.001)
    model = served_model(EchoProvider(), parallel=1, max_queued=1)
    prompts = [f"prompt {i}" for i in range(20)]
    texts = [""] * 20
    async with serving([model]) as served, client(served) as api:
        answer = await api.completions.create(model="echo", prompt=prompts, stream=stream)
        for choice in [c.choices[0] async for c in answer] if stream else answer.choices:
            texts[choice.index] += choice.text
    assert texts == prompts


async def test_prompts_of_token_ids(served):
    tokens = list(await served.echo.tokenize(TextPrompt("red green blue"), add_special=True))
    async with client(served) as api:
        one = await api.completions.create(model="echo", prompt=tokens)
        two = await api.completions.create(model="echo", prompt=[tokens[:1], tokens])
    assert one.choices[0].text == "red green blue"
    assert [choice.text for choice in two.choices] == ["red", "red green blue"]
    assert served.echo.requests[0].prompt == TokenPrompt(tuple(tokens))


async def test_echo_and_suffix(served):
    async with client(served) as api:
        echoed = await api.completions.create(model="echo", prompt="a b", echo=True, max_tokens=1)
        filled = await api.completions.create(model="echo", prompt="before", suffix="after")
    assert echoed.choices[0].text == "a ba"
    assert served.echo.requests[-1].prompt == InfillPrompt("before", "after")
    assert filled.choices[0].text == "before|after"


async def test_stop_strings_and_sampling_reach_the_provider(served):
    async with client(served) as api:
        answer = await api.completions.create(
            model="echo",
            prompt="one two three",
            stop=[" three"],
            temperature=0,
            top_p=0.5,
            seed=7,
            presence_penalty=1,
            frequency_penalty=-1,
            logit_bias={"5": -100},
            n=2,
            extra_body={"top_k": -1, "min_p": 0.1, "repeat_penalty": 1.1, "ignore_eos": True},
        )
    assert [choice.text for choice in answer.choices] == ["one two"] * 2
    first, second = (request.sampling for request in served.echo.requests)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0, 0.5, 0, 0.1)
    assert (first.presence_penalty, first.frequency_penalty, first.repetition_penalty) == (1, -1, 1.1)
    assert first.logit_bias == {5: -100}
    assert (first.seed, second.seed) == (7, 8)
    assert served.echo.requests[0].stopping.ignore_eos


async def test_messages_of_every_role(served):
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
    ]
    async with client(served) as api:
        await api.chat.completions.create(model="echo", messages=messages, max_completion_tokens=5)
    assert served.echo.requests[0].prompt == ChatPrompt(
        (
            Message("system", "rules"),
            Message("user", "ab"),
            Message("assistant", ""),
            Message("tool", "42", tool_call_id="x"),
        )
    )
    assert served.echo.requests[0].stopping.max_tokens == 5


async def test_models_are_listed_under_all_their_names(served):
    async with client(served) as api:
        names = [model.id async for model in api.models.list()]
        one = await api.models.retrieve("alias")
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("org/other")
    assert names == ["echo", "alias"]
    assert (one.id, one.owned_by, one.created) == ("alias", "ocak", 1)
    assert one.defaults["top_k"] == 40


async def test_an_answer_carries_the_name_that_was_asked_for(served):
    async with client(served) as api:
        answer = await api.completions.create(model="alias", prompt="x")
    assert answer.model == "alias"
    assert served.echo.requests[0].model == "echo"


async def test_the_request_id_is_the_callers(served):
    async with client(served) as api:
        raw = await api.completions.with_raw_response.create(
            model="echo", prompt="x", extra_headers={"x-request-id": "mine-1.2:3"}
        )
        odd = await api.completions.with_raw_response.create(
            model="echo", prompt="x", extra_headers={"x-request-id": "no spaces!"}
        )
    assert raw.headers["x-request-id"] == "mine-1.2:3"
    assert served.echo.requests[0].id == "mine-1.2:3"
    assert odd.headers["x-request-id"] == served.echo.requests[1].id != "no spaces!"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "kind", "retry_after"),
    [
        (Overloaded("full", retry_after_s=2.2), openai.RateLimitError, "3"),
        (ModelUnavailable("loading"), openai.InternalServerError, "5"),
        (WorkerLost("gone"), openai.InternalServerError, "1"),
        (GenerationFailed("no"), openai.InternalServerError, None),
    ],
)
async def test_a_failure_before_the_first_event_has_its_status(failure, kind, retry_after, stream):
    async with serving_echo(EchoProvider(fail_at=0, failure=failure)) as served, client(served) as api:
        with pytest.raises(kind) as caught:
            await api.completions.create(model="echo", prompt="x", stream=stream)
    assert caught.value.code == failure.code
    assert caught.value.response.headers.get("retry-after") == retry_after
    assert caught.value.response.headers["x-request-id"]


async def test_a_failure_after_the_first_word_comes_in_the_stream():
    echo = EchoProvider(fail_at=3, failure=WorkerLost("the worker ended"))
    async with serving_echo(echo) as served, client(served) as api:
        texts = []
        with pytest.raises(openai.APIError, match="the worker ended") as caught:
            async for chunk in await api.completions.create(model="echo", prompt="a b c", stream=True):
                texts.append(chunk.choices[0].text)
    assert texts == ["a", " b"]
    assert caught.value.code == "worker_lost"


async def test_an_answer_without_an_end_is_never_taken_for_whole():
    class Breaks(EchoProvider):
        async def _answer(self, request):
            if request.prompt != TextPrompt("nothing"):
                yield Started(1)
                yield Delta("a", 1)

    async with serving_echo(Breaks()) as served, client(served) as api:
        with pytest.raises(openai.APIError, match="without its end") as caught:
            async for _ in await api.completions.create(model="echo", prompt="x", stream=True):
                pass
        assert caught.value.code == "worker_lost"
        for prompt, stream in (("x", False), ("nothing", True), ("nothing", False)):
            with pytest.raises(openai.InternalServerError, match="without its end"):
                await api.completions.create(model="echo", prompt=prompt, stream=stream)


async def test_an_unforeseen_error_shows_nothing_of_itself(caplog):
    echo = EchoProvider(fail_at=1, failure=RuntimeError("secret path /etc"))
    async with serving_echo(echo) as served, client(served) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.completions.create(model="echo", prompt="a b c")
        with pytest.raises(openai.APIError, match="internal error") as streamed:
            async for _ in await api.completions.create(model="echo", prompt="a", stream=True):
                pass
    assert "secret" not in str(caught.value) + str(streamed.value)
    assert caught.value.response.headers["x-request-id"] in caught.value.message
    assert "secret" in caplog.text


async def test_one_failing_prompt_ends_the_others():
    gate = Gate(2)

    class OneFails(EchoProvider):
        async def stream(self, request):
            if request.prompt == TextPrompt("bad"):
                await gate.reached()
                raise GenerationFailed("bad prompt")
            async for event in super().stream(request):
                yield event

    async with serving_echo(OneFails(pause=gate)) as served, client(served) as api:
        with pytest.raises(openai.InternalServerError, match="bad prompt"):
            await api.completions.create(model="echo", prompt=["good one", "bad"])
    assert gate.was_cancelled.is_set()


async def test_a_full_queue_refuses_at_once():
    gate = Gate(0)
    model = served_model(EchoProvider(pause=gate), parallel=1, max_queued=0)
    async with serving([model]) as served, client(served) as api:
        first = asyncio.create_task(api.completions.create(model="echo", prompt="x"))
        await gate.reached()
        with pytest.raises(openai.RateLimitError) as caught:
            await api.completions.create(model="echo", prompt="x")
        gate.open()
        assert (await first).choices[0].text == "x"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_a_key_is_asked_for():
    async with serving_echo(keys=["right-key"]) as served:
        async with client(served) as api:
            with pytest.raises(openai.AuthenticationError):
                await api.models.list()
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="right-key") as api:
            await api.completions.create(model="echo", prompt="x")
        async with served.http.get("/v1/models", headers={"x-api-key": "right-key"}) as answer:
            assert answer.status == 200
    assert served.echo.requests[0].tenant not in ("public", "right-key")


async def test_dropped_and_cached_tokens_are_told():
    class Shifting(EchoProvider):
        async def _answer(self, request):
            yield Started(100)
            yield Finished("stop", Usage(100, 1, cached_tokens=30, dropped_tokens=20))

    async with serving_echo(Shifting()) as served, client(served) as api:
        raw = await api.completions.with_raw_response.create(model="echo", prompt="x", n=2)
    details = raw.parse().usage.prompt_tokens_details
    assert (details.cached_tokens, details.dropped_tokens) == (30, 20)
    assert raw.parse().usage.prompt_tokens == 100
    assert raw.headers["x-ocak-dropped-tokens"] == "20"
