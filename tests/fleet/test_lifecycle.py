"""Models that come and go: real workers with tiny models, and a memory that is as small as a test wants."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ocak.core.errors import LoadFailed, ModelUnavailable
from ocak.core.request import GenerateRequest, Sampling, Stopping, TextPrompt
from ocak.core.status import ModelInfo, ModelStatus
from ocak.fleet.connection import Connection
from ocak.fleet.fleet import Fleet
from ocak.fleet.prober import Prober
from ocak.fleet.spec import ModelSpec
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Completion, Gateway, ServedModel
from ocak.memory.ledger import HOST
from ocak.memory.needs import Needs
from ocak.providers.local import LocalProvider
from ocak.worker.messages import LoadOptions

PATIENCE_S = 30.0


class Town:
    """Several models in one fleet, and the gateway in front of them."""

    def __init__(self, specs: Iterable[ModelSpec], limit: int, standby: int = 0) -> None:
        specs = list(specs)
        self.fleet = Fleet(specs, {HOST: limit}, left=lambda _own: {HOST: limit}, standby=standby)
        self.providers = {spec.key: LocalProvider(self.fleet, spec.key) for spec in specs}
        queue = QueueLimits(parallel=2, max_queued=1000)
        self.gateway = Gateway(ServedModel(key, one, Admission(queue)) for key, one in self.providers.items())

    def status(self, key: str) -> ModelStatus:
        return self.providers[key].status()

    async def ask(self, key: str, max_tokens: int = 3) -> Completion:
        stopping = Stopping(max_tokens=max_tokens, ignore_eos=True)
        request = GenerateRequest(
            id="r", model=key, prompt=TextPrompt("hello"), stopping=stopping, sampling=Sampling(temperature=0)
        )
        return await self.gateway.complete(request)

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> float:
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"not within {seconds} s"
            await asyncio.sleep(0.01)
        return time.monotonic() - started


@pytest.fixture(scope="session")
def needed(tiny_model: Path) -> Needs:
    with Prober() as prober:
        return prober.measure(options(tiny_model))


def options(model: Path) -> LoadOptions:
    return LoadOptions(path=str(model), context=2048, parallel=2)


@asynccontextmanager
async def town(
    model: Path, needed: Needs, room: float, standby: int = 0, **specs: dict[str, object]
) -> AsyncIterator[Town]:
    """Models by these names, and memory for so many of them."""
    built = Town(
        (ModelSpec(key, options(model), **spec) for key, spec in specs.items()),  # type: ignore[arg-type]
        int(room * needed.total_bytes),
        standby,
    )
    await built.fleet.start()
    try:
        yield built
    finally:
        await built.fleet.stop()
        assert not any(built.fleet.reserved.values())


LATER: dict[str, object] = {"preload": False}


async def test_however_many_ask_at_once_it_is_loaded_once(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a=LATER) as t:
        assert t.status("a").state == "unloaded" and not t.status("a").is_expected
        answers = await asyncio.gather(*(t.ask("a") for _ in range(100)))
        assert all(answer.usage.completion_tokens == 3 for answer in answers)
        assert t.status("a").load.count == 1 and t.status("a").restarts == 0


async def test_a_model_makes_room_for_another_and_comes_back_when_it_is_asked(
    tiny_model: Path, needed: Needs
) -> None:
    async with town(tiny_model, needed, 1.5, a={}, b=LATER) as t:
        for key, other in (("a", "b"), ("b", "a"), ("a", "b")):
            assert (await t.ask(key)).usage.completion_tokens == 3
            assert t.status(key).state == "ready" and t.status(other).state == "unloaded"
            assert t.status(other).worker_pid is None and t.status(other).error is None
            held = sum(t.fleet.reserved.values())
            assert held == t.status(key).memory.estimated
        assert t.fleet.evictions == {"room": 2}


async def test_a_busy_model_finishes_its_answers_before_it_goes(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={}, b=LATER) as t:
        await t.ask("a")
        pid = t.status("a").worker_pid
        long = [asyncio.create_task(t.ask("a", 1500)) for _ in range(16)]
        await t.until(lambda: t.fleet.replica("a").num_in_flight == 16)
        replica = t.fleet.replica("a")
        replica._record.ready_at -= 60  # it has been there for a while
        other = asyncio.create_task(t.ask("b"))
        await t.until(lambda: t.status("a").state == "draining")
        late = asyncio.create_task(t.ask("a"))  # waits, and has it loaded again
        answers = await asyncio.gather(*long, other, late)
        assert [answer.usage.completion_tokens for answer in answers] == [1500] * 16 + [3, 3]
        assert t.status("a").worker_pid != pid and t.status("a").restarts == 0


async def test_a_pinned_model_stays_and_who_finds_no_room_is_told(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={"priority": "pinned"}, b=LATER) as t:
        await t.ask("a")
        with pytest.raises(
            ModelUnavailable, match=r"'b' is unloaded: it needs .* other models hold a .* would fit|unload one"
        ) as no:
            await t.ask("b")
        assert no.value.retry_after_s and t.status("b").state == "unloaded"
        assert (await t.ask("a")).usage.completion_tokens == 3 and t.status("a").load.count == 1
        t.fleet.unpin("a")
        assert (await t.ask("b")).usage.completion_tokens == 3
        t.fleet.pin("b")
        with pytest.raises(ModelUnavailable):
            await t.ask("a")


async def test_what_does_not_fit_at_all_is_refused_and_harms_nobody(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 0.9, a={}) as t:
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="can be had"):
                await t.ask("a")
        assert t.status("a").state == "unloaded" and t.status("a").worker_pid is None


async def test_at_the_start_the_first_by_priority_is_loaded_and_nobody_sent_away(
    tiny_model: Path, needed: Needs
) -> None:
    async with town(tiny_model, needed, 1.5, low={"priority": "low"}, high={"priority": "high"}) as t:
        assert await t.fleet.settled("high") is None
        assert "can be had" in (await t.fleet.settled("low") or "")
        assert not t.fleet.evictions
        assert (await t.ask("low")).usage.completion_tokens == 3, "asked for, it gets the room"


async def test_who_is_kept_for_no_time_is_gone_within_a_second(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={"keep_alive_s": 0.0, "preload": False}) as t:
        for count in (1, 2):
            await t.ask("a")
            pid = t.status("a").worker_pid
            assert pid is not None and t.status("a").expires_at
            assert await t.until(lambda: not psutil.pid_exists(pid)) < 1.0  # noqa: B023 - asked now
            assert t.status("a").load.count == count
        await t.until(lambda: t.status("a").state == "unloaded")
        assert not any(t.fleet.reserved.values())


async def test_unloading_lets_answers_finish_and_gives_all_memory_back(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={}) as t:
        await t.ask("a")
        pid = t.status("a").worker_pid
        answer = asyncio.create_task(t.ask("a", 500))
        await t.until(lambda: t.fleet.replica("a").num_in_flight == 1)
        await asyncio.gather(t.fleet.unload("a", drain_s=30), t.fleet.unload("a", drain_s=30))
        assert (await answer).usage.completion_tokens == 500
        assert pid is not None and not psutil.pid_exists(pid) and not any(t.fleet.reserved.values())
        await t.fleet.load("a", wait_s=PATIENCE_S)
        assert t.status("a").state == "ready"


async def test_unloading_ends_a_load_under_way(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={}) as t:
        await t.until(lambda: t.status("a").worker_pid is not None)
        await t.fleet.unload("a", drain_s=0)
        assert t.status("a").state == "unloaded" and t.status("a").worker_pid is None


async def test_a_lost_worker_takes_its_reservation_along_and_gets_another(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={}) as t:
        await t.ask("a")
        held = dict(t.fleet.reserved)
        pid = t.status("a").worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await t.until(lambda: not t.providers["a"].is_ready())
        assert (await t.ask("a")).usage.completion_tokens == 3
        assert t.status("a").restarts == 1
        assert sum(t.fleet.reserved.values()) == pytest.approx(sum(held.values()), rel=0.1)


async def test_a_worker_stands_by_while_a_model_is_unloaded_and_takes_it(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, standby=2, a=LATER) as t:
        await t.until(lambda: len(t.fleet.standby_pids) == 1)
        [pid] = t.fleet.standby_pids
        await t.ask("a")
        assert t.status("a").worker_pid == pid and not t.fleet.standby_pids
        await t.fleet.unload("a", drain_s=0)
        await t.until(lambda: len(t.fleet.standby_pids) == 1)
        [lost] = t.fleet.standby_pids
        os.kill(lost, signal.SIGKILL)
        assert (await t.ask("a")).usage.completion_tokens == 3, "one that has died is passed over"
    assert not psutil.pid_exists(lost)


def busy(t: Town, count: int, max_tokens: int = 1500) -> list[asyncio.Task[Completion]]:
    """Ask `a` for long answers, as if it had been loaded for a while."""
    t.fleet.replica("a")._record.ready_at -= 60
    return [asyncio.create_task(t.ask("a", max_tokens)) for _ in range(count)]


async def test_however_often_it_is_unloaded_at_once_there_is_one_worker_and_one_owner(
    tiny_model: Path, needed: Needs
) -> None:
    async with town(tiny_model, needed, 1.5, a=LATER) as t:
        t.fleet.want("a")
        await t.until(lambda: t.status("a").worker_pid is not None)
        first = asyncio.create_task(t.fleet.unload("a", drain_s=30))
        await asyncio.sleep(0)
        await t.fleet.unload("a", drain_s=30)
        asking = asyncio.create_task(t.ask("a"))
        await first
        assert (await asking).usage.completion_tokens == 3
        assert sum(task.get_name() == "supervise a" for task in asyncio.all_tasks()) == 1


async def test_who_drains_for_somebody_that_gives_up_goes_on(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={}, b=LATER) as t:
        await t.ask("a")
        long = busy(t, 16)
        other = asyncio.create_task(t.ask("b"))
        await t.until(lambda: t.status("a").state == "draining")
        assert not t.status("a").is_expected, "a drain does not hold readiness up"
        await t.fleet.unload("b", drain_s=0)
        with pytest.raises(ModelUnavailable):
            await other
        await asyncio.gather(*long)
        assert (await t.ask("a")).usage.completion_tokens == 3 and t.status("a").load.count == 1


async def test_who_is_pinned_while_it_drains_stays(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a={}, b=LATER) as t:
        await t.ask("a")
        long = busy(t, 16)
        other = asyncio.create_task(t.ask("b"))
        await t.until(lambda: t.status("a").state == "draining")
        t.fleet.pin("a")
        with pytest.raises(ModelUnavailable):
            await other
        await asyncio.gather(*long)
        assert t.status("a").load.count == 1 and t.status("a").state == "ready"


async def test_the_room_of_who_was_ended_for_another_comes_back_though_that_one_gave_up(
    tiny_model: Path, needed: Needs
) -> None:
    async with town(tiny_model, needed, 1.5, a={}, b=LATER) as t:
        await t.ask("a")
        t.fleet.want("b")
        await t.until(lambda: t.fleet.replica("a").is_leaving or t.status("a").state == "unloaded")
        await t.fleet.unload("b", drain_s=0)
        await t.until(lambda: t.status("a").state == "unloaded" and not any(t.fleet.reserved.values()))
        assert (await t.ask("b")).usage.completion_tokens == 3


async def test_who_waits_for_a_model_that_is_unloaded_for_good_is_told(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 1.5, a=LATER) as t:
        for end in (t.fleet.unload("a", drain_s=0), t.fleet.stop()):
            waiting = asyncio.create_task(t.fleet.ready("a", wait_s=PATIENCE_S))
            await t.until(lambda: t.status("a").worker_pid is not None)
            await end
            with pytest.raises(ModelUnavailable):
                await waiting
            assert t.status("a").state == "unloaded" and t.status("a").worker_pid is None


async def test_who_fits_does_not_wait_behind_who_does_not(tiny_model: Path, needed: Needs) -> None:
    async with town(tiny_model, needed, 2.2, a={}, b={"besides_bytes": needed.total_bytes, **LATER}, c=LATER) as t:
        await t.ask("a")
        long = busy(t, 64, 1900)
        other = asyncio.create_task(t.ask("b"))
        await t.until(lambda: t.status("a").state == "draining")
        assert (await t.ask("c")).usage.completion_tokens == 3
        assert not all(task.done() for task in long)
        await asyncio.gather(*long, other)


async def test_a_load_that_fails_again_and_again_sends_nobody_away_for_itself(
    tiny_model: Path, needed: Needs, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Connection.load

    async def fails_second(self: Connection, *args: Any, **more: Any) -> ModelInfo:
        if self is t.fleet.replica("a")._connection and t.status("a").load.count == 1:
            raise LoadFailed("the disk is tired")
        return await load(self, *args, **more)

    monkeypatch.setattr(Connection, "load", fails_second)
    async with town(tiny_model, needed, 1.5, a=LATER, b=LATER) as t:
        await t.ask("a")
        await t.ask("b")
        with pytest.raises(ModelUnavailable):
            await t.fleet.ready("a", wait_s=1)
        await t.ask("b")
        evictions = dict(t.fleet.evictions)
        await t.until(lambda: t.status("a").state == "unloaded")
        assert t.fleet.evictions == evictions and t.status("b").state == "ready"
        assert "can be had" in (t.status("a").error or "")
