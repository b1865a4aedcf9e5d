"""Admission, keys, limits and errors: the small pure parts of the door."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.api.samplers_wire import NUMBERS
from ocak.core import errors
from ocak.core.errors import InvalidRequest, Overloaded, Unauthorized, from_wire, to_wire
from ocak.core.limits import check_sampling, check_stopping, check_text
from ocak.core.request import (
    DEFAULT_TENANT,
    ChatPrompt,
    Message,
    Sampling,
    Stopping,
    TextPrompt,
    TokenPrompt,
    prompt_bytes,
)
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.keys import KeyRing


def test_beyond_the_queue_a_request_is_refused_at_once_and_told_when_to_return() -> None:
    admission = Admission(QueueLimits(parallel=2, max_queued=1))
    for _ in range(3):
        admission.enter(10)
    with pytest.raises(Overloaded) as refusal:
        admission.enter(10)
    assert refusal.value.retry_after_s is not None and refusal.value.retry_after_s >= 1
    admission.leave(10, 0.5)
    admission.enter(10)


def test_the_queue_is_bounded_in_bytes_but_one_large_prompt_may_come_alone() -> None:
    admission = Admission(QueueLimits(parallel=2, max_queued_bytes=100))
    admission.enter(500)
    with pytest.raises(Overloaded, match="bytes"):
        admission.enter(1)


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100)), max_size=30))
def test_entering_and_leaving_balance(requests: list[tuple[int, float]]) -> None:
    admission = Admission(QueueLimits(parallel=100))
    for size, _ in requests:
        admission.enter(size)
    for size, seconds in requests:
        admission.leave(size, seconds)
    assert (admission.in_flight, admission.bytes_in_flight) == (0, 0)
    assert admission.wait_estimate_s >= 1


def test_an_open_ring_lets_everyone_in_and_a_closed_one_only_its_keys() -> None:
    assert KeyRing().tenant(None) == DEFAULT_TENANT
    ring = KeyRing(["one", "two"])
    assert ring.tenant("one") != ring.tenant("two") != DEFAULT_TENANT
    for wrong in (None, "", "ONE", "one ", "\udc80"):
        with pytest.raises(Unauthorized):
            ring.tenant(wrong)


def test_a_ring_keeps_no_key_in_clear() -> None:
    assert "s3cret" not in repr(vars(KeyRing(["s3cret"])))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2**40),
        ("top_k", 10**400),
        ("min_p", -1.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("seed", -1),
        ("seed", 2**32),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 1e9}),
        ("logit_bias", dict.fromkeys(range(2000), 1.0)),
        *((name, value) for name in NUMBERS for value in (math.nan, math.inf, -math.inf, -1.5, 1e30)),
        ("mirostat", 3),
        ("dry_base", 0.99),
        ("adaptive_decay", 1.0),
        ("dry_penalty_last_n", 2**31),
        ("samplers", ("top_k", "guesswork")),
        ("samplers", ("infill", "top_k")),
        ("samplers", ("top_p", "infill")),
        ("samplers", ("top_k",) * 17),
        ("dry_sequence_breakers", ("",)),
        ("dry_sequence_breakers", ("a\0b",)),
        ("dry_sequence_breakers", ("x" * 41,)),
        ("dry_sequence_breakers", ("x",) * 17),
        ("bad_words", ("",)),
        ("bad_words", ("a\ud800",)),
        ("bad_words", ("x" * 257,)),
        ("bad_words", ("x",) * 129),
        ("allowed_token_ids", ()),
        ("allowed_token_ids", (-1,)),
        ("allowed_token_ids", (2**31,)),
        ("allowed_token_ids", (1,) * 16385),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_sampling(Sampling(**{field: value}))  # type: ignore[arg-type]
    assert refusal.value.param == field and field in refusal.value.message


@pytest.mark.parametrize(("top_k", "is_allowed"), [(0, False), (1, True), (128, True), (129, False)])
def test_infill_is_refused_where_it_would_compare_too_many_candidates(top_k: int, is_allowed: bool) -> None:
    sampling = Sampling(top_k=top_k, samplers=("top_k", "infill"))
    check_sampling(msgspec.structs.replace(sampling, mirostat=1))  # which goes without infill
    if is_allowed:
        check_sampling(sampling)
        return
    with pytest.raises(InvalidRequest, match="1 to 128") as refusal:
        check_sampling(sampling)
    assert refusal.value.param == "top_k"


@pytest.mark.parametrize(
    "stopping",
    [
        Stopping(max_tokens=0),
        Stopping(stop=("",)),
        Stopping(stop=("x",) * 17),
        Stopping(stop=("x" * 2000,)),
        Stopping(min_tokens=-1),
        Stopping(min_tokens=2**31),
        Stopping(min_tokens=9, max_tokens=8),
        Stopping(stop_token_ids=(-1,)),
        Stopping(stop_token_ids=(2**31,)),
        Stopping(stop_token_ids=(1,) * 1025),
    ],
)
def test_stopping_out_of_range_is_refused(stopping: Stopping) -> None:
    with pytest.raises(InvalidRequest):
        check_stopping(stopping)


def test_lone_surrogates_are_refused_and_nul_is_text() -> None:
    check_text("a\0b", "prompt")
    with pytest.raises(InvalidRequest, match="surrogate"):
        check_text("a\ud800b", "prompt")


@pytest.mark.parametrize(
    "kind", [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.OcakError)]
)
def test_every_error_survives_the_wire(kind: type[errors.OcakError]) -> None:
    back = from_wire(to_wire(kind("why", param="field", retry_after_s=2.0)))
    assert type(back) is kind
    assert (back.message, back.param, back.retry_after_s) == ("why", "field", 2.0)


def test_prompt_bytes_bound_the_tokens() -> None:
    assert prompt_bytes(TextPrompt("é")) == 2
    assert prompt_bytes(TokenPrompt((1, 2, 3))) == 3
    assert prompt_bytes(ChatPrompt((Message("user", "hi"),))) == 6
