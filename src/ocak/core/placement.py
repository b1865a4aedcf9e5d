"""Which device holds which of a model's tensors. Pure: devices and tensors are names here.

Patterns are searched for anywhere in a tensor's name, and the first that is found counts, as in llama.cpp.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence

import msgspec

from ocak.core.errors import ConfigError

CPU = "CPU"
EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # a layer's experts, as llama.cpp finds them
MAX_OVERRIDES = 1024
MAX_PATTERN = 512  # characters
# Python reads these, the C++ standard's expressions do not.
FOREIGN = re.compile(r"\(\?(?![:=!])|\\[AZ]|[*+?}]\+")


class TensorOverride(msgspec.Struct, frozen=True):
    """The tensors whose name holds the pattern go to the device."""

    pattern: str
    device: str


def overrides(wanted: Iterable[str], *, cpu_moe: bool, n_cpu_moe: int) -> tuple[TensorOverride, ...]:
    """Return all overrides, in order: those written as PATTERN=DEVICE, then the experts'. Raises `ConfigError`."""
    found = [_parsed(text) for text in wanted]
    if cpu_moe:
        found.append(TensorOverride(EXPERTS, CPU))
    found += [TensorOverride(rf"blk\.{layer}{EXPERTS}", CPU) for layer in range(0 if cpu_moe else n_cpu_moe)]
    if len(found) > MAX_OVERRIDES:
        raise ConfigError(
            f"{len(found)} tensor overrides; at most {MAX_OVERRIDES} are allowed", param="override_tensor"
        )
    return tuple(found)


def check_found(wanted: Sequence[str], tensors: Iterable[str]) -> None:
    """Refuse a pattern that no tensor's name holds: a typo would be a setting silently lost."""
    names = list(tensors)
    for override in map(_parsed, wanted):
        if not any(re.search(override.pattern, name) for name in names):
            raise ConfigError(
                f"--override-tensor {override.pattern}={override.device}: the pattern is in no tensor's name; "
                f"they are called like {', '.join(names[:3])}",
                param="override_tensor",
            )


def _parsed(text: str) -> TensorOverride:
    pattern, equals, device = text.rpartition("=")
    if not (equals and pattern and device):
        raise _refusal(text, "write PATTERN=DEVICE, as in \\.ffn_.*_exps=CPU")
    if len(pattern) > MAX_PATTERN:
        raise _refusal(text, f"the pattern has more than {MAX_PATTERN} characters")
    if not (text.isascii() and text.isprintable()):
        raise _refusal(text, "tensors have names of plain ASCII characters")
    try:
        with warnings.catch_warnings(action="error"):
            re.compile(pattern)
    except (re.error, Warning, RecursionError, OverflowError) as error:
        raise _refusal(text, f"the pattern is no regular expression: {error}") from error
    if FOREIGN.search(pattern):
        raise _refusal(text, "llama.cpp reads ECMAScript's regular expressions, which lack a part of this one")
    return TensorOverride(pattern, device)


def _refusal(text: str, reason: str) -> ConfigError:
    return ConfigError(f"--override-tensor {text[:80]!r}: {reason}", param="override_tensor")
