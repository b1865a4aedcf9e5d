"""Decides how a prompt and its answer meet the context: refused, shifted or truncated. Pure; knows no text.

A prompt that fits is never touched. What is dropped is counted, and whoever asked is told.
"""

from __future__ import annotations

from dataclasses import dataclass

from ocak.core.errors import ContextLengthExceeded, InvalidRequest, LoadFailed
from ocak.core.request import ContextPolicy, GenerateRequest
from ocak.engine.window import Window, default_kept, most_kept, room_for_prompt, without_middle

CANNOT_SHIFT = (
    "this model cannot shift its context: tokens cannot be taken out of its memory, which is recurrent or has a "
    "sliding window"
)


@dataclass(frozen=True, slots=True)
class ContextRules:
    """A model's context, and what its owner wants where a request is silent."""

    context: int
    policy: ContextPolicy
    num_keep: int
    can_shift: bool


@dataclass(frozen=True, slots=True)
class Fitted:
    """What is left of a prompt; `window` is set if it, or its answer, may shift."""

    tokens: list[int]
    num_dropped: int = 0
    window: Window | None = None


def context_rules(context: int, policy: ContextPolicy, num_keep: int, *, can_shift: bool) -> ContextRules:
    """Settle a model's rules; `num_keep` -1 is a quarter of the context. Raises `LoadFailed`."""
    if policy == "shift" and not can_shift:
        raise LoadFailed(f"{CANNOT_SHIFT}; set --context-policy truncate or error")
    if num_keep > most_kept(context):
        raise LoadFailed(
            f"n_keep {num_keep} is too much of a context of {context}; set --n-keep {most_kept(context)} or less, "
            "or a larger --context"
        )
    return ContextRules(context, policy, default_kept(context) if num_keep < 0 else num_keep, can_shift)


def check_context(request: GenerateRequest, rules: ContextRules) -> None:
    """Refuse what the prompt's length need not be known for. Raises `InvalidRequest`."""
    if request.context_policy == "shift" and not rules.can_shift:
        raise InvalidRequest(
            f"{CANNOT_SHIFT}; send context_policy truncate or error",
            param="context_policy",
        )
    if request.n_keep is not None and request.n_keep > most_kept(rules.context):
        raise InvalidRequest(
            f"n_keep must be between 0 and {most_kept(rules.context)}, less than half of the context of "
            f"{rules.context}, not {request.n_keep}; send less, or serve the model with a larger --context",
            param="n_keep",
        )


def check_length(num_tokens: int, request: GenerateRequest, rules: ContextRules) -> None:
    """Refuse an empty prompt, and one that is too long where nothing may be dropped. Raises `InvalidRequest`."""
    if num_tokens == 0:
        raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
    if num_tokens >= rules.context and request.prompt_logprobs is not None:
        raise ContextLengthExceeded(
            f"the prompt has {num_tokens} tokens, and one whose log-probabilities are told cannot be cut: "
            f"send at most {rules.context - 1}, or leave prompt_logprobs (and echo with logprobs) out",
            param="prompt",
        )
    if num_tokens >= rules.context and _policy(request, rules) == "error":
        others = "shift or truncate" if rules.can_shift else "truncate"
        raise ContextLengthExceeded(
            f"the prompt has {num_tokens} tokens and must leave room for an answer in the context of "
            f"{rules.context}; send at most {rules.context - 1}, or context_policy {others} (--context-policy) to "
            "drop what does not fit, or serve the model with a larger --context",
            param="prompt",
        )


def fit(tokens: list[int], request: GenerateRequest, rules: ContextRules) -> Fitted:
    """Apply the policy to a prompt that `check_length` let pass."""
    num_keep = rules.num_keep if request.n_keep is None else request.n_keep
    match _policy(request, rules):
        case "shift":
            return Fitted(tokens, window=Window(rules.context, min(num_keep, len(tokens))))
        case "truncate" if len(tokens) >= rules.context:
            most = room_for_prompt(rules.context, request.stopping.max_tokens)
            return Fitted(without_middle(tokens, num_keep, most), len(tokens) - most)
        case _:
            return Fitted(tokens)


def _policy(request: GenerateRequest, rules: ContextRules) -> ContextPolicy:
    """The log-probabilities of a prompt are told of a whole one alone."""
    return "error" if request.prompt_logprobs is not None else request.context_policy or rules.policy
