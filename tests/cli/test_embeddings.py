"""Embeddings and ranks from real worker processes, through HTTP, with the unmodified `openai` package."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.cli.processes import DEADLINE_S, RunningServer, serving
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
    config.write_text("".join(f'[models.{key}]\nsource = "{path}"\n' for key, path in sources.items()))
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
