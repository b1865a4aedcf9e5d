"""Log-probabilities as the unmodified `openai` package reads them: chats and completions, streamed and not."""

import pytest

from ocak.core.events import Delta, Finished, LikelyToken, Started, TokenLogprob, Usage
from ocak.providers.echo import EchoProvider
from tests.api.serving import serving_echo
from tests.api.test_openai_client import HELLO, client

WORDS = ["hello", " big", " world"]


class Spelling(EchoProvider):
    """Answers `ö<end>é`, with characters in parts and a special token in the middle."""

    async def _answer(self, request):
        yield Started(1)
        whole = LikelyToken("ö".encode(), -0.5)
        first, second = LikelyToken(b"\xc3", -1.0), LikelyToken(b"\xa9", -2.0)
        end = LikelyToken(b"", -3.0, "<end>")
        yield Delta("ö", 1, (TokenLogprob(whole, 0, (whole, end, first)),))
        likeliest = (LikelyToken(b"a", -0.1), LikelyToken(b"b", -0.2), LikelyToken(b"c", -0.3))
        held = (TokenLogprob(end, 1, likeliest), TokenLogprob(first, 1, likeliest), TokenLogprob(second, 1, ()))
        yield Delta("é", 3, held)
        yield Finished("stop", Usage(1, 4))


async def test_a_chat_tells_each_token(served):
    async with client(served) as api:
        answer = await api.chat.completions.create(
            model="echo", messages=HELLO, logprobs=True, top_logprobs=2, n=2
        )
    for choice in answer.choices:
        content = choice.logprobs.content
        assert [token.token for token in content] == WORDS
        assert [bytes(token.bytes).decode() for token in content] == WORDS
        assert all(token.logprob == 0.0 for token in content)
        assert [[t.token for t in token.top_logprobs] for token in content] == [[word] for word in WORDS]
    assert served.echo.requests[0].logprobs == 2


async def test_a_streamed_chat_tells_each_token_with_its_text(served):
    async with client(served) as api:
        stream = await api.chat.completions.create(model="echo", messages=HELLO, logprobs=True, stream=True)
        choices = [chunk.choices[0] async for chunk in stream]
    for choice in choices[1:-1]:
        (token,) = choice.logprobs.content
        assert (token.token, token.top_logprobs) == (choice.delta.content, [])
    assert choices[0].logprobs is choices[-1].logprobs is None
    assert len(choices) == 5


async def test_completions_tell_each_token_of_every_choice(served):
    async with client(served) as api:
        answer = await api.completions.create(model="echo", prompt=["a bc", "d"], n=2, logprobs=5)
    assert len(answer.choices) == 4
    for choice in answer.choices:
        told = choice.logprobs
        assert "".join(told.tokens) == choice.text
        assert [
            choice.text[at:][: len(t)] for at, t in zip(told.text_offset, told.tokens, strict=True)
        ] == told.tokens
        assert told.token_logprobs == [0.0] * len(told.tokens)
        assert told.top_logprobs == [{token: 0.0} for token in told.tokens]


async def test_streamed_completions_go_on_counting_characters(served):
    async with client(served) as api:
        stream = await api.completions.create(model="echo", prompt="a bc d", logprobs=0, stream=True)
        told = [choice.logprobs for choice in [chunk.choices[0] async for chunk in stream] if choice.logprobs]
    assert [t.tokens for t in told] == [["a"], [" bc"], [" d"]]
    assert [t.text_offset for t in told] == [[0], [1], [4]]
    assert [t.top_logprobs for t in told] == [[{"a": 0.0}], [{" bc": 0.0}], [{" d": 0.0}]]


@pytest.mark.parametrize("stream", [False, True])
async def test_parts_of_characters_are_shown_by_their_bytes_and_special_tokens_by_name(stream):
    async with serving_echo(Spelling()) as served, client(served) as api:
        answer = await api.chat.completions.create(
            model="echo", messages=HELLO, logprobs=True, top_logprobs=3, stream=stream
        )
        choices = [c.choices[0] async for c in answer] if stream else answer.choices
    content = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert [token.token for token in content] == ["ö", "<end>", "\\xc3", "\\xa9"]
    assert [token.bytes for token in content] == [[0xC3, 0xB6], None, [0xC3], [0xA9]]
    assert [token.logprob for token in content] == [-0.5, -3.0, -1.0, -2.0]
    assert [(top.token, top.bytes, top.logprob) for top in content[0].top_logprobs] == [
        ("ö", [0xC3, 0xB6], -0.5),
        ("<end>", None, -3.0),
        ("\\xc3", [0xC3], -1.0),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_lists_the_token_itself_beside_the_likeliest(stream):
    async with serving_echo(Spelling()) as served, client(served) as api:
        answer = await api.completions.create(model="echo", prompt="x", logprobs=3, stream=stream)
        choices = [c.choices[0] async for c in answer] if stream else answer.choices
    told = [choice.logprobs for choice in choices if choice.logprobs]
    assert sum([t.tokens for t in told], []) == ["ö", "<end>", "bytes:\\xc3", "bytes:\\xa9"]
    assert sum([t.text_offset for t in told], []) == [0, 1, 1, 1]
    tops = sum([t.top_logprobs for t in told], [])
    assert tops[0] == {"ö": -0.5, "<end>": -3.0, "bytes:\\xc3": -1.0}
    assert tops[1] == {"a": -0.1, "b": -0.2, "c": -0.3, "<end>": -3.0}
    assert tops[3] == {"bytes:\\xa9": -2.0}


async def test_who_does_not_ask_is_told_nothing(served):
    async with client(served) as api:
        chat = await api.chat.completions.create(model="echo", messages=HELLO, logprobs=False)
        completion = await api.completions.create(model="echo", prompt="x")
    assert chat.choices[0].logprobs is completion.choices[0].logprobs is None
    assert served.echo.requests[0].logprobs is served.echo.requests[1].logprobs is None


async def test_an_answer_without_tokens_has_an_empty_list():
    class Silent(EchoProvider):
        async def _answer(self, request):
            yield Started(1)
            yield Finished("stop", Usage(1, 1))

    async with serving_echo(Silent()) as served, client(served) as api:
        chat = await api.chat.completions.create(model="echo", messages=HELLO, logprobs=True)
        completion = await api.completions.create(model="echo", prompt="x", logprobs=1)
    assert chat.choices[0].logprobs.content == []
    assert completion.choices[0].logprobs.tokens == []
