"""Health, metrics, status, tokens, documentation: what operators and tools read."""

import re

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ocak.providers.echo import EchoProvider
from tests.api.serving import served_model, serving


async def get(served, path, **more):
    async with served.http.get(path, **more) as answer:
        return answer.status, await answer.json()


async def test_a_ready_server_says_so(served):
    assert await get(served, "/health/live") == (200, {"status": "live"})
    for path in ("/health", "/health/ready", "/health/ready?model=alias"):
        status, body = await get(served, path)
        assert (status, body["status"]) == (200, "ready")
        assert body["models"] == {"echo": {"state": "ready", "is_ready": True, "error": None}}


async def test_one_model_that_is_not_ready_holds_readiness_back():
    slow, fast = EchoProvider("slow"), EchoProvider("fast")
    slow.state, slow.error = "restarting", "its worker froze"
    async with serving([served_model(slow), served_model(fast)]) as served:
        status, body = await get(served, "/health/ready")
        assert (status, body["models"]["slow"]["error"]) == (503, "its worker froze")
        assert (await get(served, "/health/ready?model=fast"))[0] == 200
        assert (await get(served, "/health/ready?model=slow"))[0] == 503
        assert (await get(served, "/health/ready?model=other"))[0] == 404
        assert (await get(served, "/health/live"))[0] == 200


async def test_startup_is_over_once_each_model_has_come_up_or_failed():
    first, second = EchoProvider("first"), EchoProvider("second")
    first.state = second.state = "loading"
    async with serving([served_model(first), served_model(second)]) as served:
        assert (await get(served, "/health/startup"))[0] == 503
        first.state = "ready"
        assert (await get(served, "/health/startup"))[0] == 503
        first.state, first.num_loads, second.state = "restarting", 1, "failed"
        assert (await get(served, "/health/startup"))[0] == 200


async def test_without_models_the_server_is_ready():
    async with serving([]) as served:
        assert (await get(served, "/health"))[0] == 200
        assert (await get(served, "/health/startup"))[0] == 200


async def test_models_status_has_the_shape_operators_read(served):
    status, body = await get(served, "/models/status")
    assert status == 200
    assert body["models"][0]["key"] == "echo"
    assert {"state", "provider", "kind", "loaded_at", "requests", "memory", "load"} <= body["models"][0].keys()


async def test_the_metrics_page_counts_requests():
    echo = EchoProvider("metrics-test")
    async with serving([served_model(echo)]) as served:
        for stream in (False, True):
            async with served.http.post("/v1/completions", json={"prompt": "a b c", "stream": stream}) as answer:
                await answer.read()
        async with served.http.get("/metrics") as answer:
            assert answer.content_type == "text/plain"
            samples = {
                (sample.name, *sorted(sample.labels.items())): sample.value
                for family in text_string_to_metric_families(await answer.text())
                for sample in family.samples
            }
    model = ("model", "metrics-test")
    assert samples["ocak_inference_requests_total", model, ("outcome", "ok")] == 2
    assert samples["ocak_inference_time_seconds_count", model] == 2
    assert samples["ocak_generation_tokens_total", model] == 6
    assert samples["ocak_prompt_tokens_total", ("cached", "false"), model] == 6
    assert samples["ocak_time_to_first_token_seconds_count", model] == 2
    assert samples["ocak_inter_token_latency_seconds_count", model] == 4
    assert samples["ocak_model_ready", model] == 1
    assert samples["ocak_requests_running", model] == 0


async def test_the_metrics_page_speaks_openmetrics_when_asked(served):
    accept = "application/openmetrics-text; version=1.0.0"
    async with served.http.get("/metrics", headers={"accept": accept}) as answer:
        assert answer.content_type == "application/openmetrics-text"
        assert (await answer.text()).endswith("# EOF\n")


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a b c"},
        {"content": "a b c"},
        {"messages": [{"role": "user", "content": "a b c"}]},
        {"model": "alias", "prompt": "a b c", "add_special_tokens": False},
    ],
)
async def test_tokens_there_and_back(served, body):
    async with served.http.post("/tokenize", json=body) as answer:
        tokens = await answer.json()
    assert tokens == {"tokens": [0, 1, 2], "count": 3, "max_model_len": None}
    async with served.http.post("/detokenize", json={"tokens": tokens["tokens"]}) as answer:
        assert await answer.json() == {"prompt": "a b c", "content": "a b c"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**31]}, "tokens"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
        ("/detokenize", {"tokens": [7]}, "tokens"),
    ],
)
async def test_bad_token_requests_name_their_field(served, path, body, param):
    async with served.http.post(path, json=body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param


async def test_the_document_describes_every_route(served):
    status, document = await get(served, "/openapi.json")
    assert (status, document["openapi"]) == (200, "3.0.3")
    assert {"/v1/chat/completions", "/v1/models/{id}", "/health", "/metrics"} <= document["paths"].keys()
    schemas = document["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', msgspec.json.encode(document).decode()))
    assert references <= schemas.keys()
    assert schemas["ChatBody"]["properties"]["seed"]["nullable"] is True
    assert '"type":"null"' not in msgspec.json.encode(document).decode()
    assert len(schemas["CompletionBody"]["properties"]["prompt"]["oneOf"]) == 4


async def test_the_documentation_page_needs_nothing_from_elsewhere(served):
    async with served.http.get("/docs") as answer:
        page = await answer.text()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "//" not in page.replace("<!doctype", "")
    for file in re.findall(r'(?:src|href)="([^"]+)"', page):
        async with served.http.get(f"/{file}") as answer:
            assert (answer.status, bool(await answer.read())) == (200, True), file
    async with served.http.get("/docs/__init__.py") as answer:
        assert answer.status == 404
    async with served.http.get("/docs/..%2f..%2fetc%2fpasswd") as answer:
        assert answer.status == 404


async def test_the_root_points_to_the_documentation(served):
    status, body = await get(served, "/")
    assert (status, body["docs"]) == (200, "/docs")
    async with served.http.head("/health/live") as answer:
        assert (answer.status, await answer.read()) == (200, b"")
