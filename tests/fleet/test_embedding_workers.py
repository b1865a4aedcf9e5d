"""Real workers that embed: clients that leave, workers that die, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.embedding_models import TinyEncoder, write_causal_embedder, write_encoder

from ocak.core.embedding import Embedded, EmbedRequest, floats
from ocak.core.errors import GenerationFailed, InvalidRequest, ModelUnavailable
from ocak.core.request import GenerateRequest, TextPrompt, TokenPrompt
from ocak.core.status import EngineStats
from ocak.fleet.fleet import Fleet, ModelSpec
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Gateway, ServedModel
from ocak.providers.local import LocalProvider
from ocak.worker.messages import LoadOptions

PATIENCE_S = 30.0


class House:
    def __init__(self, options: LoadOptions) -> None:
        self.fleet = Fleet([ModelSpec("m", options)])
        self.provider = LocalProvider(self.fleet, "m")
        self.admission = Admission(QueueLimits(parallel=64, max_queued=1000))
        self.gateway = Gateway([ServedModel("m", self.provider, self.admission)])

    @property
    def engine(self) -> EngineStats:
        return self.provider.status().engine

    async def embed(self, text: str | tuple[int, ...] = "fire", tenant: str = "public") -> Embedded:
        given = TextPrompt(text) if isinstance(text, str) else TokenPrompt(text)
        return await self.gateway.embed(EmbedRequest(id="r", model="m", input=given, tenant=tenant))

    async def until(self, condition: Callable[[], bool]) -> None:
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < PATIENCE_S, self.engine
            await asyncio.sleep(0.01)


@asynccontextmanager
async def house(model: Path, **options: object) -> AsyncIterator[House]:
    built = House(LoadOptions(path=str(model), **options))  # type: ignore[arg-type]
    await built.fleet.start()
    try:
        await built.fleet.wait_ready("m", wait_s=PATIENCE_S)
        yield built
        assert built.admission.in_flight == 0
    finally:
        await built.fleet.stop()


async def test_clients_that_leave_leave_nothing_behind(tmp_path: Path) -> None:
    async with house(write_causal_embedder(tmp_path / "causal.gguf"), batch_tokens=64) as h:
        expected = floats((await h.embed("fire")).vector)
        for round_ in range(3):
            long = tuple((round_ + j) % 200 for j in range(2000))
            tasks = [asyncio.create_task(h.embed(long if i % 3 else f"text {i}")) for i in range(60)]
            steps = h.engine.steps
            await h.until(lambda before=steps: h.engine.steps > before)  # type: ignore[misc]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert floats((await h.embed("fire")).vector) == pytest.approx(expected, abs=1e-4)
        await h.until(lambda: h.engine.waiting == h.engine.running == 0)


async def test_a_worker_that_dies_costs_its_inputs_only_time(tmp_path: Path) -> None:
    async with house(write_encoder(tmp_path / "bert.gguf")) as h:
        expected = await h.embed("fire")
        pid = h.provider.status().worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        tasks = [asyncio.create_task(h.embed("fire")) for _ in range(20)]
        await h.until(lambda: h.admission.in_flight == 20)
        os.kill(pid, signal.SIGKILL)
        for made in await asyncio.gather(*tasks):
            assert floats(made.vector) == pytest.approx(floats(expected.vector), abs=1e-4)
        assert h.provider.status().restarts == 1


async def test_a_bad_input_harms_none_of_its_neighbours(tmp_path: Path) -> None:
    async with house(write_encoder(tmp_path / "bert.gguf")) as h:
        expected = floats((await h.embed("fire")).vector)
        bad: list[str | tuple[int, ...]] = ["a " * 600, (999_999,), (-1,), ()]
        results = await asyncio.gather(
            *(h.embed(text) for text in ["fire", *bad, "fire"] * 5), return_exceptions=True
        )
        good = [result for result in results if isinstance(result, Embedded)]
        assert len(good) == 10
        assert all(floats(made.vector) == pytest.approx(expected, abs=1e-4) for made in good)
        assert all(isinstance(result, Embedded | InvalidRequest) for result in results)
        with pytest.raises(InvalidRequest, match="writes no text"):
            await h.gateway.complete(GenerateRequest(id="r", model="m", prompt=TextPrompt("x")))


async def test_numbers_that_are_none_fail_their_request_and_the_worker_goes_on(tmp_path: Path) -> None:
    async with house(write_encoder(tmp_path / "bert.gguf", TinyEncoder(is_broken=True))) as h:
        pid = h.provider.status().worker_pid
        for _ in range(2):
            with pytest.raises(GenerationFailed):
                await h.embed("fire")
        assert h.provider.status().worker_pid == pid


@pytest.mark.parametrize(
    "options",
    [
        {"batch_tokens": 1, "parallel": 1},
        {"batch_tokens": 3, "parallel": 2, "context": 7},
        {"parallel": 256},
        {"kv_type": "q8_0"},
        {"flash_attn": "on"},
        {"batch_tokens": 4096},
    ],
    ids=str,
)
async def test_odd_sizes_serve_the_same(tmp_path: Path, options: dict[str, object]) -> None:
    for path in (write_encoder(tmp_path / "bert.gguf"), write_causal_embedder(tmp_path / "causal.gguf")):
        async with house(path) as h:
            expected = floats((await h.embed("fire")).vector)
        async with house(path, **options) as h:
            many = await asyncio.gather(*(h.embed(text) for text in ["fire", "f", "fir"] * 30))
            assert floats(many[0].vector) == pytest.approx(expected, abs=2e-2)


async def test_a_context_that_the_model_was_not_trained_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="trained for"):
        async with house(write_encoder(tmp_path / "bert.gguf"), context=1024):
            pass
