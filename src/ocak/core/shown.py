"""Makes what others wrote (in a model file, in llama.cpp's log) fit to be shown to a person. Pure."""

from __future__ import annotations

import reprlib
from typing import Final

_LIMIT: Final = 400  # characters
_LIMIT_OF_A_VALUE: Final = 80


def one_line(text: str, limit: int = _LIMIT) -> str:
    """Return `text` as one line without control characters; of a long one the beginning and the end."""
    text = _cut(text, limit)
    if text.isprintable():
        return text
    return _cut("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), limit)


def quoted(value: object) -> str:
    """As `repr`, without ever making all of a long one."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = _LIMIT_OF_A_VALUE
    return short.repr(value)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} … {text[-limit // 3 + 3 :]}"
