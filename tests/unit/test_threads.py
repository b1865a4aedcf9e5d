"""Threads make room for other processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.llama.threads import STALE_S, TASKS, WINDOW_S, Usage, threads_beside
from ocak.memory.devices import cores

counts = st.integers(1, 64)


@given(st.floats(0, 100), counts, counts, counts)
def test_threads_are_never_more_than_asked_for_nor_fewer_than_one(
    others: float, num_cores: int, most: int, current: int
) -> None:
    assert 1 <= threads_beside(others, num_cores, most, current) <= most


@given(st.integers(0, 64), counts, counts)
def test_each_core_that_others_keep_busy_costs_a_thread(others: int, num_cores: int, current: int) -> None:
    assert threads_beside(others, num_cores, num_cores, current) == max(1, num_cores - others)


def test_half_a_core_changes_nothing() -> None:
    assert [threads_beside(0.5, 2, 2, current) for current in (1, 2)] == [1, 2]
    assert [threads_beside(0.3, 2, 2, current) for current in (1, 2)] == [2, 2]


def test_the_use_of_other_processes_is_seen_and_ones_own_is_not() -> None:
    usage = Usage()
    assert usage.others() is None
    spin = f"import time; end = time.time() + {4 * WINDOW_S}\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]):
        time.sleep(2 * WINDOW_S)
        others = usage.others()
    assert others is not None and 0.3 < others <= len(cores()) + 0.1


@pytest.mark.skipif(not TASKS.is_dir(), reason="Linux keeps the account")
def test_who_shares_a_core_with_a_held_thread_is_seen_to_want_all_of_it() -> None:
    core = min(cores())
    spin = f"import os, time; os.sched_setaffinity(0, {{{core}}}); end = time.time() + {4 * WINDOW_S}"
    seen: list[float | None] = []

    def work() -> None:
        os.sched_setaffinity(0, {core})
        end = time.monotonic() + 2 * WINDOW_S
        while time.monotonic() < end:
            pass
        seen.append(usage.others())

    with subprocess.Popen([sys.executable, "-c", f"{spin}\nwhile time.time() < end: pass"]):
        time.sleep(WINDOW_S)  # until it runs
        usage = Usage()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen[0] is not None and 0.75 < seen[0] <= len(cores()) + 0.1


def test_a_load_that_was_there_while_the_engine_was_idle_is_not_held_against_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, busy = 0.0, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Usage, "_busy_s", lambda _usage: busy)
    usage = Usage()
    now, busy = STALE_S, 2 * STALE_S  # two cores, until a moment ago
    assert usage.others() is None
    now += WINDOW_S
    assert usage.others() == 0.0
