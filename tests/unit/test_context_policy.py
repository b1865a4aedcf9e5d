"""What becomes of a prompt that does not fit: the worker's decision, from the request and the model's settings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.core.errors import ContextLengthExceeded, InvalidRequest, LoadFailed
from ocak.core.request import ContextPolicy, GenerateRequest, Stopping, TokenPrompt
from ocak.engine.window import Window, most_kept
from ocak.worker.fitting import ContextRules, check_context, check_length, context_rules, fit

CONTEXT = 256
policies = st.sampled_from(["error", "shift", "truncate"])


def rules(policy: ContextPolicy = "error", num_keep: int = 64, *, can_shift: bool = True) -> ContextRules:
    return ContextRules(CONTEXT, policy, num_keep, can_shift)


def request(
    policy: ContextPolicy | None = None, n_keep: int | None = None, max_tokens: int | None = None
) -> GenerateRequest:
    return GenerateRequest(
        id="",
        model="m",
        prompt=TokenPrompt((1,)),
        stopping=Stopping(max_tokens=max_tokens),
        context_policy=policy,
        n_keep=n_keep,
    )


def test_a_prompt_that_is_too_long_is_refused_with_the_setting_that_helps() -> None:
    with pytest.raises(
        ContextLengthExceeded, match=r"256 tokens.*context_policy shift or truncate \(--context-policy\)"
    ):
        check_length(CONTEXT, request(), rules())
    with pytest.raises(ContextLengthExceeded, match=r"context_policy truncate \(--context-policy\)"):
        check_length(CONTEXT, request(), rules(can_shift=False))
    check_length(CONTEXT - 1, request(), rules())
    check_length(10**6, request("shift"), rules())
    check_length(10**6, request(), rules("truncate"))
    with pytest.raises(ContextLengthExceeded):
        check_length(CONTEXT, request("error"), rules("shift"))


@pytest.mark.parametrize("policy", ["error", "shift", "truncate"])
def test_an_empty_prompt_is_refused_whatever_the_policy(policy: ContextPolicy) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        check_length(0, request(policy), rules())


def test_a_model_that_cannot_shift_says_so() -> None:
    with pytest.raises(InvalidRequest, match="cannot shift.*send context_policy truncate or error") as caught:
        check_context(request("shift"), rules(can_shift=False))
    assert caught.value.param == "context_policy"
    check_context(request("truncate"), rules(can_shift=False))
    with pytest.raises(LoadFailed, match="cannot shift.*--context-policy"):
        context_rules(CONTEXT, "shift", -1, can_shift=False)


def test_what_is_kept_must_leave_room_for_the_rest() -> None:
    with pytest.raises(
        InvalidRequest, match="n_keep must be between 0 and 127, less than half of the context"
    ) as caught:
        check_context(request("shift", n_keep=128), rules())
    assert caught.value.param == "n_keep"
    check_context(request("shift", n_keep=127), rules())
    with pytest.raises(LoadFailed, match="set --n-keep 127 or less"):
        context_rules(CONTEXT, "error", 128, can_shift=True)


@given(st.integers(2, 5000), policies)
def test_a_quarter_is_kept_unless_told_otherwise_and_every_context_can_shift(
    context: int, policy: ContextPolicy
) -> None:
    made = context_rules(context, policy, -1, can_shift=True)
    assert made.num_keep <= context // 4
    assert Window(context, made.num_keep).step >= 1
    assert Window(context, most_kept(context)).step >= 1


@given(st.integers(1, 2000), st.integers(0, most_kept(CONTEXT)), st.none() | st.integers(1, 5000))
def test_truncating_takes_the_middle_alone_and_leaves_room_for_the_answer(
    length: int, n_keep: int, max_tokens: int | None
) -> None:
    tokens = list(range(length))
    fitted = fit(tokens, request("truncate", n_keep, max_tokens), rules())
    assert fitted.num_dropped == length - len(fitted.tokens)
    if length < CONTEXT:
        assert fitted.tokens == tokens, "what fits is never touched"
        return
    tail = len(fitted.tokens) - n_keep
    assert fitted.tokens == tokens[:n_keep] + tokens[length - tail :] and tail >= CONTEXT // 4
    assert CONTEXT - len(fitted.tokens) == min(CONTEXT // 4, max_tokens or CONTEXT)
    assert fitted.window is None


def test_a_request_goes_before_the_models_settings() -> None:
    tokens = list(range(1000))
    assert fit(tokens, request(), rules("shift")).window == Window(CONTEXT, 64)
    assert fit(tokens, request(n_keep=3), rules("shift")).window == Window(CONTEXT, 3)
    assert fit(tokens, request("truncate"), rules("shift")).window is None
    assert fit(tokens[:200], request("error"), rules("shift")).window is None


def test_what_is_kept_is_never_more_than_the_prompt() -> None:
    assert fit([1, 2, 3], request("shift"), rules()).window == Window(CONTEXT, 3)
