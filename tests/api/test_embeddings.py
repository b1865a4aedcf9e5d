"""`/v1/embeddings` and `/v1/rerank` as their clients know them, on the echo."""

import asyncio
import base64
import json
import struct

import openai
import pytest
from openai import AsyncOpenAI

from ocak.api import choices
from ocak.core.errors import GenerationFailed, Overloaded, WorkerLost
from ocak.core.limits import MAX_INPUTS
from ocak.core.request import TextPrompt, TokenPrompt
from ocak.providers.echo import EchoProvider
from tests.api.serving import Gate, Served, served_model, serving, serving_echo

RERANK = {"query": "who keeps fire", "documents": ["rain falls", "a hearth keeps fire", "who keeps fire"]}


def client(served: Served, **more) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, **more)


async def post(served, path, body):
    async with served.http.post(path, data=json.dumps(body)) as answer:
        return answer.status, await answer.json(), answer.headers


async def test_a_text_becomes_a_vector_of_length_one(served):
    async with client(served) as api:
        answer = await api.embeddings.create(model="alias", input="fire in the hearth")
    [item] = answer.data
    assert (answer.object, item.object, item.index, answer.model) == ("list", "embedding", 0, "alias")
    assert sum(number**2 for number in item.embedding) == pytest.approx(1)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 4


async def test_base64_holds_the_same_numbers_in_little_endian(served):
    async with client(served) as api:
        plain = await api.embeddings.create(model="echo", input="a b c", encoding_format="float")
        decoded = await api.embeddings.create(model="echo", input="a b c")  # the client asks for base64
    _, raw, _ = await post(served, "/v1/embeddings", {"input": "a b c", "encoding_format": "base64"})
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == plain.data[0].embedding == decoded.data[0].embedding


async def test_a_list_keeps_its_order(served):
    texts = [f"word{i}" for i in range(100)]
    async with client(served) as api:
        many = await api.embeddings.create(model="echo", input=texts)
        alone = [await api.embeddings.create(model="echo", input=text) for text in texts[:5]]
    assert [item.index for item in many.data] == list(range(100))
    assert [item.embedding for item in many.data[:5]] == [answer.data[0].embedding for answer in alone]
    assert many.usage.prompt_tokens == 100


async def test_token_ids_are_inputs_too(served):
    tokens = list(await served.echo.tokenize(TextPrompt("red green blue"), add_special=True))
    async with client(served) as api:
        await api.embeddings.create(model="echo", input=tokens)
        await api.embeddings.create(model="echo", input=[tokens[:1], tokens])
    inputs = [request.input for request in served.echo.embed_requests]
    assert inputs == [TokenPrompt(tuple(tokens)), TokenPrompt(tuple(tokens[:1])), TokenPrompt(tuple(tokens))]


async def test_dimensions_and_what_else_a_client_sends_arrive(served):
    async with client(served) as api:
        answer = await api.embeddings.create(
            model="echo", input="x", dimensions=3, user="me", extra_body={"priority": 2}
        )
    assert len(answer.data[0].embedding) == 3
    assert served.echo.embed_requests[0].priority == 2


BAD_EMBEDDINGS = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": ["a", 1]}, "input"),
    ({"input": [-1]}, "input"),
    ({"input": [2**31]}, "input"),
    ({"input": ["x"] * (MAX_INPUTS + 1)}, "input"),
    ({"input": [[1]] * (MAX_INPUTS + 1)}, "input"),
    ({"input": {"text": "x"}}, "input"),
    ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
    ({"input": "x", "dimensions": 0}, "dimensions"),
    ({"input": "x", "dimensions": -4}, "dimensions"),
    ({"input": "x", "dimensions": 2**31}, "dimensions"),
    ({"input": "x", "dimensions": 1.5}, "dimensions"),
    ({"input": "x", "priority": 5000}, "priority"),
    ({"input": "x", "model": "unknown"}, "model"),
]


@pytest.mark.parametrize(("body", "param"), BAD_EMBEDDINGS)
async def test_bad_embedding_requests_name_their_field(served, body, param):
    status, answer, _ = await post(served, "/v1/embeddings", body)
    assert status == (404 if param == "model" else 400)
    assert answer["error"]["param"] == param
    assert not served.echo.embed_requests


BAD_RERANKS = [
    ({"documents": ["x"]}, "query"),
    ({"query": "", "documents": ["x"]}, "query"),
    ({"query": "x"}, "documents"),
    ({"query": "x", "documents": []}, "documents"),
    ({"query": "x", "documents": "y"}, "documents"),
    ({"query": "x", "documents": [1]}, "documents[0]"),
    ({"query": "x", "documents": [{"title": "y"}]}, "documents[0].text"),
    ({"query": "x", "documents": ["y"] * (MAX_INPUTS + 1)}, "documents"),
    ({"query": "x", "documents": ["y"], "top_n": 0}, "top_n"),
    ({"query": "x", "documents": ["y"], "top_n": "1"}, "top_n"),
    ({"query": ["x"], "documents": ["y"]}, "query"),
]


@pytest.mark.parametrize(("body", "param"), BAD_RERANKS)
async def test_bad_rerank_requests_name_their_field(served, body, param):
    status, answer, _ = await post(served, "/v1/rerank", body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert not served.echo.embed_requests


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_documents_come_best_first(served, path):
    status, answer, _ = await post(served, path, RERANK)
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [2, 1, 0]
    assert [result["relevance_score"] for result in answer["results"]] == pytest.approx([1, 2 / 3, 0])
    assert all("document" not in result for result in answer["results"])
    assert answer["usage"] == {"prompt_tokens": 18, "total_tokens": 18}
    assert answer["model"] == "echo" and answer["id"].startswith("rerank-")


async def test_the_best_documents_alone_with_their_texts(served):
    documents = [{"text": text} for text in RERANK["documents"]]
    body = RERANK | {"documents": documents, "top_n": 2, "return_documents": True}
    _, answer, _ = await post(served, "/v1/rerank", body)
    assert [result["document"]["text"] for result in answer["results"]] == RERANK["documents"][:0:-1]
    _, all_of_them, _ = await post(served, "/v1/rerank", RERANK | {"top_n": 99})
    assert len(all_of_them["results"]) == 3


async def test_documents_of_the_same_score_keep_their_order(served):
    _, answer, _ = await post(served, "/v1/rerank", {"query": "x", "documents": ["y"] * 20})
    assert [result["index"] for result in answer["results"]] == list(range(20))


async def test_unknown_fields_are_reported_not_obeyed(served):
    status, _, headers = await post(served, "/v1/rerank", RERANK | {"max_tokens_per_doc": 5})
    assert status == 200
    assert headers["x-ocak-ignored-fields"] == "max_tokens_per_doc"


@pytest.mark.parametrize("max_queued", [0, 1, 5])
async def test_a_list_longer_than_the_queue_is_one_request_that_is_never_in_its_own_way(monkeypatch, max_queued):
    async def wait(error: Overloaded) -> None:
        raise AssertionError(error)

    monkeypatch.setattr(choices, "_wait", wait)
    model = served_model(EchoProvider(), parallel=1, max_queued=max_queued)
    async with serving([model]) as served, client(served) as api:
        answer = await api.embeddings.create(model="echo", input=["x"] * 50)
    assert len(answer.data) == 50
    assert model.admission.in_flight == 0


async def test_lists_leave_the_last_places_to_others():
    gate = Gate(0)
    model = served_model(EchoProvider(pause=gate), parallel=4, max_queued=4)
    async with serving([model]) as served, client(served) as api:
        lists = [asyncio.create_task(api.embeddings.create(model="echo", input=["x"] * 100)) for _ in range(2)]
        while model.admission.in_flight < 6:
            await asyncio.sleep(0)
        one = asyncio.create_task(api.embeddings.create(model="echo", input="y"))
        while model.admission.in_flight < 7:
            assert not one.done()
            await asyncio.sleep(0)
        gate.open()
        assert (await one).data
        for each in lists:
            each.cancel()


async def test_a_full_queue_is_a_429():
    gate = Gate(0)
    model = served_model(EchoProvider(pause=gate), parallel=1, max_queued=0)
    async with serving([model]) as served, client(served) as api:
        first = asyncio.create_task(api.embeddings.create(model="echo", input="x"))
        await gate.reached()
        with pytest.raises(openai.RateLimitError) as refused:
            await api.embeddings.create(model="echo", input="y")
        assert refused.value.response.headers["retry-after"]
        gate.open()
        assert (await first).data


async def test_the_first_failure_ends_the_list():
    echo = EchoProvider(fail_at=1, failure=GenerationFailed("no"))
    async with serving_echo(echo) as served, client(served) as api:
        with pytest.raises(openai.InternalServerError):
            await api.embeddings.create(model="echo", input=["x"] * 40)


async def test_a_lost_worker_is_tried_again():
    lost = [WorkerLost("gone")]

    async def lose(_step: int) -> None:
        if lost:
            raise lost.pop()

    async with serving_echo(EchoProvider(pause=lose)) as served, client(served) as api:
        assert (await api.embeddings.create(model="echo", input="x")).data
        assert served.echo.num_requests == 2


async def test_a_client_that_leaves_ends_its_whole_list():
    gate = Gate(0)
    async with serving_echo(EchoProvider(pause=gate)) as served:
        request = asyncio.create_task(post(served, "/v1/embeddings", {"input": ["x"] * 30}))
        await gate.reached()
        request.cancel()
        await gate.cancelled()
        while served.echo.open_streams:
            await asyncio.sleep(0)


async def test_a_key_is_needed():
    async with serving_echo(keys=["secret"]) as served:
        for path, body in (("/v1/embeddings", {"input": "x"}), ("/v1/rerank", RERANK)):
            assert (await post(served, path, body))[0] == 401


async def test_requests_are_counted_like_others(served):
    async def counted() -> dict[str, float]:
        async with served.http.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        names = ("ocak_prompt_tokens", "ocak_inference_requests", "ocak_request_prefill_time_seconds_count")
        parts = [line.rpartition(" ") for line in lines if line.startswith(names) and "_created" not in line]
        return {name: float(value) for name, _, value in parts}

    before = await counted()
    await post(served, "/v1/embeddings", {"input": ["a b", "c"]})
    after = await counted()
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert sorted(grown.values()) == [2, 2, 3], grown
