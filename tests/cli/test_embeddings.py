"""Embeddings and ranks from real worker processes, through HTTP, with the unmodified `openai` package."""

from __future__ import annotations

import base64
import json
import math
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.cli.processes import DEADLINE_S, RunningServer, ocak, serving
from tests.embedding_models import write_causal_embedder, write_cross_encoder, write_encoder

TEXTS = ["fire in the ocak", "who keeps the fire?", "rain", "a long text of many words " * 12]


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server with a model of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    sources = {
        "writer": tiny_model,
        "encoder": write_encoder(folder / "bert.gguf"),
        "causal": write_causal_embedder(folder / "causal.gguf"),
        "ranker": write_cross_encoder(folder / "rank.gguf"),
    }
    config = folder / "ocak.toml"
    sections = [f'[models.{key}]\nsource = "{path}"\nflash_attn = "off"\n' for key, path in sources.items()]
    config.write_text("".join(sections))
    with serving("--config", config) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=DEADLINE_S) as client:
        yield client


def post(server: RunningServer, path: str, body: dict[str, object]) -> Any:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def test_an_embedding_model_and_a_generating_one_live_in_one_server(server: RunningServer, api: OpenAI) -> None:
    assert len(api.embeddings.create(model="encoder", input="fire").data[0].embedding) == 64
    assert api.completions.create(model="writer", prompt="fire", max_tokens=4).usage.completion_tokens == 4
    kinds = {card["id"]: card["kind"] for card in server.get("/v1/models")["data"]}
    assert kinds == {"writer": "text", "encoder": "embedding", "causal": "embedding", "ranker": "rerank"}
    statuses = {model["key"]: model for model in server.get("/models/status")["models"]}
    assert statuses["encoder"]["kind"] == "embedding" and statuses["encoder"]["requests"] >= 1
    assert statuses["encoder"]["info"]["pooling"] == "mean" and statuses["causal"]["info"]["pooling"] == "last"


def test_documents_come_best_first(server: RunningServer) -> None:
    answer = post(server, "/v1/rerank", {"model": "ranker", "query": "who?", "documents": TEXTS[:3]})
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
    assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0


def lengths(vectors: list[list[float]]) -> list[float]:
    return [math.hypot(*vector) for vector in vectors]


def vectors_of(api: OpenAI, model: str, given: Any, **more: Any) -> list[list[float]]:
    return [item.embedding for item in api.embeddings.create(model=model, input=given, **more).data]


def furthest(some: list[list[float]], others: list[list[float]]) -> float:
    pairs = [pair for a, b in zip(some, others, strict=True) for pair in zip(a, b, strict=True)]
    return max(abs(one - other) for one, other in pairs)


@pytest.mark.parametrize("model", ["encoder", "causal"])
def test_a_batch_gives_the_vectors_of_each_text_alone(api: OpenAI, model: str) -> None:
    alone = [vectors_of(api, model, text)[0] for text in TEXTS]
    together = vectors_of(api, model, TEXTS)
    assert furthest(alone, together) < 1e-4
    assert furthest(alone, alone[1:] + alone[:1]) > 1e-2, "texts that cannot be told apart prove nothing"
    assert lengths(together) == pytest.approx([1] * len(TEXTS))


def test_base64_and_floats_are_the_same_numbers(server: RunningServer, api: OpenAI) -> None:
    floats = vectors_of(api, "encoder", "fire", encoding_format="float")
    raw = post(server, "/v1/embeddings", {"model": "encoder", "input": "fire", "encoding_format": "base64"})
    data = base64.b64decode(raw["data"][0]["embedding"])
    assert [list(struct.unpack("<64f", data))] == floats == vectors_of(api, "encoder", "fire")


def test_token_ids_embed_as_their_text(server: RunningServer, api: OpenAI) -> None:
    tokens = [post(server, "/tokenize", {"model": "encoder", "prompt": text})["tokens"] for text in TEXTS[:2]]
    assert furthest(vectors_of(api, "encoder", tokens), vectors_of(api, "encoder", TEXTS[:2])) < 1e-4
    assert vectors_of(api, "encoder", tokens[0]) == vectors_of(api, "encoder", TEXTS[0])
    answer = api.embeddings.create(model="encoder", input=TEXTS[0])
    assert answer.usage.prompt_tokens == len(tokens[0])


def test_fewer_dimensions_are_the_first_ones_normalised_anew(api: OpenAI) -> None:
    [whole] = vectors_of(api, "encoder", "fire")
    [short] = vectors_of(api, "encoder", "fire", dimensions=5)
    assert short == pytest.approx([number / math.hypot(*whole[:5]) for number in whole[:5]], abs=1e-6)
    with pytest.raises(openai.BadRequestError, match="dimensions is 65 and this model's vectors have 64"):
        vectors_of(api, "encoder", "fire", dimensions=65)


def test_what_a_model_cannot_do_is_refused_with_what_would(server: RunningServer, api: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="serve this one with --embedding"):
        vectors_of(api, "writer", "fire")
    with pytest.raises(openai.BadRequestError, match="send query and documents to /v1/rerank"):
        vectors_of(api, "ranker", "fire")
    with pytest.raises(openai.BadRequestError, match="send /v1/embeddings requests to it"):
        api.completions.create(model="encoder", prompt="fire")
    with pytest.raises(openai.BadRequestError, match="send /v1/rerank requests to it"):
        api.chat.completions.create(model="ranker", messages=[{"role": "user", "content": "fire"}])
    for model, hint in (("encoder", "cross-encoder"), ("writer", "--embedding")):
        answer = post(server, "/v1/rerank", {"model": model, "query": "who?", "documents": ["fire"]})
        assert answer["status"] == 400 and hint in answer["error"]["message"]


def test_too_long_a_text_is_told_both_numbers(server: RunningServer, api: OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match="the input has 602 tokens and this model takes 512"
    ) as refused:
        vectors_of(api, "encoder", ["fire", "a " * 600])
    assert "--context" not in refused.value.message, "it was trained for no more"
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "input[1]"
    assert len(vectors_of(api, "encoder", "a " * 510)) == 1, "the longest that fits"
    answer = post(server, "/v1/rerank", {"model": "ranker", "query": "a " * 300, "documents": ["x", "b " * 300]})
    assert answer["error"]["code"] == "context_length_exceeded" and answer["error"]["param"] == "documents[1]"
    with pytest.raises(openai.BadRequestError, match=r"input\[1\]: token id 5000 is not one of the model's"):
        vectors_of(api, "encoder", [[1, 2], [5000]])


def test_a_text_longer_than_a_pass_is_embedded_by_a_model_that_reads_forward(api: OpenAI) -> None:
    long = "the fire and the ocak " * 120
    answer = api.embeddings.create(model="causal", input=[long, "short"])
    assert answer.usage.prompt_tokens > 1000
    assert lengths([item.embedding for item in answer.data]) == pytest.approx([1, 1])


def test_scores_do_not_depend_on_the_other_documents(server: RunningServer) -> None:
    def scores(documents: list[str]) -> dict[int, float]:
        answer = post(server, "/v1/rerank", {"model": "ranker", "query": "who?", "documents": documents})
        return {result["index"]: result["relevance_score"] for result in answer["results"]}

    together = scores(TEXTS)
    for i, text in enumerate(TEXTS):
        assert scores([text])[0] == pytest.approx(together[i], abs=1e-4)
    assert len(set(together.values())) == len(TEXTS)


def test_a_long_list_leaves_room_for_others(server: RunningServer, api: OpenAI) -> None:
    with ThreadPoolExecutor(4) as threads:
        many = [threads.submit(vectors_of, api, "encoder", [f"text {i}" for i in range(600)]) for _ in range(2)]
        one = threads.submit(vectors_of, api, "encoder", "fire")
        written = threads.submit(api.completions.create, model="writer", prompt="fire", max_tokens=8)
        assert len(one.result()) == 1 and written.result().usage.completion_tokens == 8
        assert all(len(each.result()) == 600 for each in many)
    [status] = [model for model in server.get("/models/status")["models"] if model["key"] == "encoder"]
    assert status["engine"]["waiting"] == status["engine"]["running"] == 0


def test_one_file_serves_as_a_writer_and_as_an_embedder(tmp_path: Path, tiny_model: Path) -> None:
    config = tmp_path / "ocak.toml"
    config.write_text(
        f'[models.text]\nsource = "{tiny_model}"\n[models.vectors]\nsource = "{tiny_model}"\npooling = "mean"\n'
        f'[models.last]\nsource = "{tiny_model}"\nembedding = true\n'
    )
    with serving("--config", config) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
        assert lengths(vectors_of(api, "vectors", TEXTS)) == pytest.approx([1] * 4)
        assert furthest(vectors_of(api, "vectors", TEXTS), vectors_of(api, "last", TEXTS)) > 1e-2
        assert api.completions.create(model="text", prompt="fire", max_tokens=2).choices[0].text


def test_an_embedding_model_that_could_write_does_with_pooling_none(tmp_path: Path) -> None:
    path = write_causal_embedder(tmp_path / "causal.gguf")
    with serving(path, "--pooling", "none") as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
        assert api.completions.create(model="causal", prompt="fire", max_tokens=2).usage.completion_tokens == 2
    with serving(path) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as api:
        assert "/v1/embeddings" in server.banner
        alone = [vectors_of(api, "causal", text)[0] for text in TEXTS]
        for one, among in zip(alone, vectors_of(api, "causal", TEXTS), strict=True):
            assert sum(a * b for a, b in zip(one, among, strict=True)) > 1 - 1e-5, "flash attention rounds"


def test_what_cannot_be_pooled_is_refused_before_a_worker_starts(tiny_model: Path) -> None:
    result = ocak("serve", tiny_model, "--pooling", "rank", "--port", "0")
    assert result.returncode == 2
    assert "pooling rank needs a classification head" in result.stderr
