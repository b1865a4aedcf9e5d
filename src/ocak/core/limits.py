"""The ranges of every number a caller can set, checked before anything reaches C. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ocak.core.errors import InvalidRequest
from ocak.core.request import KNOWN_SAMPLERS, Constraint, Sampling, Stopping, Tool

MOST_GUESSES = 15  # tokens guessed ahead for one step: with the last token four of the kernels' tiles
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
    "typical_p": Range(0, 1),
    "top_n_sigma": Range(-1, 100),
    "xtc_probability": Range(0, 1),
    "xtc_threshold": Range(0, 1),
    "dry_multiplier": Range(0, 100),
    "dry_base": Range(1, 100),
    "dry_allowed_length": Range(0, 65536),
    "dry_penalty_last_n": Range(0, 65536),
    "dynatemp_range": Range(0, 100),
    "dynatemp_exponent": Range(0, 10),
    "mirostat": Range(0, 2),
    "mirostat_tau": Range(0, 20),
    "mirostat_eta": Range(0, 1),
    "adaptive_target": Range(-1, 1),
    "adaptive_decay": Range(0, 0.99),
}
PRIORITY_RANGE = Range(-1000, 1000)
N_KEEP_RANGE = Range(0, INT32_MAX)  # and less than half of the context, which the worker knows
LOGIT_BIAS_RANGE = Range(-100, 100)
LOGPROBS_RANGE = Range(0, 20)
TOKEN_RANGE = Range(0, INT32_MAX)
MAX_PROMPT_LOGPROBS = 131_072  # log-probabilities told of one prompt
DIMENSIONS_RANGE = Range(1, INT32_MAX)
MAX_INPUTS = 2048  # of one request for embeddings, or documents of one for ranks
MAX_LOGIT_BIASES = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 1024
MAX_STOP_TOKENS = 1024
MAX_ALLOWED_TOKENS = 16384
MAX_BAD_WORDS = 128
MAX_BAD_WORD_BYTES = 256
MAX_SAMPLERS = 16
MAX_INFILL_CANDIDATES = 128
MAX_BREAKERS = 16
MAX_CONSTRAINT_BYTES = 65536
MAX_BREAKER_BYTES = 40  # llama.cpp cuts longer ones
MAX_TOOLS = 128
MAX_TOOL_BYTES = 1024 * 1024  # of all definitions together
MAX_TOOL_CALLS = 128  # in one message
TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")


def check_sampling(sampling: Sampling) -> None:
    """Raise `InvalidRequest` naming the first field that is out of its range."""
    for name, allowed in SAMPLING_RANGES.items():
        allowed.check(name, getattr(sampling, name))
    if sampling.seed is not None:
        Range(0, UINT32_MAX).check("seed", sampling.seed)
    _check_logit_bias(sampling.logit_bias)
    _check_samplers(sampling.samplers)
    _check_infill(sampling)
    _check_breakers(sampling.dry_sequence_breakers)
    _check_texts("bad_words", sampling.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_BYTES)
    if sampling.allowed_token_ids is not None:
        _check_allowed(sampling.allowed_token_ids)


def check_stopping(stopping: Stopping) -> None:
    """Raise `InvalidRequest` naming the first field that is out of its range."""
    if stopping.max_tokens is not None:
        Range(1, INT32_MAX).check("max_tokens", stopping.max_tokens)
    Range(0, INT32_MAX).check("min_tokens", stopping.min_tokens)
    if stopping.max_tokens is not None and stopping.min_tokens > stopping.max_tokens:
        raise InvalidRequest(
            f"min_tokens {stopping.min_tokens} is more than max_tokens {stopping.max_tokens}; "
            "send max_tokens of at least that",
            param="min_tokens",
        )
    _check_tokens("stop_token_ids", stopping.stop_token_ids, MAX_STOP_TOKENS)
    _check_texts("stop", stopping.stop, MAX_STOP_STRINGS, MAX_STOP_BYTES)


def check_constraint(constraint: Constraint) -> None:
    """Raise `InvalidRequest` for a text of impossible size; whether it means anything, the worker knows."""
    check_text(constraint.text, constraint.param)
    size = len(constraint.text.encode())
    if not 1 <= size <= MAX_CONSTRAINT_BYTES:
        raise InvalidRequest(
            f"{constraint.param} has {size} bytes; 1 to {MAX_CONSTRAINT_BYTES} are allowed", param=constraint.param
        )


def check_tools(tools: Sequence[Tool]) -> None:
    """Raise `InvalidRequest` naming the first tool that cannot be offered."""
    _check_count("tools", tools, MAX_TOOLS)
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        where = f"tools[{i}].function.name"
        if not TOOL_NAME.fullmatch(tool.name):
            raise InvalidRequest(f"{where} must be 1 to 128 letters, digits, _, . or -", param=where)
        if tool.name in seen:
            raise InvalidRequest(
                f"{where} {tool.name!r} is there twice; give each tool a name of its own", param=where
            )
        seen.add(tool.name)
    size = sum(len(tool.definition.encode("utf-8", "surrogatepass")) for tool in tools)
    if size > MAX_TOOL_BYTES:
        raise InvalidRequest(f"tools have {size} bytes; at most {MAX_TOOL_BYTES} are allowed", param="tools")


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
    _check_tokens("logit_bias", tuple(bias), MAX_LOGIT_BIASES)
    for value in bias.values():
        LOGIT_BIAS_RANGE.check("logit_bias", value)


def _check_samplers(names: Sequence[str]) -> None:
    _check_count("samplers", names, MAX_SAMPLERS)
    for name in names:
        if name not in KNOWN_SAMPLERS:
            raise InvalidRequest(
                f"samplers names {name[:MAX_SHOWN]!r}; there are {', '.join(KNOWN_SAMPLERS)}", param="samplers"
            )


def _check_infill(sampling: Sampling) -> None:
    """It compares the text of each candidate with that of every other, so they must be few when it comes."""
    if not sampling.fills_in:
        return
    before = sampling.samplers[: sampling.samplers.index("infill")]
    if "top_k" not in before or not 1 <= sampling.top_k <= MAX_INFILL_CANDIDATES:
        raise InvalidRequest(
            "samplers names infill, which compares every candidate with all others: name top_k before it, and "
            f"send a top_k of 1 to {MAX_INFILL_CANDIDATES}",
            param="samplers" if "top_k" not in before else "top_k",
        )


def _check_breakers(breakers: Sequence[str]) -> None:
    name = "dry_sequence_breakers"
    _check_texts(name, breakers, MAX_BREAKERS, MAX_BREAKER_BYTES)
    if any("\0" in text for text in breakers):
        raise InvalidRequest(
            f"{name} holds a NUL byte, where llama.cpp would end the text; leave it out", param=name
        )


def _check_allowed(tokens: Sequence[int]) -> None:
    if not tokens:
        raise InvalidRequest(
            "allowed_token_ids is empty; name a token, or leave it out to allow all", param="allowed_token_ids"
        )
    _check_tokens("allowed_token_ids", tokens, MAX_ALLOWED_TOKENS)


def _check_tokens(name: str, tokens: Sequence[int], most: int) -> None:
    _check_count(name, tokens, most)
    for token in tokens:
        TOKEN_RANGE.check(name, token)


def _check_texts(name: str, texts: Sequence[str], most: int, most_bytes: int) -> None:
    _check_count(name, texts, most)
    for text in texts:
        check_text(text, name)
        if not 1 <= len(text.encode()) <= most_bytes:
            raise InvalidRequest(f"each text in {name} must have 1 to {most_bytes} bytes", param=name)


def _check_count(name: str, values: Sequence[object], most: int) -> None:
    if len(values) > most:
        raise InvalidRequest(f"{name} holds {len(values)} entries; at most {most} are allowed", param=name)
