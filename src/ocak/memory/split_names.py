"""Decides which file names belong to one split GGUF. Knows only names: no folder, no file.

`NAME-00001-of-00003.gguf` is llama.cpp's pattern (`llama_split_path`); numbers start at 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_PATTERN: Final = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class SplitName:
    """The parsed name of one part; `number` runs from 1 to `count`."""

    prefix: str
    number: int
    count: int

    def sibling(self, number: int) -> str:
        """The file name of another part of the same set."""
        return f"{self.prefix}-{number:05d}-of-{self.count:05d}.gguf"

    def siblings(self) -> tuple[str, ...]:
        """The names of every part, in order, this one included."""
        return tuple(self.sibling(number) for number in range(1, self.count + 1))


def parse_split_name(name: str) -> SplitName | None:
    """Parse the name of a part; None when the name is not one (a lone file)."""
    match = _PATTERN.fullmatch(name)
    if match is None:
        return None
    number, count = int(match["number"]), int(match["count"])
    return SplitName(match["prefix"], number, count) if 1 <= number <= count else None
