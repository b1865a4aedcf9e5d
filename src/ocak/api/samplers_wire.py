"""The fields of llama-server and vLLM that OpenAI lacks: samplers and rules for tokens, and what they mean."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ocak.core.request import KNOWN_SAMPLERS

Int = Annotated[int, Meta(ge=-(2**53), le=2**53)]

NUMBERS = (
    "typical_p",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dynatemp_range",
    "dynatemp_exponent",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "adaptive_target",
    "adaptive_decay",
)
LISTS = ("dry_sequence_breakers", "bad_words", "allowed_token_ids")
OTHER_NAMES = {"typical_p": "typ_p", "typ": "typ_p", "temp": "temperature", "nucleus": "top_p"}


class SamplersBody(msgspec.Struct, frozen=True, kw_only=True):
    """What chats and completions share beyond OpenAI's fields."""

    typical_p: Annotated[float, Meta(description="1: off.")] | None = None
    top_n_sigma: Annotated[float, Meta(description="0 and less: off.")] | None = None
    xtc_probability: Annotated[float, Meta(description="0: off.")] | None = None
    xtc_threshold: float | None = None
    dry_multiplier: Annotated[float, Meta(description="0: off.")] | None = None
    dry_base: float | None = None
    dry_allowed_length: Int | None = None
    dry_penalty_last_n: Int | None = None
    dry_sequence_breakers: list[str] | None = None
    dynatemp_range: Annotated[float, Meta(description="0: off.")] | None = None
    dynatemp_exponent: float | None = None
    mirostat: (
        Annotated[Int, Meta(description="0: off; 1 or 2: instead of every sampler but the temperature.")] | None
    ) = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    adaptive_target: Annotated[float, Meta(description="Negative: off.")] | None = None
    adaptive_decay: float | None = None
    samplers: (
        Annotated[list[str], Meta(description=f"Which are applied, in order: {', '.join(KNOWN_SAMPLERS)}.")] | None
    ) = None
    repeat_last_n: Annotated[Int, Meta(description="Tokens that the penalties look back on.")] | None = None
    allowed_token_ids: list[Int] | None = None
    bad_words: list[str] | None = None
    min_tokens: Annotated[Int, Meta(description="Tokens before an end token, a stop token or a stop.")] | None = (
        None
    )
    stop_token_ids: list[Int] | None = None


def sampler_fields(body: SamplersBody) -> dict[str, object]:
    """Return the fields of `Sampling` that the body sets."""
    given = {name: value for name in NUMBERS if (value := getattr(body, name)) is not None}
    given |= {name: tuple(value) for name in LISTS if (value := getattr(body, name)) is not None}
    if body.repeat_last_n is not None:
        given["penalty_window"] = body.repeat_last_n
    if body.samplers is not None:
        given["samplers"] = tuple(map(_canonical, body.samplers))
    return given


def stopping_fields(body: SamplersBody) -> dict[str, object]:
    """Return the fields of `Stopping` that the body sets."""
    given: dict[str, object] = {} if body.min_tokens is None else {"min_tokens": body.min_tokens}
    if body.stop_token_ids is not None:
        given["stop_token_ids"] = tuple(body.stop_token_ids)
    return given


def _canonical(name: str) -> str:
    """Read a sampler's name as llama-server does: in any case, with `-` for `_`, and by its other names."""
    plain = name.lower().replace("-", "_")
    return OTHER_NAMES.get(plain, plain)
