"""LoRA adapters as they are named: which there are, and how one is written down. Pure."""

from __future__ import annotations

import math
import re

import msgspec

from ocak.core.errors import ConfigError

MAX_ADAPTERS = 64  # of one model
MAX_SCALE = 100.0
NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class LoraAdapter(msgspec.Struct, frozen=True):
    """An adapter that requests may ask for by its name; `scale` is how strongly it counts."""

    name: str
    path: str
    scale: float = 1.0


def parse_adapter(name: str, text: str) -> LoraAdapter:
    """Read PATH or PATH:SCALE; `text` is what follows NAME=. Raises `ConfigError`."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"--lora {name[:64]!r}: a name has 1 to 64 letters, digits, dots, dashes and underscores", param="lora"
        )
    path, colon, last = text.rpartition(":")
    scale = _number(last) if colon and path else None
    if scale is None:
        return LoraAdapter(name, text)
    if not (math.isfinite(scale) and 0 < abs(scale) <= MAX_SCALE):
        raise ConfigError(
            f"--lora {name}: the scale must be between -{MAX_SCALE:g} and {MAX_SCALE:g} and not 0, not {last}",
            param="lora",
        )
    return LoraAdapter(name, path, scale)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
