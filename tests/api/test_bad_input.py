"""Bad input gets a clear error with the right status, and harms nobody."""

import gzip
import io
import json

import pytest

from ocak.api.connection import MAX_HEAD_BYTES
from ocak.api.http import HttpOptions
from tests.api.serving import raw, serving, serving_echo

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"
USER = {"role": "user", "content": "hi"}
ARGUMENTS = "messages[0].tool_calls[0].function.arguments"
BAD_ARGUMENTS = ("[]", "nothing", "{", '{"a": 1} x', 5, '{"a": "\\ud800"}')


def called(arguments):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def tool(name, **more):
    return {"type": "function", "function": {"name": name} | more}


def named(name):
    return {"type": "function", "function": {"name": name}}


(CALL,) = called("{}")["tool_calls"]
F = tool("f")


async def post(served, path, body, **more):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with served.http.post(path, data=io.BytesIO(data), **more) as answer:
        return answer.status, await answer.json(), answer.headers


BAD_JSON = {
    "empty": b"",
    "not json": b"hello",
    "truncated": b'{"prompt": "x"',
    "trailing": b'{"prompt": "x"} x',
    "an array": b"[]",
    "a string": b'"x"',
    "not utf-8": b'{"prompt": "\xff\xfe"}',
    "a mark of byte order": b'\xef\xbb\xbf{"prompt": "x"}',
    "NaN": b'{"prompt": "x", "temperature": NaN}',
    "infinity": b'{"prompt": "x", "temperature": Infinity}',
    "too large a float": b'{"prompt": "x", "temperature": 1e999}',
    "a very long integer": b'{"prompt": "x", "seed": ' + b"9" * 100_000 + b"}",
    "nested deeply": b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "nested deeply, unknown": b'{"prompt": "x", "z": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "a name twice": b'{"prompt": "x", "prompt": "y"}',
    "an unknown name twice": b'{"prompt": "x", "z": 1, "z": 2}',
    "too many names": json.dumps({"prompt": "x"} | {f"z{i}": i for i in range(10_000)}).encode(),
    "a lone high surrogate": b'{"prompt": "a\\ud800b"}',
    "a lone low surrogate": b'{"prompt": "a\\udc00b"}',
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_bad_json_is_a_400(served, body):
    status, answer, _ = await post(served, COMPLETIONS, body)
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert not served.echo.requests
    assert (await post(served, COMPLETIONS, {"prompt": "still here"}))[0] == 200


BAD_COMPLETIONS = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": ["a", ""]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [[1], "a"]}, "prompt[1]"),
    ({"prompt": [1.5]}, "prompt[0]"),
    ({"prompt": [True]}, "prompt[0]"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [2**31]}, "prompt"),
    ({"prompt": [10**30]}, "prompt"),
    ({"prompt": {"text": "x"}}, "prompt"),
    ({"prompt": ["x"] * 1025}, "prompt"),
    ({"prompt": [[1]] * 1025}, "prompt"),
    ({"prompt": "x", "max_tokens": "5"}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 2**31}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 10**40}, "max_tokens"),
    ({"prompt": "x", "max_tokens": True}, "max_tokens"),
    ({"prompt": "x", "temperature": -0.1}, "temperature"),
    ({"prompt": "x", "temperature": 1e300}, "temperature"),
    ({"prompt": "x", "temperature": "hot"}, "temperature"),
    ({"prompt": "x", "top_p": 1.1}, "top_p"),
    ({"prompt": "x", "top_k": -2}, "top_k"),
    ({"prompt": "x", "priority": 1001}, "priority"),
    ({"prompt": "x", "cache_salt": "s" * 257}, "cache_salt"),
    ({"prompt": "x", "seed": -1}, "seed"),
    ({"prompt": "x", "seed": 2**64}, "seed"),
    ({"prompt": "x", "n": 0}, "n"),
    ({"prompt": "x", "n": 17}, "n"),
    ({"prompt": "x", "stop": [""]}, "stop"),
    ({"prompt": "x", "stop": ["a"] * 17}, "stop"),
    ({"prompt": "x", "stop": 5}, "stop"),
    ({"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias"),
    ({"prompt": "x", "logit_bias": {"1": 101}}, "logit_bias"),
    ({"prompt": "x", "logit_bias": {"-1": 1}}, "logit_bias"),
    ({"prompt": "x", "logit_bias": {"9" * 30: 1}}, "logit_bias"),
    ({"prompt": "x", "typical_p": 1.1}, "typical_p"),
    ({"prompt": "x", "top_n_sigma": 1e300}, "top_n_sigma"),
    ({"prompt": "x", "xtc_probability": -0.1}, "xtc_probability"),
    ({"prompt": "x", "dry_base": 0.5}, "dry_base"),
    ({"prompt": "x", "dry_allowed_length": 1.5}, "dry_allowed_length"),
    ({"prompt": "x", "dry_penalty_last_n": 2**31}, "dry_penalty_last_n"),
    ({"prompt": "x", "dry_sequence_breakers": [""]}, "dry_sequence_breakers"),
    ({"prompt": "x", "dry_sequence_breakers": ["a\0"]}, "dry_sequence_breakers"),
    ({"prompt": "x", "dry_sequence_breakers": "\n"}, "dry_sequence_breakers"),
    ({"prompt": "x", "mirostat": 3}, "mirostat"),
    ({"prompt": "x", "mirostat": True}, "mirostat"),
    ({"prompt": "x", "mirostat_tau": 1e9}, "mirostat_tau"),
    ({"prompt": "x", "adaptive_decay": 1}, "adaptive_decay"),
    ({"prompt": "x", "samplers": ["top_k", "magic"]}, "samplers"),
    ({"prompt": "x", "samplers": ["top_k"] * 17}, "samplers"),
    ({"prompt": "x", "samplers": [1]}, "samplers[0]"),
    ({"prompt": "x", "allowed_token_ids": []}, "allowed_token_ids"),
    ({"prompt": "x", "allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"prompt": "x", "allowed_token_ids": [10**30]}, "allowed_token_ids[0]"),
    ({"prompt": "x", "bad_words": [""]}, "bad_words"),
    ({"prompt": "x", "bad_words": ["x"] * 129}, "bad_words"),
    ({"prompt": "x", "min_tokens": -1}, "min_tokens"),
    ({"prompt": "x", "min_tokens": 17}, "min_tokens"),
    ({"prompt": "x", "stop_token_ids": [2**31]}, "stop_token_ids"),
    ({"prompt": "x", "stop_token_ids": [1] * 1025}, "stop_token_ids"),
    ({"prompt": "x", "stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"prompt": "x", "stream": "yes"}, "stream"),
    ({"prompt": "x", "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"prompt": [1], "suffix": "x"}, "suffix"),
    ({"prompt": "x", "suffix": "x", "echo": True}, "suffix"),
    ({"prompt": "x", "best_of": 0}, "best_of"),
    ({"prompt": "x", "best_of": 17}, "best_of"),
    ({"prompt": "x", "best_of": 2, "n": 3}, "best_of"),
    ({"prompt": "x", "best_of": 2, "stream": True}, "best_of"),
    ({"prompt": "x", "best_of": "2"}, "best_of"),
    ({"prompt": "x", "model": "m" * 257}, "model"),
    ({"prompt": "x", "model": 5}, "model"),
    ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ({"prompt": "x", "logprobs": -1}, "logprobs"),
    ({"prompt": "x", "logprobs": True}, "logprobs"),
    ({"prompt": "x", "logprobs": "1"}, "logprobs"),
    ({"prompt": "x", "logprobs": 1.5}, "logprobs"),
    ({"prompt": "x", "top_logprobs": 3}, "top_logprobs"),
    ({"prompt": "x", "prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt": "x", "prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt": "x", "prompt_logprobs": True}, "prompt_logprobs"),
    ({"prompt": "x", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"prompt": "x", "lora": "absent"}, "lora"),
    ({"prompt": "x", "lora": "a" * 65}, "lora"),
    ({"prompt": "x", "lora": 1}, "lora"),
    ({"prompt": "x", "chat_template": "{{ 1 }}"}, "chat_template"),
]


@pytest.mark.parametrize(("body", "param"), BAD_COMPLETIONS, ids=lambda value: str(value)[:60])
async def test_a_bad_completion_names_its_field(served, body, param):
    status, answer, _ = await post(served, COMPLETIONS, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert answer["error"]["message"]
    assert not served.echo.requests


BAD_CHATS = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{"role": "assistant", "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL] * 129}]}, "messages[0].tool_calls"),
    *(({"messages": [called(arguments)]}, ARGUMENTS) for arguments in BAD_ARGUMENTS),
    ({"messages": [USER], "tools": [{"type": "function"}]}, "tools[0].function"),
    ({"messages": [USER], "tools": [{"type": "retrieval", "function": {}}]}, "tools[0].type"),
    ({"messages": [USER], "tools": {}}, "tools"),
    ({"messages": [USER], "tools": [tool(5)]}, "tools[0].function.name"),
    ({"messages": [USER], "tools": [tool("")]}, "tools[0].function.name"),
    ({"messages": [USER], "tools": [tool("f"), tool("a b")]}, "tools[1].function.name"),
    ({"messages": [USER], "tools": [tool("f" * 129)]}, "tools[0].function.name"),
    ({"messages": [USER], "tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
    ({"messages": [USER], "tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
    ({"messages": [USER], "tools": [tool("f", description="x" * 1_100_000)]}, "tools"),
    ({"messages": [USER], "tools": [tool("f", description=1)]}, "tools[0].function.description"),
    ({"messages": [USER], "tools": [tool("f", parameters=[])]}, "tools[0].function.parameters"),
    ({"messages": [USER], "tools": [F], "tool_choice": "any"}, "tool_choice"),
    ({"messages": [USER], "tools": [F], "tool_choice": 5}, "tool_choice"),
    ({"messages": [USER], "tools": [F], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"messages": [USER], "tools": [F], "tool_choice": named("g")}, "tool_choice"),
    ({"messages": [USER], "tools": [F], "tool_choice": named(5)}, "tool_choice.function.name"),
    ({"messages": [USER], "tool_choice": named("f")}, "tool_choice"),
    ({"messages": [USER], "tools": [F], "parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"messages": [USER], "include_reasoning": "no"}, "include_reasoning"),
    ({"messages": [USER], "function_call": {"name": "f"}}, "function_call"),
    ({"messages": [USER], "tool_choice": "required"}, "tool_choice"),
    ({"messages": [USER], "functions": [{}]}, "functions"),
    ({"messages": [USER], "response_format": {"type": "xml"}}, "response_format.type"),
    ({"messages": [USER], "logprobs": 1}, "logprobs"),
    ({"messages": [USER], "logprobs": "yes"}, "logprobs"),
    ({"messages": [USER], "top_logprobs": 3}, "top_logprobs"),
    ({"messages": [USER], "logprobs": False, "top_logprobs": 3}, "top_logprobs"),
    ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": [USER], "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"messages": [USER], "top_logprobs": -1}, "top_logprobs"),
    ({"messages": [USER], "logprobs": True, "top_logprobs": True}, "top_logprobs"),
    ({"messages": [USER], "logprobs": True, "top_logprobs": 2.5}, "top_logprobs"),
    ({"messages": [USER], "modalities": ["text", "audio"]}, "modalities"),
    ({"messages": [USER], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    ({"messages": [USER], "documents": [{}]}, "documents"),
]


@pytest.mark.parametrize(("body", "param"), BAD_CHATS, ids=lambda value: str(value)[:60])
async def test_a_bad_chat_names_its_field(served, body, param):
    status, answer, _ = await post(served, CHAT, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert not served.echo.requests


async def test_a_known_field_that_is_not_served_has_a_code_of_its_own(served):
    _, answer, _ = await post(served, CHAT, {"messages": [USER], "functions": [{}]})
    assert answer["error"]["code"] == "unsupported_parameter"
    assert "send tools" in answer["error"]["message"]


async def test_neutral_values_of_fields_that_are_not_served_are_accepted(served):
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logprobs": False,
        "top_logprobs": 0,
        "modalities": ["text"],
        "chat_template_kwargs": {},
        "best_of": 1,
        "n": None,
        "temperature": None,
        "stop": None,
        "user": "me",
    }
    status, _, headers = await post(served, CHAT, {"messages": [USER], **neutral})
    assert status == 200
    assert "x-ocak-ignored-fields" not in headers


async def test_unknown_fields_are_ignored_and_named(served):
    body = {"prompt": "x", "foo": 1, "b\r\nad: x": 2, "ü" * 100: 3} | {f"z{i}": i for i in range(20)}
    status, _, headers = await post(served, COMPLETIONS, body)
    ignored = headers["x-ocak-ignored-fields"].split(", ")
    assert status == 200
    assert ignored[:2] == ["foo", "b??ad??x"]
    assert ignored[-1] == "and 7 more"
    status, _, headers = await post(served, COMPLETIONS, {"prompt": "x", "stream_options": {"foo": 1}})
    assert status == 200


async def test_a_nul_is_text_like_any_other(served):
    status, answer, _ = await post(served, COMPLETIONS, {"prompt": "a\0b"})
    assert (status, answer["choices"][0]["text"]) == (200, "a\0b")


async def test_an_unknown_model_is_a_404_that_names_the_nearest(served):
    status, answer, _ = await post(served, COMPLETIONS, {"prompt": "x", "model": "ecko"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
    assert "'echo'" in answer["error"]["message"]


async def test_no_models_at_all_is_a_404_too():
    async with serving([]) as served:
        status, _, _ = await post(served, COMPLETIONS, {"prompt": "x", "model": "any"})
        assert status == 404


async def test_a_prompt_longer_than_the_context_is_a_400(served):
    for stream in (False, True):
        status, answer, _ = await post(served, COMPLETIONS, {"prompt": "w " * 5000, "stream": stream})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_body_over_the_limit_is_a_413_and_the_connection_stays(served):
    body = {"prompt": "x" * 10_000_000}
    status, answer, _ = await post(served, COMPLETIONS, body)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert (await post(served, COMPLETIONS, {"prompt": "x"}))[0] == 200


async def test_a_chunked_body_over_the_limit_is_a_413():
    async def pieces():
        for _ in range(100):
            yield b"x" * 1000

    async with serving_echo(options=HttpOptions(max_body_bytes=50_000)) as served:
        async with served.http.post(COMPLETIONS, data=pieces()) as answer:
            assert answer.status == 413
        assert (await post(served, COMPLETIONS, {"prompt": "x"}))[0] == 200


async def test_a_large_body_within_the_limit_is_read_whole(served):
    status, answer, _ = await post(served, COMPLETIONS, {"prompt": "x" * 5_000_000})
    assert (status, len(answer["choices"][0]["text"])) == (200, 5_000_000)


async def test_a_body_that_does_not_come_is_a_408():
    async with serving_echo(options=HttpOptions(body_idle_s=0.02)) as served:
        status, _ = await raw(served, HEAD + b"content-length: 5\r\n\r\n{")
        assert status == 408


async def test_a_compressed_body_is_a_415(served):
    data = gzip.compress(b'{"prompt": "x"}')
    status, answer, _ = await post(served, COMPLETIONS, data, headers={"content-encoding": "gzip"})
    assert (status, answer["error"]["code"]) == (415, "unsupported_encoding")


async def test_any_content_type_is_read_as_json(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        status, _, _ = await post(served, COMPLETIONS, {"prompt": "x"}, headers={"content-type": kind})
        assert status == 200


async def test_unknown_paths_and_methods(served):
    async with served.http.get("/v1/nothing") as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "path_not_found")
    async with served.http.get(COMPLETIONS) as answer:
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert answer.headers["x-request-id"]
    async with served.http.post("/v1/models") as answer:
        assert answer.status == 405


async def test_a_head_over_the_limit_is_a_431(served):
    head = b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: " + b"y" * (MAX_HEAD_BYTES + 1)
    status, answer = await raw(served, head)
    assert (status, answer["error"]["code"]) == (431, "head_too_large")


async def test_a_client_that_waits_to_send_hears_the_refusal_first(served):
    status, _ = await raw(served, HEAD + b"content-length: 99999999\r\nexpect: 100-continue\r\n\r\n")
    assert status == 413


GARBAGE = {
    "noise": b"\x00\x01\x02\xff\xfe\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "a length and chunks": HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a negative length": HEAD + b"content-length: -1\r\n\r\n",
    "a huge length": HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
    "a bad chunk": HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    "bytes in the path": b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
async def test_what_is_not_http_gets_an_answer_and_harms_nobody(served, data):
    status, answer = await raw(served, data)
    assert (400 <= status < 500, answer["error"]["param"]) == (True, None)
    assert (await post(served, COMPLETIONS, {"prompt": "x"}))[0] == 200
