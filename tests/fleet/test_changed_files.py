"""A model's file changes under its worker: that model alone is lost, for as long as its file is, and says why."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.models import write_tiny_model

from ocak.core.errors import ModelUnavailable, WorkerLost
from ocak.core.events import Delta
from ocak.core.request import GenerateRequest, Sampling, Stopping, TextPrompt
from ocak.core.status import ModelStatus
from ocak.fleet.fleet import Fleet
from ocak.fleet.replica import ModelSpec
from ocak.worker.messages import LoadOptions

PATIENCE_S = 30.0
SOON_S = 8.0


class TwoModels:
    """`changing`, of which a test has the file, and `other`, which nobody touches."""

    def __init__(self, file: Path, other: Path) -> None:
        specs = {
            key: LoadOptions(path=str(path), parallel=1) for key, path in (("changing", file), ("other", other))
        }
        self.fleet = Fleet(ModelSpec(key, options) for key, options in specs.items())

    def status(self, key: str = "changing") -> ModelStatus:
        return self.fleet.replica(key).status()

    async def ask(self, key: str = "changing", *, num_tokens: int = 8, wait_s: float = PATIENCE_S) -> str:
        stopping = Stopping(max_tokens=num_tokens, ignore_eos=True)
        sampling = Sampling(temperature=0)
        request = GenerateRequest(id="r", model=key, prompt=TextPrompt("hi"), stopping=stopping, sampling=sampling)
        worker = await self.fleet.ready(key, wait_s=wait_s)
        return "".join([event.text async for event in worker.generate(request) if isinstance(event, Delta)])

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"not within {seconds} s: {self.status()}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def two_models(file: Path, other: Path) -> AsyncIterator[TwoModels]:
    models = TwoModels(file, other)
    await models.fleet.start()
    try:
        for key in ("changing", "other"):
            await models.fleet.wait_ready(key, wait_s=PATIENCE_S)
        yield models
    finally:
        await models.fleet.stop()


@pytest.fixture
def file(tmp_path: Path, tiny_model: Path) -> Path:
    return Path(shutil.copy(tiny_model, tmp_path / "changing.gguf"))


async def test_a_file_that_is_cut_costs_its_own_model_alone_and_only_until_it_is_whole(
    file: Path, tiny_model: Path
) -> None:
    async with two_models(file, tiny_model) as m:
        before = await m.ask()
        others_pid = m.status("other").worker_pid
        answering = asyncio.create_task(m.ask(num_tokens=2000))
        await m.until(lambda: m.status().engine.slots_used == 1)
        whole = file.read_bytes()
        os.truncate(file, len(whole) // 2)
        with pytest.raises(WorkerLost, match="changing.gguf was changed while it was in use"):
            await asyncio.wait_for(answering, SOON_S)
        await m.until(lambda: "truncated" in (m.status().error or ""), SOON_S)
        with pytest.raises(ModelUnavailable, match="changing.gguf.*truncated"):
            await m.ask(wait_s=0.1)
        assert await m.ask("other") == before
        assert (m.status("other").worker_pid, m.status("other").restarts) == (others_pid, 0)
        assert m.status().restarts < 10, "each attempt waits longer than the one before"
        file.write_bytes(whole)
        assert await m.ask() == before


async def test_a_file_that_is_written_over_is_loaded_again_rather_than_mixed(
    file: Path, tmp_path: Path, tiny_model: Path
) -> None:
    newer = write_tiny_model(tmp_path / "newer.gguf", seed=7)
    assert newer.stat().st_size == file.stat().st_size
    async with two_models(file, tiny_model) as m:
        before, pid = await m.ask(), m.status().worker_pid
        file.write_bytes(newer.read_bytes())
        await m.until(lambda: m.status().restarts > 0, SOON_S)
        await m.until(lambda: m.status().state == "ready")
        after = await m.ask()
        assert m.status().worker_pid != pid
    async with two_models(newer, tiny_model) as m:
        assert await m.ask() == after != before
