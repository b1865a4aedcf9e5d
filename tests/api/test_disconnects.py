"""A client that leaves takes its generation with it, whatever it was waiting for."""

import asyncio
import json

import pytest

from ocak.api.http import HttpOptions
from ocak.core.events import Delta, Started
from ocak.providers.echo import EchoProvider
from tests.api.serving import PATIENCE_S, Gate, served_model, serving, serving_echo


def request_bytes(path: str = "/v1/completions", **body) -> bytes:
    data = json.dumps({"prompt": "one two three", **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n\r\n"
    return head.encode() + data


async def connect(served, data: bytes):
    reader, writer = await asyncio.open_connection(served.host, served.port)
    writer.write(data)
    await writer.drain()
    return reader, writer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", [0, 1, 3], ids=["queued", "prefill", "decode"])
async def test_a_client_that_leaves_cancels(stream, step):
    gate = Gate(step)
    async with serving_echo(EchoProvider(pause=gate)) as served:
        _, writer = await connect(served, request_bytes(stream=stream))
        await gate.reached()
        assert served.echo.open_streams == 1
        writer.close()
        await gate.cancelled()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_every_choice(stream):
    gate = Gate(2)
    async with serving_echo(EchoProvider(pause=gate)) as served:
        _, writer = await connect(served, request_bytes(stream=stream, prompt=["a b"] * 20, n=3))
        await gate.reached()
        writer.transport.abort()
        await gate.cancelled()


async def test_a_client_that_leaves_while_tokens_are_counted_cancels():
    gate = Gate(0)

    class SlowTokens(EchoProvider):
        async def tokenize(self, prompt, *, add_special):
            await gate(0)
            return ()

    async with serving_echo(SlowTokens()) as served:
        _, writer = await connect(served, request_bytes("/tokenize"))
        await gate.reached()
        writer.close()
        await gate.cancelled()


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(served):
    _, writer = await connect(served, request_bytes()[:-5])
    writer.close()
    async with served.http.post("/v1/completions", json={"prompt": "x"}) as answer:
        assert answer.status == 200
    assert len(served.echo.requests) == 1


async def test_the_next_request_on_a_connection_is_served_after_the_first(served):
    reader, writer = await connect(served, request_bytes() + request_bytes(prompt="second"))
    async with asyncio.timeout(PATIENCE_S):
        data = b""
        while b"second" not in data:
            data += await reader.read(4096)
    assert data.count(b"HTTP/1.1 200 OK") == 2
    writer.close()


async def test_a_client_that_leaves_with_a_second_request_behind_cancels_the_first():
    gate = Gate(1)
    async with serving_echo(EchoProvider(pause=gate)) as served:
        _, writer = await connect(served, request_bytes() + request_bytes(prompt="second"))
        await gate.reached()
        writer.close()
        await gate.cancelled()
    assert len(served.echo.requests) == 1


async def test_a_client_that_stops_reading_is_cancelled():
    class Endless(EchoProvider):
        async def _answer(self, request):
            yield Started(1)
            while True:
                yield Delta("x" * 10_000, 1)
                await asyncio.sleep(0)

    echo = Endless()
    async with serving([served_model(echo)], options=HttpOptions(stall_s=0.05)) as served:
        _, writer = await connect(served, request_bytes(stream=True))
        async with asyncio.timeout(PATIENCE_S):
            while not echo.requests or echo.open_streams:
                await asyncio.sleep(0)
        writer.close()


async def test_others_go_on_when_one_leaves():
    gate = Gate(2)
    async with serving_echo(EchoProvider(pause=gate)) as served:
        _, writer = await connect(served, request_bytes(stream=True))
        other = asyncio.create_task(served.http.post("/v1/completions", json={"prompt": "a b"}))
        await gate.reached()
        writer.close()
        await gate.cancelled()
        gate.open()
        async with await other as answer:
            assert (await answer.json())["choices"][0]["text"] == "a b"


async def test_a_silent_stream_is_kept_alive_by_comments():
    gate = Gate(2)
    async with serving_echo(EchoProvider(pause=gate), options=HttpOptions(stall_s=0.04)) as served:
        reader, writer = await connect(served, request_bytes(stream=True))
        async with asyncio.timeout(PATIENCE_S):
            await reader.readuntil(b": still here\n\n")
            gate.open()
            assert b"two" in await reader.readuntil(b"[DONE]\n\n")
        writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_ends_says_so(stream):
    gate = Gate(2)
    async with serving_echo(EchoProvider(pause=gate)) as served:
        reader, writer = await connect(served, request_bytes(stream=stream))
        await gate.reached()
        if stream:
            await reader.readuntil(b"one")
        for task in served.state.tasks:
            task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            data = await reader.readuntil(b'"code":"shutting_down"}}')
        assert stream or data.startswith(b"HTTP/1.1 503")
        writer.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_access_log_names_no_prompt_and_no_key(caplog, stream):
    caplog.set_level("INFO")
    async with serving_echo(keys=["the-secret-key"]) as served:
        headers = {"authorization": "Bearer the-secret-key", "x-request-id": "an-id"}
        body = {"prompt": "the-secret-prompt", "stream": stream}
        async with served.http.post("/v1/completions?the-secret=1", json=body, headers=headers) as answer:
            await answer.read()
    (record,) = [record for record in caplog.records if record.name == "ocak.access"]
    assert record.fields["id"] == "an-id"
    assert (record.fields["model"], record.fields["status"]) == ("echo", 200)
    assert (record.fields["prompt_tokens"], record.fields["completion_tokens"]) == (1, 1)
    assert "secret" not in caplog.text + str([vars(record) for record in caplog.records])
