"""Reads the four shapes of a text field: a text, texts, token ids, lists of token ids. Pure.

A field is known by its name (`prompt`, `input`) and by how many it may hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from ocak.api.json_body import decode_field
from ocak.core.errors import InvalidRequest
from ocak.core.limits import INT32_MAX, check_text
from ocak.core.request import TextPrompt, TokenPrompt

NESTED_LIST = re.compile(rb"\s*\[\s*\[")
SHAPES = {
    "description": "Text, token ids, or a list of either.",
    "oneOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ],
}


@dataclass(frozen=True, slots=True)
class TextField:
    name: str
    most: int

    def read(self, raw: msgspec.Raw) -> list[TextPrompt | TokenPrompt]:
        """Return what the field holds, at least one. Counts nested lists before it builds them."""
        data = bytes(raw)
        if NESTED_LIST.match(data):
            if data.count(b"[") > self.most + 1:
                raise self._too_many()
            return [self._tokens(tokens) for tokens in decode_field(raw, list[list[int]], self.name)]
        value = decode_field(raw, str | list[str | int], self.name)
        if isinstance(value, str):
            return [self._text(value)]
        if not value:
            raise self._empty()
        return self._flat(value)

    def _flat(self, items: list[Any]) -> list[TextPrompt | TokenPrompt]:
        kinds = set(map(type, items))
        if kinds == {int}:
            return [self._tokens(items)]
        if kinds != {str}:
            raise InvalidRequest(f"{self.name} mixes text and token ids; send one or the other", param=self.name)
        if len(items) > self.most:
            raise self._too_many()
        return [self._text(text) for text in items]

    def _text(self, text: str) -> TextPrompt:
        if not text:
            raise self._empty()
        check_text(text, self.name)
        return TextPrompt(text)

    def _tokens(self, tokens: list[int]) -> TokenPrompt:
        if not tokens:
            raise self._empty()
        if min(tokens) < 0 or max(tokens) > INT32_MAX:
            raise InvalidRequest(f"{self.name} holds a token id outside 0 to {INT32_MAX}", param=self.name)
        return TokenPrompt(tuple(tokens))

    def _empty(self) -> InvalidRequest:
        return InvalidRequest(f"{self.name} is empty", param=self.name)

    def _too_many(self) -> InvalidRequest:
        return InvalidRequest(f"{self.name} holds more than {self.most} {self.name}s", param=self.name)
