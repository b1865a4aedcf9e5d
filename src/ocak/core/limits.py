"""The ranges of every number a caller can set, checked before anything reaches C. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ocak.core.errors import InvalidRequest
from ocak.core.request import Sampling, Stopping

INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1
MAX_SHOWN = 40  # characters of a wrong number in its message


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float

    def check(self, name: str, value: float) -> None:
        if not self.low <= value <= self.high:  # false for NaN, and exact for any integer
            raise InvalidRequest(
                f"{name} must be between {self.low:g} and {self.high:g}, not {str(value)[:MAX_SHOWN]}", param=name
            )


SAMPLING_RANGES = {
    "temperature": Range(0, 100),
    "top_k": Range(0, INT32_MAX),
    "top_p": Range(0, 1),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0.01, 100),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "penalty_window": Range(0, 65536),
}
PRIORITY_RANGE = Range(-1000, 1000)
LOGIT_BIAS_RANGE = Range(-100, 100)
LOGPROBS_RANGE = Range(0, 20)
MAX_LOGIT_BIASES = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 1024


def check_sampling(sampling: Sampling) -> None:
    """Raise `InvalidRequest` naming the first field that is out of its range."""
    for name, allowed in SAMPLING_RANGES.items():
        allowed.check(name, getattr(sampling, name))
    if sampling.seed is not None:
        Range(0, UINT32_MAX).check("seed", sampling.seed)
    _check_logit_bias(sampling.logit_bias)


def check_stopping(stopping: Stopping) -> None:
    """Raise `InvalidRequest` naming the first field that is out of its range."""
    if stopping.max_tokens is not None:
        Range(1, INT32_MAX).check("max_tokens", stopping.max_tokens)
    if len(stopping.stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(
            f"stop holds {len(stopping.stop)} strings; at most {MAX_STOP_STRINGS} are allowed", param="stop"
        )
    for text in stopping.stop:
        if not 1 <= len(text.encode()) <= MAX_STOP_BYTES:
            raise InvalidRequest(f"each stop string must have 1 to {MAX_STOP_BYTES} bytes", param="stop")


def check_text(text: str, param: str) -> None:
    """Refuse what no tokenizer can read: lone surrogates. NUL bytes are text like any other."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{param} holds a lone surrogate (\\u{ord(text[error.start]):04x} at character {error.start}); "
            "send valid Unicode",
            param=param,
        ) from error


def _check_logit_bias(bias: dict[int, float]) -> None:
    if len(bias) > MAX_LOGIT_BIASES:
        raise InvalidRequest(
            f"logit_bias holds {len(bias)} tokens; at most {MAX_LOGIT_BIASES} are allowed", param="logit_bias"
        )
    for token, value in bias.items():
        Range(0, INT32_MAX).check("logit_bias", token)
        LOGIT_BIAS_RANGE.check("logit_bias", value)
