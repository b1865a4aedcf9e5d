"""The kernels' threads keep apart, and let go when others need a core."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ocak.llama import affinity
from ocak.llama.affinity import Team
from ocak.memory.devices import cores

pytestmark = pytest.mark.skipif(not affinity.TASKS.is_dir(), reason="affinity is Linux's")


@pytest.fixture
def engine_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def members(monkeypatch: pytest.MonkeyPatch, stop: threading.Event) -> list[int]:
    """As many threads beside the engine's as fill the cores, which pass for the kernels'."""
    threads = [threading.Thread(target=stop.wait) for _ in range(len(cores()) - 1)]
    for thread in threads:
        thread.start()
    found = [thread.native_id for thread in threads if thread.native_id is not None]
    monkeypatch.setattr(affinity, "_kernel_threads", lambda: found)
    return found


def test_each_thread_has_a_core_of_its_own_until_they_are_let_go(
    engine_thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    others = members(monkeypatch, stop)
    team = Team(len(cores()))
    mine = engine_thread.submit(threading.get_native_id).result()
    try:
        engine_thread.submit(team.spread).result()
        held = [os.sched_getaffinity(thread) for thread in (mine, *others)]
        assert all(len(one) == 1 for one in held) and set.union(*held) == cores()
        team.loosen()
        assert all(os.sched_getaffinity(thread) == cores() for thread in (mine, *others))
    finally:
        stop.set()


def test_a_team_that_is_not_as_many_as_the_cores_is_left_alone(
    engine_thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(affinity, "_kernel_threads", lambda: [])
    for size in (len(cores()) + 1, len(cores()) if len(cores()) > 1 else 2):
        engine_thread.submit(Team(size).spread).result()
        assert engine_thread.submit(lambda: os.sched_getaffinity(0)).result() == cores()


def test_the_first_thread_of_a_process_is_never_held() -> None:
    Team(1).spread()
    assert os.sched_getaffinity(0) == cores()


def test_threads_that_ended_are_no_error() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    assert thread.native_id is not None
    team = Team(1)
    team._held = [thread.native_id]
    team.loosen()


def test_pythons_own_threads_are_not_the_kernels() -> None:
    with ThreadPoolExecutor(1) as pool:
        known = pool.submit(threading.get_native_id).result()
        assert known not in affinity._kernel_threads()
