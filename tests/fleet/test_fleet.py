"""Real worker processes with a tiny real model: served, killed, frozen, replaced."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from ocak.core.errors import ContextLengthExceeded, InvalidRequest, ModelUnavailable, WorkerLost
from ocak.core.events import Delta, Finished, Started
from ocak.core.request import (
    ChatPrompt,
    GenerateRequest,
    InfillPrompt,
    Message,
    Prompt,
    Sampling,
    Stopping,
    TextPrompt,
    TokenPrompt,
)
from ocak.core.status import ModelStatus
from ocak.fleet.fleet import Fleet, ModelSpec
from ocak.fleet.policy import MAX_FAILED_STARTS
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Gateway, ServedModel
from ocak.providers.local import LocalProvider
from ocak.worker.messages import LoadOptions

PATIENCE_S = 30.0
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
FRONT = """
import asyncio
from ocak.fleet.policy import MAX_FAILED_STARTS
from ocak.fleet.fleet import Fleet, ModelSpec
from ocak.worker.messages import LoadOptions

async def main():
    fleet = Fleet([ModelSpec("m", {})])
    await fleet.start()
    while not (pid := fleet.replica("m").status().worker_pid) or not fleet.replica("m").status().memory.resident:
        await asyncio.sleep(0.02)
    print(pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
NEVER_ENDS = Stopping(max_tokens=2000, ignore_eos=True)


class House:
    """A fleet with one model, and the gateway in front of it."""

    def __init__(self, options: LoadOptions) -> None:
        self.fleet = Fleet([ModelSpec("tiny", options)])
        self.provider = LocalProvider(self.fleet, "tiny")
        admission = Admission(QueueLimits(parallel=options.parallel, max_queued=100))
        self.gateway = Gateway([ServedModel("tiny", self.provider, admission)])
        self.admission = admission

    @property
    def status(self) -> ModelStatus:
        return self.provider.status()

    @property
    def pid(self) -> int:
        pid = self.status.worker_pid
        assert pid is not None
        return pid

    def request(self, prompt: Prompt, stopping: Stopping = NEVER_ENDS, **rest: object) -> GenerateRequest:
        return GenerateRequest(
            id="r",
            model="tiny",
            prompt=prompt,
            stopping=stopping,
            sampling=Sampling(temperature=0),
            **rest,  # type: ignore[arg-type]
        )

    async def until(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> float:
        """Wait for a condition; return how long it took."""
        started = time.monotonic()
        while not condition():
            assert time.monotonic() - started < seconds, f"not within {seconds} s: {self.status}"
            await asyncio.sleep(0.02)
        return time.monotonic() - started


@asynccontextmanager
async def house(model: Path, **options: object) -> AsyncIterator[House]:
    built = House(LoadOptions(path=str(model), **({"context": 2048, "parallel": 2} | options)))  # type: ignore[arg-type]
    await built.fleet.start()
    try:
        await built.fleet.wait_ready("tiny", wait_s=PATIENCE_S)
        yield built
    finally:
        await built.fleet.stop()


async def test_an_answer_has_a_start_text_and_an_end(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        request = h.request(TextPrompt("hello"), Stopping(max_tokens=5, ignore_eos=True))
        events = [event async for event in h.gateway.stream(request)]
        assert isinstance(events[0], Started) and events[0].prompt_tokens == 5
        end = events[-1]
        assert isinstance(end, Finished) and end.reason == "length" and end.usage.completion_tokens == 5
        assert sum(e.num_tokens for e in events if isinstance(e, Delta)) <= 5


async def test_log_probabilities_cross_from_the_worker_with_the_text(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        stopping = Stopping(max_tokens=40, ignore_eos=True)
        request = h.request(TextPrompt("hello"), stopping, logprobs=4)
        answer = await h.gateway.complete(request)
        events = [event async for event in h.gateway.stream(request)]
        plain = await h.gateway.complete(h.request(TextPrompt("hello"), stopping))
    assert answer.logprobs is not None and len(answer.logprobs) == answer.usage.completion_tokens == 40
    assert b"".join(t.token.piece for t in answer.logprobs).decode("utf-8", "replace") == answer.text == plain.text
    assert all(t.likeliest[0] == t.token and len(t.likeliest) == 4 for t in answer.logprobs)
    streamed = [t for e in events if isinstance(e, Delta) for t in e.logprobs]
    assert [t.token.piece for t in streamed] == [t.token.piece for t in answer.logprobs]
    values = [[t.token.logprob for t in told] for told in (streamed, answer.logprobs)]
    assert values[0] == pytest.approx(values[1], abs=0.02), "the second prompt was found computed, and guessed for"
    assert plain.logprobs is None


async def test_every_kind_of_prompt_is_read(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        short = Stopping(max_tokens=2, ignore_eos=True)
        for prompt in (
            TextPrompt("çay ve \0 NUL 😀"),
            TokenPrompt((1, 2, 3)),
            ChatPrompt((Message("user", "hi"),)),
            InfillPrompt("def f(", "): pass"),
        ):
            completion = await h.gateway.complete(h.request(prompt, short))
            assert completion.usage.completion_tokens == 2


async def test_echo_puts_the_prompt_before_the_answer(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        plain = await h.gateway.complete(h.request(TextPrompt("hello"), Stopping(max_tokens=3, ignore_eos=True)))
        echoed = await h.gateway.complete(
            h.request(TextPrompt("hello"), Stopping(max_tokens=3, ignore_eos=True), echo=True)
        )
        assert echoed.text == "hello" + plain.text


async def test_bad_prompts_are_refused_and_harm_nobody(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        bystander = asyncio.create_task(
            h.gateway.complete(h.request(TextPrompt("bystander"), Stopping(max_tokens=200, ignore_eos=True)))
        )
        for prompt in (TokenPrompt((-1,)), TokenPrompt((10**6,)), TokenPrompt(()), TextPrompt("")):
            with pytest.raises(InvalidRequest):
                await h.gateway.complete(h.request(prompt))
        with pytest.raises(ContextLengthExceeded, match=r"3000 tokens.*2048"):
            await h.gateway.complete(h.request(TokenPrompt((65,) * 3000)))
        biased = GenerateRequest(
            id="r", model="tiny", prompt=TextPrompt("x"), sampling=Sampling(logit_bias={10**6: 1.0})
        )
        with pytest.raises(InvalidRequest, match="logit_bias"):
            await h.gateway.complete(biased)
        assert (await bystander).usage.completion_tokens == 200


async def test_a_reader_who_leaves_frees_the_slot_and_the_next_one_takes_it(tiny_model: Path) -> None:
    async with house(tiny_model, parallel=1) as h:
        async with aclosing(h.gateway.stream(h.request(TextPrompt("one")))) as events:
            async for event in events:
                if isinstance(event, Delta):
                    break
            waiting = asyncio.create_task(
                h.gateway.complete(h.request(TextPrompt("two"), Stopping(max_tokens=2, ignore_eos=True)))
            )
        assert (await asyncio.wait_for(waiting, 5)).usage.completion_tokens == 2
        await h.until(lambda: h.status.engine.slots_used == 0)
        assert h.status.engine.kv_cells_used == 0
        assert h.admission.in_flight == 0


async def test_a_killed_worker_comes_back_and_everyone_gets_an_answer_or_an_error(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        whole = [
            asyncio.create_task(
                h.gateway.complete(h.request(TextPrompt(f"w{i}"), Stopping(max_tokens=400, ignore_eos=True)))
            )
            for i in range(4)
        ]
        streams = [asyncio.create_task(_collect(h, f"s{i}")) for i in range(4)]
        await h.until(lambda: h.status.engine.slots_used == 2)
        old = h.pid
        os.kill(old, signal.SIGKILL)
        await h.until(lambda: not h.provider.is_ready())
        assert (await h.until(h.provider.is_ready)) < 10
        assert h.pid != old and h.status.restarts == 1
        for completion in await asyncio.wait_for(asyncio.gather(*whole), PATIENCE_S):
            assert completion.usage.completion_tokens == 400
        for outcome in await asyncio.wait_for(asyncio.gather(*streams, return_exceptions=True), PATIENCE_S):
            assert isinstance(outcome, (WorkerLost, Finished)), outcome


async def _collect(h: House, prompt: str) -> Finished:
    last = None
    async for event in h.gateway.stream(h.request(TextPrompt(prompt), Stopping(max_tokens=400, ignore_eos=True))):
        last = event
    assert isinstance(last, Finished)
    return last


async def test_a_frozen_worker_is_not_ready_within_five_seconds_and_then_replaced(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        request = asyncio.create_task(
            h.gateway.complete(h.request(TextPrompt("x"), Stopping(max_tokens=50, ignore_eos=True)))
        )
        old = h.pid
        os.kill(old, signal.SIGSTOP)
        assert (await h.until(lambda: not h.provider.is_ready())) < 5
        await h.until(h.provider.is_ready)
        assert h.pid != old and not psutil.pid_exists(old)
        assert (await request).usage.completion_tokens == 50


async def test_a_worker_that_keeps_dying_is_brought_back_each_time(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        for _ in range(MAX_FAILED_STARTS + 1):
            os.kill(h.pid, signal.SIGKILL)
            await h.until(lambda: not h.provider.is_ready())
            await h.until(h.provider.is_ready)
        assert h.status.restarts == MAX_FAILED_STARTS + 1


async def test_a_file_that_is_back_is_served_again(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copy(tiny_model, model)
    async with house(model) as h:
        model.rename(tmp_path / "away.gguf")
        os.kill(h.pid, signal.SIGKILL)
        await h.until(lambda: "model.gguf" in (h.status.error or ""))
        (tmp_path / "away.gguf").rename(model)
        await h.until(h.provider.is_ready)


async def test_a_cancel_right_behind_its_request_is_not_lost(tiny_model: Path) -> None:
    async with house(tiny_model, parallel=4) as h:

        async def leave_after(turns: int, prompt: Prompt) -> None:
            reading = asyncio.create_task(h.gateway.complete(h.request(prompt)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.sleep(turns * 1e-5)
            reading.cancel()

        for turns in range(60):
            await asyncio.gather(
                *(leave_after(turns, prompt) for prompt in (TextPrompt("x"), TokenPrompt((1, 2))))
            )
        await h.until(lambda: h.status.engine.slots_used == 0 and h.status.engine.waiting == 0, seconds=3)
        assert h.admission.in_flight == 0


async def test_a_template_that_hangs_at_load_fails_the_load_with_the_reason(tiny_model: Path) -> None:
    h = House(LoadOptions(path=str(tiny_model), chat_template=ENDLESS))
    await h.fleet.start()
    with pytest.raises(ModelUnavailable, match="template has not returned"):
        await h.fleet.wait_ready("tiny", wait_s=PATIENCE_S)
    await h.fleet.stop()


async def test_a_template_that_hangs_on_a_message_costs_a_restart_and_that_request(tiny_model: Path) -> None:
    template = "{% if messages[0].content == 'hang' %}" + ENDLESS + "{% endif %}x"
    async with house(tiny_model, chat_template=template) as h:
        with pytest.raises(WorkerLost, match="template"):
            await h.gateway.complete(h.request(ChatPrompt((Message("user", "hang"),))))
        await h.until(h.provider.is_ready)
        request = h.request(ChatPrompt((Message("user", "go on"),)), Stopping(max_tokens=3, ignore_eos=True))
        assert (await h.gateway.complete(request)).usage.completion_tokens == 3


async def test_a_template_that_fails_is_the_requests_error(tiny_model: Path) -> None:
    template = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
    async with house(tiny_model, chat_template=template) as h:
        with pytest.raises(InvalidRequest, match="template"):
            await h.gateway.complete(h.request(ChatPrompt((Message("user", "x"),))))


async def test_a_stopped_worker_with_unread_requests_does_not_hold_up_the_end(tiny_model: Path) -> None:
    h = House(LoadOptions(path=str(tiny_model)))
    await h.fleet.start()
    await h.fleet.wait_ready("tiny", wait_s=PATIENCE_S)
    pid = h.pid
    os.kill(pid, signal.SIGSTOP)
    asking = [asyncio.create_task(h.gateway.complete(h.request(TextPrompt("x" * 4_000_000)))) for _ in range(4)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.wait_for(h.fleet.stop(), 8)
    assert not psutil.pid_exists(pid)


async def test_a_worker_ends_with_its_front_even_while_loading_or_stopped(tiny_model: Path) -> None:
    for options in (
        f"LoadOptions(path={str(tiny_model)!r})",
        f"LoadOptions(path={str(tiny_model)!r}, chat_template={ENDLESS!r})",
    ):
        front = await asyncio.create_subprocess_exec(
            sys.executable, "-c", FRONT.format(options), stdout=asyncio.subprocess.PIPE
        )
        assert front.stdout is not None
        pid = int(await front.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        front.kill()
        await front.wait()
        deadline = time.monotonic() + 5
        while psutil.pid_exists(pid):
            assert time.monotonic() < deadline, "the worker outlives its front"
            await asyncio.sleep(0.02)


async def test_files_beside_the_caller_are_not_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('foreign code')")
    monkeypatch.chdir(tmp_path)
    async with house(tiny_model) as h:
        assert h.status.restarts == 0


async def test_a_model_that_cannot_be_loaded_fails_with_the_reason(tmp_path: Path, tiny_model: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:5000])
    for options, reason in (
        ({"path": str(broken)}, "broken.gguf"),
        ({"path": str(tiny_model), "context": 10**6}, "trained"),
        ({"path": str(tiny_model), "kv_cells": 100, "context": 512}, "kv_cells 100"),
        ({"path": str(tiny_model), "parallel": 1000}, "parallel"),
        ({"path": str(tiny_model), "context": 1}, "context 1"),
        ({"path": str(tiny_model), "chat_template": "{% if %}"}, "chat template"),
    ):
        h = House(LoadOptions(**options))  # type: ignore[arg-type]
        await h.fleet.start()
        with pytest.raises(ModelUnavailable, match=reason):
            await h.fleet.wait_ready("tiny", wait_s=PATIENCE_S)
        assert h.status.state == "failed" and not h.provider.is_ready()
        await h.fleet.stop()


async def test_a_signal_to_the_whole_group_does_not_end_a_worker(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(h.pid, number)
        request = h.request(TextPrompt("x"), Stopping(max_tokens=3, ignore_eos=True))
        assert (await h.gateway.complete(request)).usage.completion_tokens == 3
        assert h.status.restarts == 0


async def test_no_worker_outlives_the_fleet(tiny_model: Path) -> None:
    async with house(tiny_model) as h:
        pid = h.pid
    assert not psutil.pid_exists(pid)


async def test_shared_cells_serve_more_than_fits_at_once(tiny_model: Path) -> None:
    stopping = Stopping(max_tokens=150, ignore_eos=True)
    async with house(tiny_model, context=256, parallel=4, kv_cells=256) as h:
        answers = await asyncio.gather(
            *(h.gateway.complete(h.request(TextPrompt(f"prompt {i}" * 5), stopping)) for i in range(8))
        )
        assert all(answer.usage.completion_tokens == 150 for answer in answers)
        assert h.status.engine.preemptions > 0
        await h.until(lambda: h.status.engine.slots_used == 0)
