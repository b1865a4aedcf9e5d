"""Where everything in a sound GGUF header lies. A reader of its own, which the one under test cannot mislead."""

import struct
from dataclasses import dataclass, field

STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TOLD_OF_AN_ARRAY = 3  # of its strings, the first ones: a vocabulary is not to outweigh the rest

Span = tuple[int, int]


@dataclass(slots=True)
class Layout:
    """Spans of bytes: `fields` by their kind, whole entries, their values, whole tensors; then the padding."""

    fields: dict[str, list[Span]] = field(default_factory=dict)
    integers: set[str] = field(default_factory=set)  # kinds of fields that are one, of 4 or 8 bytes
    keys: list[bytes] = field(default_factory=list)
    entries: list[Span] = field(default_factory=list)
    values: list[Span] = field(default_factory=list)  # from the value's type on
    tensors: list[Span] = field(default_factory=list)
    end: int = 0

    @property
    def architecture(self) -> bytes:
        """What keys of the architecture's own begin with."""
        return next((key.split(b".")[0] for key in self.keys if key.endswith(b".block_count")), b"llama")


def lay_out(data: bytes) -> Layout:
    """Walk over a sound header."""
    walk = _Walk(data)
    walk.number("magic", 4)
    walk.number("version", 4)
    num_tensors = walk.number("tensor count", 8)
    num_entries = walk.number("entry count", 8)
    for _ in range(num_entries):
        walk.entry()
    for _ in range(num_tensors):
        walk.tensor()
    walk.found.end = walk.at
    return walk.found


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        self.found = Layout()

    def number(self, kind: str, width: int) -> int:
        self.found.integers.add(kind)
        self._mark(kind, width)
        return int.from_bytes(self._data[self.at - width : self.at], "little")

    def entry(self) -> None:
        start = self.at
        self.found.keys.append(self._text("key"))
        self.found.values.append((self.at, self._value()))
        self.found.entries.append((start, self.at))

    def tensor(self) -> None:
        start = self.at
        self._text("tensor name")
        for _ in range(self.number("number of dimensions", 4)):
            self.number("dimension", 8)
        self.number("tensor type", 4)
        self.number("tensor offset", 8)
        self.found.tensors.append((start, self.at))

    def _value(self) -> int:
        """Pass over a type and a value; return where it ends."""
        kind = self.number("value type", 4)
        if kind == STRING:
            self._text("text")
        elif kind == ARRAY:
            self._array()
        else:
            self._mark("scalar", WIDTHS[kind])
        return self.at

    def _array(self) -> None:
        kind, length = self.number("element type", 4), self.number("array length", 8)
        if kind != STRING:
            return self._mark("numbers", length * WIDTHS[kind])
        for index in range(length):
            if index < TOLD_OF_AN_ARRAY:
                self._text("element")
            else:
                self.at += 8 + struct.unpack_from("<Q", self._data, self.at)[0]
        return None

    def _text(self, kind: str) -> bytes:
        length = self.number(f"length of a {kind}", 8)
        self._mark(kind, length)
        return self._data[self.at - length : self.at]

    def _mark(self, kind: str, width: int) -> None:
        self.found.fields.setdefault(kind, []).append((self.at, self.at + width))
        self.at += width
