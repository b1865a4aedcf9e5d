"""From a body's bytes to ocak's requests: whatever comes in, a request or an `InvalidRequest` comes out."""

import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocak.api.json_body import decode
from ocak.api.openai_requests import Origin, chat_requests, completion_requests
from ocak.api.openai_wire import ChatBody, CompletionBody
from ocak.api.samplers_wire import LISTS, NUMBERS
from ocak.api.unsupported import HARMLESS, REFUSED, check_others, ignored_header
from ocak.core.errors import InvalidRequest
from ocak.core.limits import SAMPLING_RANGES, check_sampling, check_stopping
from ocak.core.request import GenerateRequest, Sampling, TextPrompt, TokenPrompt

ORIGIN = Origin("id", "model", "tenant")


def completions(data: bytes | dict) -> list[GenerateRequest]:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    body, others = decode(raw, CompletionBody)
    check_others(others)
    return completion_requests(body, ORIGIN)


def chats(data: dict) -> list[GenerateRequest]:
    body, others = decode(json.dumps(data).encode(), ChatBody)
    check_others(others)
    return chat_requests(body, ORIGIN)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
names = st.sampled_from([*CompletionBody.__struct_fields__, *ChatBody.__struct_fields__, *REFUSED, *HARMLESS])
bodies = st.dictionaries(names | st.text(), anything, max_size=6)


@given(bodies)
@example({"prompt": "x", "seed": 10**400})
def test_any_completion_is_translated_or_refused(body):
    check_translated(completions, {"prompt": "x"} | body)


@given(bodies)
def test_any_chat_is_translated_or_refused(body):
    check_translated(chats, {"messages": [{"role": "user", "content": "x"}]} | body)


@given(st.binary(max_size=200))
def test_any_bytes_are_translated_or_refused(data):
    check_translated(completions, data)


def check_translated(translate, body) -> None:
    try:
        requests = translate(body)
        for request in requests:
            check_sampling(request.sampling)
            check_stopping(request.stopping)
    except InvalidRequest as error:
        error.message.encode("utf-8", "surrogatepass")
        return
    for request in requests:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=GenerateRequest) == request


@given(st.text(min_size=1))
def test_text_arrives_as_it_was_sent(text):
    assert completions({"prompt": text})[0].prompt == TextPrompt(text)


@given(
    st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(1, 3),
)
def test_choices_are_in_the_order_of_their_prompts(prompts, n):
    requests = completions({"prompt": prompts, "n": n})
    assert [request.prompt.tokens for request in requests] == [tuple(p) for p in prompts for _ in range(n)]


def test_brackets_in_a_prompt_of_tokens_may_stand_apart():
    assert completions(b'{"prompt": [ \n [1, 2], [3]]}')[0].prompt == TokenPrompt((1, 2))


def test_silence_means_the_defaults():
    (request,) = completions({"prompt": "x"})
    assert request.sampling == Sampling()
    assert request.stopping.max_tokens == 16
    (chat,) = chats({"messages": [{"role": "user", "content": "x"}]})
    assert chat.stopping.max_tokens is None
    assert (chat.id, chat.model, chat.tenant) == ("id", "model", "tenant")


def test_null_is_silence():
    nothing = dict.fromkeys(set(CompletionBody.__struct_fields__) - {"prompt"})
    assert completions({"prompt": "x"} | nothing) == completions({"prompt": "x"})


def test_a_zero_is_not_silence():
    body = {"prompt": "x", "temperature": 0, "top_k": 0, "top_p": 0, "min_p": 0, "seed": 0}
    sampling = completions(body)[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, sampling.seed) == (0, 0, 0, 0, 0)


def test_samplers_and_token_rules_arrive_as_sent():
    body = {
        "typical_p": 0.5,
        "mirostat": 2,
        "samplers": ["Top-K", "typical_p", "temp", "xtc"],
        "repeat_last_n": 9,
        "dry_sequence_breakers": [],
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "min_tokens": 3,
        "stop_token_ids": [4],
    }
    (request,) = completions({"prompt": "x"} | body)
    assert request.sampling == Sampling(
        typical_p=0.5,
        mirostat=2,
        samplers=("top_k", "typ_p", "temperature", "xtc"),
        penalty_window=9,
        dry_sequence_breakers=(),
        allowed_token_ids=(1, 2),
        bad_words=("no",),
    )
    assert (request.stopping.min_tokens, request.stopping.stop_token_ids) == (3, (4,))


def test_every_sampler_has_a_field_and_a_range():
    assert set(NUMBERS) <= set(SAMPLING_RANGES)
    assert {"penalty_window", *NUMBERS, *LISTS, "samplers"} <= set(Sampling.__struct_fields__)
    assert not {"min_tokens", "stop_token_ids", "typical_p"} & set(REFUSED)


def test_seeds_wrap_around():
    requests = completions({"prompt": "x", "n": 2, "seed": 2**32 - 1})
    assert [request.sampling.seed for request in requests] == [2**32 - 1, 0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"prompt": "\\ud83d"}', "lone surrogate"),
        (b'{"prompt": ["\\udc00"]}', "lone surrogate"),
        (b'{"prompt": "\xff"}', "UTF-8"),
        (b'{"prompt"', "not valid JSON"),
        (b'{"prompt": "x", "prompt": "x"}', "twice"),
        (b'{"prompt": ["x", 2.5]}', "prompt[1]"),
    ],
)
def test_a_refusal_says_what_is_wrong(data, words):
    with pytest.raises(InvalidRequest) as caught:
        completions(data)
    assert words in caught.value.message


@given(st.lists(st.text()))
def test_the_header_of_ignored_fields_is_plain_and_short(ignored):
    for _, value in ignored_header(tuple(ignored)):
        assert len(value) < 1200
        assert all(32 <= byte < 127 for byte in value)
