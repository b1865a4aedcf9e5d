"""Log-probabilities of the prompt: vLLM's field, and OpenAI's echo with logprobs, by the real `openai` package."""

import pytest
from openai import BadRequestError

from ocak.core.errors import WorkerLost
from ocak.core.events import PromptScored
from ocak.providers.echo import EchoProvider
from tests.api.serving import serving_echo
from tests.api.test_openai_client import HELLO, client


async def test_a_completion_tells_each_token_of_its_prompt_as_vllm_does(served):
    async with client(served) as api:
        answer = await api.completions.create(
            model="echo", prompt=["a bc", "d"], n=2, extra_body={"prompt_logprobs": 1}
        )
    assert len(answer.choices) == 4
    told = [choice.model_dump()["prompt_logprobs"] for choice in answer.choices]
    assert told[0] == told[1] == [None, {"1": {"logprob": 0.0, "rank": 1, "decoded_token": " bc"}}]
    assert told[2] == told[3] == [None]
    assert all(choice.logprobs is None for choice in answer.choices)


async def test_a_chat_tells_them_in_its_choice_and_where_vllm_does(served):
    async with client(served) as api:
        answer = await api.chat.completions.create(
            model="echo", messages=HELLO, extra_body={"prompt_logprobs": 0}, max_tokens=1
        )
    told = answer.model_dump()
    assert told["prompt_logprobs"] == told["choices"][0]["prompt_logprobs"]
    assert [None if one is None else [*one.values()][0]["decoded_token"] for one in told["prompt_logprobs"]] == [
        None,
        " big",
        " world",
    ]


async def test_an_echo_with_logprobs_begins_with_the_prompts(served):
    async with client(served) as api:
        answer = await api.completions.create(model="echo", prompt="a bc", echo=True, logprobs=1, n=2)
    for choice in answer.choices:
        assert choice.text == "a bca bc"
        assert choice.logprobs.tokens == ["a", " bc", "a", " bc"]
        assert choice.logprobs.token_logprobs == [None, 0.0, 0.0, 0.0]
        assert choice.logprobs.top_logprobs == [None, {" bc": 0.0}, {"a": 0.0}, {" bc": 0.0}]
        assert choice.logprobs.text_offset == [0, 1, 4, 5]
        assert "prompt_logprobs" not in choice.model_dump()


async def test_a_streamed_echo_tells_the_prompts_with_its_text(served):
    async with client(served) as api:
        stream = await api.completions.create(
            model="echo", prompt=["a bc", "d e"], echo=True, logprobs=0, stream=True
        )
        chunks = [chunk.choices[0] async for chunk in stream]
    for index, (first, second) in enumerate([("a", " bc"), ("d", " e")]):
        mine = [chunk for chunk in chunks if chunk.index == index and chunk.logprobs]
        assert mine[0].text == first + second and mine[0].logprobs.token_logprobs == [None, 0.0]
        assert [token for chunk in mine for token in chunk.logprobs.tokens] == [first, second] * 2
        assert [at for chunk in mine for at in chunk.logprobs.text_offset][2] == len(first + second)


async def test_both_ways_at_once_tell_as_many_as_each_asks_for(served):
    async with client(served) as api:
        answer = await api.completions.create(
            model="echo", prompt="a b", echo=True, logprobs=0, extra_body={"prompt_logprobs": 2}
        )
    assert served.echo.requests[0].prompt_logprobs == 2
    told = answer.choices[0].model_dump()
    assert told["prompt_logprobs"][0] is None and told["logprobs"]["top_logprobs"][1] == {" b": 0.0}


async def test_who_does_not_ask_is_told_nothing(served):
    async with client(served) as api:
        chat = await api.chat.completions.create(model="echo", messages=HELLO)
        completion = await api.completions.create(model="echo", prompt="x", logprobs=1)
    assert "prompt_logprobs" not in chat.model_dump() and "prompt_logprobs" not in chat.choices[0].model_dump()
    assert "prompt_logprobs" not in completion.choices[0].model_dump()
    assert all(request.prompt_logprobs is None for request in served.echo.requests)


async def test_a_stream_cannot_tell_them_and_says_what_can(served):
    async with client(served) as api:
        with pytest.raises(BadRequestError, match="leave stream out, or send echo with logprobs"):
            await api.completions.create(model="echo", prompt="x", stream=True, extra_body={"prompt_logprobs": 1})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_computed_anew_after_a_lost_worker_is_told_once(stream):
    class Dying(EchoProvider):
        async def _answer(self, request):
            async for event in super()._answer(request):
                yield event
                if type(event) is PromptScored and self.num_requests == 1:
                    raise WorkerLost("it ended")

    async with serving_echo(Dying()) as served, client(served) as api:
        answer = await api.completions.create(model="echo", prompt="a b", echo=True, logprobs=0, stream=stream)
        choices = [chunk.choices[0] async for chunk in answer] if stream else answer.choices
    told = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
    assert served.echo.num_requests == 2 and told == ["a", " b", "a", " b"]
