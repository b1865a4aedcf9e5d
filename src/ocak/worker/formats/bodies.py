"""Reads what stands behind the mark that opens a call, a character at a time. Knows no marks.

A body that is fed characters behaves the same however its text was cut. JSON goes through as the model wrote it
and is checked by a real decoder once it is whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import msgspec

from ocak.worker.formats.pieces import Arguments, CallBegins, CallEnds, Piece

Progress = Literal["more", "done", "broken"]
Parameters = Mapping[str, Mapping[str, str]]  # of each tool: its parameters' types

HEADER = re.compile(
    r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{', re.DOTALL
)
LETTERS = re.compile(r'[^"\\\x00-\x1f]+')  # within a text of JSON
PLAIN = frozenset(" \t\r\n:,+-.0123456789eEtrufalsn")  # of JSON, outside of texts and brackets


class Body(Protocol):
    """`feed` takes the next character. Broken means that the character cannot stand there, and was not taken.

    `run` takes as many from `at` on as mean nothing, like letters within a text, and returns how many: it is there
    for speed alone. `pieces` has what became known, for the caller to take away. A body may hold several calls.
    """

    pieces: list[Piece]

    def feed(self, char: str) -> Progress: ...

    def run(self, text: str, at: int) -> int: ...


MakeBody = Callable[[Parameters], Body]


class ObjectEnd:
    """Finds the end of one JSON object, which begins with its first character."""

    def __init__(self) -> None:
        self.depth = 0
        self._in_text = False
        self._is_escaped = False

    def feed(self, char: str) -> Progress:
        if self._in_text:
            return self._feed_text(char)
        if char in "{[":
            self.depth += 1
        elif char in "}]" and self.depth:
            self.depth -= 1
            return "more" if self.depth else "done"
        elif char == '"' and self.depth:
            self._in_text = True
        elif char not in PLAIN or not self.depth:
            return "broken"
        return "more"

    def run(self, text: str, at: int) -> int:
        found = LETTERS.match(text, at) if self._in_text and not self._is_escaped else None
        return found.end() - at if found else 0

    def _feed_text(self, char: str) -> Progress:
        if char < " ":
            return "broken"
        if self._is_escaped:
            self._is_escaped = False
        elif char == "\\":
            self._is_escaped = True
        elif char == '"':
            self._in_text = False
        return "more"


NOTHING = msgspec.Raw(b"null")


class _Call(msgspec.Struct):
    """A call as models write it; arguments may be missing, or JSON within a text."""

    name: str
    arguments: msgspec.Raw = NOTHING
    parameters: msgspec.Raw = NOTHING


class JsonCall:
    """One object with a name and arguments: streamed once the name is known, if that comes first."""

    def __init__(self, tools: Parameters) -> None:
        self.pieces: list[Piece] = []
        self._tools = tools
        self._end = ObjectEnd()
        self._chars: list[str] = []
        self._name: str | None = None
        self._in_arguments = False

    def feed(self, char: str) -> Progress:
        if not self._chars:
            if char.isspace():
                return "more"
            if char != "{":
                return "broken"
        progress = self._end.feed(char)
        if progress == "broken":
            return progress
        self._chars.append(char)
        if progress == "done":
            return self._finish()
        return self._go_on(char)

    def run(self, text: str, at: int) -> int:
        length = self._end.run(text, at)
        if length:
            self._chars.append(text[at : at + length])
        if length and self._in_arguments:
            self.pieces.append(Arguments(text[at : at + length]))
        return length

    def _go_on(self, char: str) -> Progress:
        if self._in_arguments:
            self.pieces.append(Arguments(char))
            self._in_arguments = self._end.depth > 1
        elif char == "{" and self._name is None and self._end.depth == 2:
            return self._begin()
        return "more"

    def _begin(self) -> Progress:
        header = HEADER.fullmatch("".join(self._chars))
        if header is None:
            return "more"  # its name comes later, and is seen at the end
        name = decoded_text(header["name"])
        if name is None or name not in self._tools:
            return "broken"
        self._name = name
        self._in_arguments = True
        self.pieces += [CallBegins(name), Arguments("{")]
        return "more"

    def _finish(self) -> Progress:
        found = decoded_call("".join(self._chars))
        if found is None or found[0] not in self._tools or self._name not in (None, found[0]):
            return "broken"
        if self._name is None:
            self.pieces += [CallBegins(found[0]), Arguments(found[1])]
        self.pieces.append(CallEnds())
        return "done"


class JsonCalls:
    """One call, or a list of them in brackets."""

    def __init__(self, tools: Parameters) -> None:
        self.pieces: list[Piece] = []
        self._tools = tools
        self._call = JsonCall(tools)
        self._is_list: bool | None = None  # None: nothing read yet
        self._is_between = False

    def feed(self, char: str) -> Progress:
        if self._is_between:
            return self._feed_between(char)
        if self._is_list is None and not char.isspace():
            self._is_list = char == "["
            if self._is_list:
                return "more"
        self._call.pieces = self.pieces
        progress = self._call.feed(char)
        if progress == "done" and self._is_list:
            self._is_between = True
            return "more"
        return progress

    def run(self, text: str, at: int) -> int:
        self._call.pieces = self.pieces
        return 0 if self._is_between else self._call.run(text, at)

    def _feed_between(self, char: str) -> Progress:
        if char == ",":
            self._call, self._is_between = JsonCall(self._tools), False
            return "more"
        if char == "]":
            return "done"
        return "more" if char.isspace() else "broken"


def decoded_call(text: str) -> tuple[str, str] | None:
    """Return the name and the arguments, a JSON object's text; None if `text` is no call."""
    try:
        call = msgspec.json.decode(text, type=_Call)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None
    arguments = next(
        (text for raw in (call.arguments, call.parameters) if (text := bytes(raw).decode()) != "null"), "{}"
    )
    if arguments.startswith('"'):
        arguments = decoded_text(arguments) or "{}"
    return (call.name, arguments) if is_object(arguments) else None


def is_object(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True


def decoded_text(quoted: str) -> str | None:
    try:
        return msgspec.json.decode(quoted, type=str)
    except (msgspec.DecodeError, UnicodeError):
        return None
