"""Reads what follows Mistral's `[TOOL_CALLS]`: a list of calls, or, in newer models, a name and its arguments.

[{"name": "f", "arguments": {…}}, …]        f[ARGS]{…}        f[CALL_ID]abc123def[ARGS]{…}        f{…}
"""

from __future__ import annotations

from ocak.worker.formats.bodies import Body, JsonCalls, ObjectEnd, Parameters, Progress, is_object
from ocak.worker.formats.pieces import Arguments, CallBegins, CallEnds, Piece

ARGUMENTS, CALL_ID = "[ARGS]", "[CALL_ID]"
LONGEST_HEAD = 512  # a name, an id and two marks


class MistralCalls:
    """Decides by the first character which of the two it reads."""

    def __init__(self, tools: Parameters) -> None:
        self.pieces: list[Piece] = []
        self._tools = tools
        self._body: Body | None = None

    def feed(self, char: str) -> Progress:
        if self._body is None:
            if char.isspace():
                return "more"
            self._body = JsonCalls(self._tools) if char in "[{" else _NamedCall(self._tools)
            self._body.pieces = self.pieces
        return self._body.feed(char)

    def run(self, text: str, at: int) -> int:
        return 0 if self._body is None else self._body.run(text, at)


class _NamedCall:
    def __init__(self, tools: Parameters) -> None:
        self.pieces: list[Piece] = []
        self._tools = tools
        self._head = ""
        self._end: ObjectEnd | None = None
        self._arguments: list[str] = []

    def feed(self, char: str) -> Progress:
        if self._end is None:
            return self._feed_head(char)
        progress = self._end.feed(char)
        if progress == "broken":
            return progress
        self._arguments.append(char)
        if progress == "done" and not is_object("".join(self._arguments)):
            return "broken"
        self.pieces.append(Arguments(char))
        if progress == "done":
            self.pieces.append(CallEnds())
        return progress

    def run(self, text: str, at: int) -> int:
        length = 0 if self._end is None else self._end.run(text, at)
        if length:
            self._arguments.append(text[at : at + length])
            self.pieces.append(Arguments(text[at : at + length]))
        return length

    def _feed_head(self, char: str) -> Progress:
        if char != "{":
            self._head += char
            return "more" if len(self._head) <= LONGEST_HEAD else "broken"
        name = self._head.partition(CALL_ID)[0].strip().removesuffix(ARGUMENTS).strip()
        if name not in self._tools:
            return "broken"
        self._end = ObjectEnd()
        self.pieces.append(CallBegins(name))
        return self.feed(char)
