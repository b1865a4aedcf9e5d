"""Reads a call of Qwen3-Coder's: `<function=NAME><parameter=KEY>value</parameter>…</function>`.

Values are bare text. One becomes a JSON text if its parameter is declared a string or if it is no JSON at all,
and is taken as JSON otherwise. A parameter is told once it is whole.
"""

from __future__ import annotations

import re

import msgspec

from ocak.worker.formats.bodies import Parameters, Progress
from ocak.worker.formats.pieces import Arguments, CallBegins, CallEnds, Piece

FUNCTION, PARAMETER = "<function=", "<parameter="
END_OF_FUNCTION, END_OF_PARAMETER = "</function>", "</parameter>"
LONGEST_NAME = 256
VALUE = re.compile(r"[^>]+")
TAG = re.compile(r"<(?:function|parameter)=([^<>]*)>")


class XmlCall:
    def __init__(self, tools: Parameters) -> None:
        self.pieces: list[Piece] = []
        self._tools = tools
        self._name: str | None = None
        self._key: str | None = None
        self._keys: set[str] = set()
        self._read: list[str] = []  # of the tag, or of the value with its end tag

    def feed(self, char: str) -> Progress:
        if self._key is not None:
            return self._feed_value(char)
        if not self._read and char.isspace():
            return "more"
        return self._feed_tag(char)

    def run(self, text: str, at: int) -> int:
        found = VALUE.match(text, at) if self._key is not None else None
        if found is None:
            return 0
        self._read.append(found[0])
        return len(found[0])

    def _feed_tag(self, char: str) -> Progress:
        self._read.append(char)
        tag = "".join(self._read)
        expected = (FUNCTION,) if self._name is None else (PARAMETER, END_OF_FUNCTION)
        if not any(mark.startswith(tag) or (mark[-1] == "=" and tag.startswith(mark)) for mark in expected):
            return "broken"
        if char != ">" or len(tag) > LONGEST_NAME:
            return "more" if len(tag) <= LONGEST_NAME else "broken"
        self._read.clear()
        return self._end() if tag == END_OF_FUNCTION else self._open(tag)

    def _open(self, tag: str) -> Progress:
        found = TAG.fullmatch(tag)
        if found is None:
            return "broken"
        name = found[1].strip()
        if self._name is not None:
            self._key = name
            return "more" if name not in self._keys else "broken"
        if name not in self._tools:
            return "broken"
        self._name = name
        self.pieces += [CallBegins(name), Arguments("{")]
        return "more"

    def _feed_value(self, char: str) -> Progress:
        self._read.append(char)
        if char == ">" and "".join(self._read[-len(END_OF_PARAMETER) :]).endswith(END_OF_PARAMETER):
            self._tell("".join(self._read).removesuffix(END_OF_PARAMETER))
        return "more"

    def _tell(self, value: str) -> None:
        assert self._name is not None and self._key is not None, "a value stands in a parameter of a function"
        kind = self._tools[self._name].get(self._key, "")
        pair = f"{_quoted(self._key)}: {_json(_trimmed(value), kind)}"
        self.pieces.append(Arguments(f", {pair}" if self._keys else pair))
        self._keys.add(self._key)
        self._key = None
        self._read.clear()

    def _end(self) -> Progress:
        self.pieces += [Arguments("}"), CallEnds()]
        return "done"


def _trimmed(value: str) -> str:
    """A value stands on lines of its own: one line break on each side is not its own."""
    return value.removeprefix("\n").removesuffix("\n")


def _json(value: str, kind: str) -> str:
    if kind == "string":
        return _quoted(value)
    try:
        return msgspec.json.encode(msgspec.json.decode(value.strip())).decode()
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return _quoted(value)


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()
