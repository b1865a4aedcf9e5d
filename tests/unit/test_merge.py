import asyncio

import pytest

from ocak.api.merge import MAX_READY, Merge
from ocak.core.errors import GenerationFailed
from ocak.core.events import Delta


async def source(
    *texts, gate: asyncio.Event | None = None, failure: Exception | None = None, closed: list | None = None
):
    try:
        for text in texts:
            yield Delta(text, 1)
        if gate is not None:
            await gate.wait()
        if failure is not None:
            raise failure
    finally:
        if closed is not None:
            closed.append(texts)


async def test_what_is_ready_together_comes_together():
    async with Merge([source("a", "b"), source("c")], 9) as merge:
        assert [(i, e.text) for i, e in await merge.ready()] == [(0, "a"), (0, "b"), (1, "c")]
        assert await merge.ready() == []


async def test_events_before_a_failure_are_handed_over_first():
    async with Merge([source("a", failure=GenerationFailed("no"))], 9) as merge:
        assert len(await merge.ready()) == 1
        with pytest.raises(GenerationFailed):
            await merge.ready()


async def test_every_source_is_closed_when_one_fails():
    closed: list = []
    gate = asyncio.Event()
    with pytest.raises(GenerationFailed):
        async with Merge(
            [source("a", gate=gate, closed=closed), source(failure=GenerationFailed("no"))], 9
        ) as merge:
            while await merge.ready():
                pass
    assert closed == [("a",)]


async def test_a_reader_that_falls_behind_stops_the_sources():
    async with Merge([source(*["x"] * (3 * MAX_READY))], 9) as merge:
        sizes = []
        while ready := await merge.ready():
            sizes.append(len(ready))
    assert sizes == [MAX_READY] * 3


async def test_only_so_many_sources_run_at_once():
    gate = asyncio.Event()
    async with Merge([source("x", gate=gate) for _ in range(6)], 3) as merge:
        assert len(await merge.ready()) == 3
        gate.set()
        assert len(await merge.ready()) == 3
