"""Models that are loaded, unloaded and pinned over HTTP; and what a stream says while it waits for one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ocak.fleet.fleet import Fleet
from ocak.fleet.spec import ModelSpec
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import ServedModel
from ocak.memory.ledger import HOST
from ocak.providers import local
from ocak.providers.local import LocalProvider
from ocak.worker.messages import LoadOptions
from tests.api.serving import Served, serving

ASK = {"prompt": "x", "max_tokens": 3}


@asynccontextmanager
async def served(model: Path, limit: int = 2**40, **specs: bool) -> AsyncIterator[Served]:
    """Models by these names; true: loaded from the start."""
    options = LoadOptions(path=str(model), context=256, parallel=2)
    fleet = Fleet((ModelSpec(key, options, preload=preload) for key, preload in specs.items()), {HOST: limit})
    await fleet.start()
    try:
        providers = {key: LocalProvider(fleet, key) for key in specs}
        queue = QueueLimits(2, 100)
        models = [ServedModel(key, one, Admission(queue), residence=one) for key, one in providers.items()]
        async with serving(models) as running:
            yield running
    finally:
        await fleet.stop()


async def change(s: Served, path: str) -> dict:
    async with s.http.post(f"/api/v1/models/{path}") as answer:
        return {"status": answer.status, **await answer.json()}


async def test_a_model_is_loaded_unloaded_pinned_and_unpinned(tiny_model: Path) -> None:
    async with served(tiny_model, a=False) as s:
        loaded = await change(s, "a/load")
        assert (loaded["status"], loaded["state"], loaded["priority"]) == (200, "ready", "normal")
        assert (await change(s, "a/pin"))["priority"] == "pinned"
        assert (await change(s, "a/unpin"))["priority"] == "normal"
        unloaded = await change(s, "a/unload")
        assert (unloaded["status"], unloaded["state"], unloaded["worker_pid"]) == (200, "unloaded", None)
        at_once = await change(s, "a/load?wait=false")
        assert at_once["status"] == 202 and at_once["state"] in ("planning", "loading")
        async with s.http.post("/v1/completions", json={"model": "a", **ASK}) as answer:
            assert (await answer.json())["usage"]["completion_tokens"] == 3


async def test_a_model_that_waits_to_be_asked_does_not_hold_readiness_up(tiny_model: Path) -> None:
    async with served(tiny_model, a=False, b=True) as s:
        async with s.http.get("/health/startup") as answer:
            assert "b" in (await answer.json())["models"]
        await change(s, "b/load")
        async with s.http.get("/health/ready") as answer:
            assert answer.status == 200
        async with s.http.get("/health/ready?model=a") as answer:
            assert answer.status == 503


async def test_bad_requests_name_the_field(tiny_model: Path) -> None:
    async with served(tiny_model, a=False) as s:
        assert (await change(s, "nobody/load"))["status"] == 404
        strange = await change(s, "a/load?wait=perhaps")
        assert strange["status"] == 400 and strange["error"]["param"] == "wait"


async def test_what_finds_no_room_is_a_503_that_says_why_and_when_to_try_again(tiny_model: Path) -> None:
    async with served(tiny_model, 2**20, a=False) as s:
        async with s.http.post("/v1/completions", json={"model": "a", **ASK}) as answer:
            problem = (await answer.json())["error"]
            assert answer.status == 503 and int(answer.headers["retry-after"]) > 0
        assert "needs" in problem["message"] and "1 MiB can be had" in problem["message"]
        assert (await change(s, "a/load"))["status"] == 503


async def test_a_stream_tells_how_far_the_load_is_that_it_waits_for(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "TELL_S", 0.01)
    body = {"model": "a", "stream": True, **ASK}
    async with served(tiny_model, a=False) as s, s.http.post("/v1/completions", json=body) as answer:
        lines = [line.decode().strip() async for line in answer.content]
    comments = [line for line in lines if line.startswith(":")]
    assert any(line.startswith((": planning", ": loading")) and line.endswith("%") for line in comments)
    assert lines.index(comments[-1]) < next(i for i, line in enumerate(lines) if line.startswith("data:"))
    assert lines[-2] == "data: [DONE]" or lines[-1] == "data: [DONE]"


async def test_who_asks_while_a_model_is_loaded_for_others_shares_the_load(tiny_model: Path) -> None:
    async with served(tiny_model, a=False) as s:
        answers = await asyncio.gather(*(change(s, "a/load") for _ in range(20)))
        assert {(answer["status"], answer["load"]["count"]) for answer in answers} == {(200, 1)}
