"""When a worker is ready, replaced, restarted."""

import signal

from hypothesis import given
from hypothesis import strategies as st

from ocak.fleet.policy import (
    MAX_DELAY_S,
    MAX_FAILED_STARTS,
    SILENT_REPLACED_S,
    STABLE_S,
    Pulse,
    early_ends,
    restart_delay_s,
)
from ocak.fleet.process import describe_exit


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 1000))
def test_a_worker_is_not_ready_before_it_is_replaced(silence_s: float, step_s: float, template_s: float) -> None:
    pulse = Pulse(silence_s, step_s, template_s)
    if silence_s >= SILENT_REPLACED_S or template_s >= 5:
        assert not pulse.is_alive and pulse.replacement_reason


def test_a_frozen_worker_is_not_ready_within_five_seconds() -> None:
    assert not Pulse(silence_s=4.0).is_alive


def test_a_busy_worker_is_neither_dead_nor_replaced() -> None:
    pulse = Pulse(silence_s=0.6, step_s=30)
    assert pulse.is_alive and pulse.replacement_reason is None


def test_a_worker_that_hangs_in_one_step_is_replaced() -> None:
    assert "stuck" in (Pulse(silence_s=0.1, step_s=200).replacement_reason or "")


def test_a_worker_may_take_its_time_to_the_first_word() -> None:
    assert Pulse(silence_s=60, has_spoken=False).replacement_reason is None
    assert Pulse(silence_s=600, has_spoken=False).replacement_reason


def test_the_first_restart_is_at_once_and_the_delays_grow_to_a_bound() -> None:
    delays = [restart_delay_s(n, has_ever_been_ready=True) for n in range(1, 100)]
    assert delays[0] == 0 and delays == sorted(delays, key=lambda d: d or 0)
    assert all(d is not None and d <= MAX_DELAY_S for d in delays)


def test_only_a_model_that_never_came_up_is_given_up() -> None:
    assert restart_delay_s(MAX_FAILED_STARTS + 1, has_ever_been_ready=False) is None
    assert restart_delay_s(MAX_FAILED_STARTS, has_ever_been_ready=False) is not None


def test_a_worker_that_was_stable_starts_the_count_again() -> None:
    assert early_ends(4, STABLE_S + 1) == 1
    assert early_ends(4, 1.0) == 5


def test_exits_are_described_in_words() -> None:
    assert "SIGKILL" in describe_exit(-9) and "memory" in describe_exit(-9)
    assert "SIGBUS" in describe_exit(-signal.SIGBUS) and "cut" in describe_exit(-signal.SIGBUS)
    assert describe_exit(3) == "the worker exited with status 3"
