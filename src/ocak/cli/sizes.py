"""Sizes as people write them. Pure."""

from __future__ import annotations

import re

from ocak.core.errors import ConfigError

SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(name: str, text: str) -> int:
    """Return the bytes of a size such as 6GB, 512 MiB, 8G, given for setting `name`. Raises `ConfigError`."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        flag = name.replace("_", "-")
        raise ConfigError(f"--{flag} {text}: a size is a number and a unit, as 6GB or 512MiB", param=name)
    number, unit, binary = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** ("KMGT".index(unit.upper()) + 1 if unit else 0))
