"""Reads what gpt-oss writes: messages on channels, one behind the other.

    <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
    <|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{…}<|call|>

Analysis is reasoning, a message to a tool of the request is its call, everything else is text. An answer that does
not begin with a channel is text from there on, and so is a message to nobody that is known, its head included.
"""

from __future__ import annotations

import re
from typing import Literal

from ocak.worker.formats.bodies import Parameters, is_object
from ocak.worker.formats.pieces import (
    Arguments,
    CallBegins,
    CallBroken,
    CallEnds,
    Piece,
    Reasoning,
    Text,
    merged,
)

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
FINAL = f"{CHANNEL}final{MESSAGE}"  # how an answer begins that is nothing but text
MARKS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
MARK = re.compile("|".join(map(re.escape, MARKS)))
IN_CHANNEL = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
TO_FUNCTION = re.compile(r"\bto=functions\.([\w.-]+)")
LONGEST_HEAD = 512


class HarmonySplitter:
    """`is_single` ends the answer with its first call: `is_over`."""

    def __init__(self, tools: Parameters, *, is_single: bool = False) -> None:
        self.is_over = False
        self.has_calls = False
        self._tools = tools
        self._is_single = is_single
        self._held = ""  # not read yet
        self._head = ""  # of the message that begins
        self._body: list[str] = []
        self._kind: Literal["head", "text", "reasoning", "call"] = "head"
        self._has_said: set[str] = set()  # the kinds there were

    def push(self, text: str) -> list[Piece]:
        self._held += text
        pieces: list[Piece] = []
        while not self.is_over and (mark := MARK.search(self._held)):
            self._add(self._held[: mark.start()], pieces)
            self._held = self._held[mark.end() :]
            self._read_mark(mark[0], pieces)
        if not self.is_over:
            safe = self._safe()
            self._add(self._held[:safe], pieces)
            self._held = self._held[safe:]
        return merged(pieces)

    def finish(self) -> list[Piece]:
        pieces: list[Piece] = []
        if not self.is_over:
            self._add(self._held, pieces)
            self._close(pieces)
            pieces.append(Text(self._head))
            self._held = self._head = ""
        return merged(pieces)

    def _safe(self) -> int:
        """Return how much of what is held cannot be the beginning of a mark."""
        at = self._held.rfind("<")
        is_mark = at >= 0 and any(mark.startswith(self._held[at:]) for mark in MARKS)
        return at if is_mark else len(self._held)

    def _read_mark(self, mark: str, pieces: list[Piece]) -> None:
        if self._kind == "head":
            self._head += mark
            if mark == MESSAGE:
                self._open(pieces)
        elif mark in ENDS:
            self._close(pieces)
        elif mark in (START, CHANNEL):
            self._close(pieces)
            self._head = mark
        else:
            self._add(mark, pieces)

    def _open(self, pieces: list[Piece]) -> None:
        """Decide by its head what the message is."""
        channel, function = IN_CHANNEL.search(self._head), TO_FUNCTION.search(self._head)
        if function and function[1] in self._tools:
            self._kind = "call"
            pieces.append(CallBegins(function[1]))
            return
        self._kind = "reasoning" if channel and channel[1] == "analysis" and not function else "text"
        is_further = self._kind in self._has_said
        self._has_said.add(self._kind)
        if not channel or " to=" in self._head:
            self._add(self._head, pieces)
        elif is_further:
            self._add("\n", pieces)
        self._head = ""

    def _add(self, text: str, pieces: list[Piece]) -> None:
        match self._kind:
            case "head":
                self._add_to_head(text, pieces)
            case "text":
                pieces.append(Text(text))
            case "reasoning":
                pieces.append(Reasoning(text))
            case "call":
                self._body.append(text)
                pieces.append(Arguments(text))

    def _add_to_head(self, text: str, pieces: list[Piece]) -> None:
        self._head += text
        begins_well = any(mark.startswith(self._head[: len(mark)]) for mark in (START, CHANNEL))
        if not begins_well or len(self._head) > LONGEST_HEAD:
            self._kind = "text"
            self._has_said.add("text")
            pieces.append(Text(self._head))
            self._head = ""

    def _close(self, pieces: list[Piece]) -> None:
        if self._kind == "call":
            body = "".join(self._body)
            if is_object(body):
                pieces.append(CallEnds())
                self.has_calls = True
                self.is_over = self._is_single
            else:
                pieces += [CallBroken(), Text(self._head + body)]
            self._head = ""
            self._body.clear()
        self._kind = "head"
