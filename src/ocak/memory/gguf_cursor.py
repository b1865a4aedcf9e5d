"""Reads the values of a GGUF header one after another. Knows no key, no tensor and no architecture.

Reads through a small window instead of a memory map: a file that shrinks meanwhile is an error, not a crash.
Large arrays (vocabularies, merges) are walked and checked but not kept.
Invariant: nothing is allocated before its length was compared with what is left of the file and with
`HeaderLimits`, so a header costs at most the window, `kept_bytes` and a bounded number of small objects.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final, NoReturn

from ocak.core.errors import ModelFileError
from ocak.core.shown import one_line

_WINDOW: Final = 1 << 16
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
STRING_TYPE: Final = 8
ARRAY_TYPE: Final = 9
_OBJECT_BYTES: Final = 64  # what a small Python object costs beside its contents
UINT32_TYPE: Final = 4
FLOAT32_TYPE: Final = 6
_SCALARS: Final = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    UINT32_TYPE: ("uint32", "I"),
    5: ("int32", "i"),
    FLOAT32_TYPE: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
SCALAR_NAMES: Final = {number: name for number, (name, _) in _SCALARS.items()}


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """How much of a header may be walked and kept; far above every real model."""

    header_bytes: int = 256 << 20
    num_entries: int = 1 << 15
    key_bytes: int = 1024
    kept_bytes: int = 16 << 20
    kept_elements: int = 4096
    kept_strings: int = 256
    walked_strings: int = 2_000_000


LIMITS: Final = HeaderLimits()


@dataclass(frozen=True, slots=True)
class LargeArray:
    """An array that was checked and passed over: only its element type and length are kept."""

    element_type: str
    length: int


Scalar = int | float | bool | str
MetadataValue = Scalar | tuple[Scalar, ...] | LargeArray


class Cursor:
    """A position in a header, moving forward only. Every failure is a `ModelFileError` naming the field."""

    def __init__(self, file: BinaryIO, size: int, fail: Callable[[str], NoReturn]) -> None:
        self.field = "the header"
        self._file = file
        self._size = size
        self._fail = fail
        self._window = b""
        self._start = 0
        self._at = 0
        self._kept_bytes = 0
        self._walked_strings = 0

    @property
    def position(self) -> int:
        """Offset in the file of the next byte."""
        return self._start + self._at

    @property
    def remaining(self) -> int:
        """Bytes between the position and the end of the file."""
        return self._size - self.position

    def raw(self, num_bytes: int) -> bytes:
        self._need(num_bytes)
        self._at += num_bytes
        return self._window[self._at - num_bytes : self._at]

    def u32(self) -> int:
        return int(_U32.unpack(self.raw(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self.raw(8))[0])

    def count(self, what: str, bytes_each: int) -> int:
        """A number of entries that each take `bytes_each` or more: refused when they cannot be there."""
        count = self.u64()
        if count > LIMITS.num_entries:
            self._fail(f"{what} is {count}, the limit is {LIMITS.num_entries}")
        if count * bytes_each > self.remaining:
            self._fail(f"{what} is {count}, but only {self.remaining} bytes follow")
        return count

    def short_text(self, what: str, limit: int) -> str:
        """A key or a name: not empty, at most `limit` bytes."""
        length = self.u64()
        if not 0 < length <= limit:
            self._fail(f"{what} is {length} bytes long, it must be 1 to {limit}")
        self._keep(length)
        return self.raw(length).decode("utf-8", errors="replace")

    def value(self, value_type: int) -> MetadataValue:
        """The value of one metadata entry; large arrays come back as `LargeArray`."""
        if value_type == STRING_TYPE:
            return self._text()
        if value_type == ARRAY_TYPE:
            return self._array()
        _, code = self._scalar_type(value_type)
        number: int | float | bool = struct.unpack("<" + code, self.raw(struct.calcsize("<" + code)))[0]
        return number

    def _text(self) -> str:
        length = self.u64()
        self._keep(length)
        return self.raw(length).decode("utf-8", errors="replace")

    def _array(self) -> MetadataValue:
        element_type, length = self.u32(), self.u64()
        if element_type == STRING_TYPE:
            return self._strings(length)
        if element_type == ARRAY_TYPE:
            self._fail(f"{self.field} is an array of arrays, which llama.cpp cannot read")
        return self._numbers(element_type, length)

    def _numbers(self, element_type: int, length: int) -> MetadataValue:
        name, code = self._scalar_type(element_type)
        num_bytes = length * struct.calcsize("<" + code)
        if num_bytes > self.remaining:
            self._fail(f"{self.field} claims {length} elements, but only {self.remaining} bytes follow")
        if length > LIMITS.kept_elements:
            self._seek(self.position + num_bytes)
            return LargeArray(name, length)
        self._keep(num_bytes, num_objects=length)
        return tuple(struct.unpack(f"<{length}{code}", self.raw(num_bytes)))

    def _strings(self, length: int) -> MetadataValue:
        self._walked_strings += length
        if length * 8 > self.remaining:
            self._fail(f"{self.field} claims {length} strings, but only {self.remaining} bytes follow")
        if self._walked_strings > LIMITS.walked_strings:
            self._fail(f"the arrays up to {self.field} hold over {LIMITS.walked_strings} strings, the limit")
        if length <= LIMITS.kept_strings:
            return tuple(self._text() for _ in range(length))
        self._skip_strings(length)
        return LargeArray("string", length)

    def _skip_strings(self, length: int) -> None:
        """Walk over strings by their lengths; inside the window this is the hot loop of a header."""
        unpack, window, at = _U64.unpack_from, self._window, self._at
        for _ in range(length):
            if at + 8 > len(window):
                self._seek(self._start + at)
                self._need(8)
                window, at = self._window, self._at
            at += 8 + unpack(window, at)[0]
        self._seek(self._start + at)

    def _scalar_type(self, value_type: int) -> tuple[str, str]:
        if value_type not in _SCALARS:
            self._fail(f"{self.field} has the unknown value type {value_type}")
        return _SCALARS[value_type]

    def _keep(self, num_bytes: int, num_objects: int = 1) -> None:
        """Charge what is about to be kept to the budget, before it is allocated."""
        if num_bytes > self.remaining:
            self._fail(f"{self.field} claims {num_bytes} bytes, but only {self.remaining} follow")
        self._kept_bytes += num_bytes + num_objects * _OBJECT_BYTES
        if self._kept_bytes > LIMITS.kept_bytes:
            self._fail(f"the metadata up to {self.field} exceeds {LIMITS.kept_bytes} bytes, the limit")

    def _seek(self, position: int) -> None:
        if position > self._size:
            self._fail(f"{self.field} ends at byte {position}, the file at {self._size}: it is truncated")
        if position > LIMITS.header_bytes:
            self._fail(f"{self.field} ends at byte {position}, the limit for a header is {LIMITS.header_bytes}")
        if position <= self._start + len(self._window):
            self._at = position - self._start
        else:
            self._window, self._start, self._at = b"", position, 0

    def _need(self, num_bytes: int) -> None:
        """Make the window hold the next `num_bytes`."""
        if self._at + num_bytes <= len(self._window):
            return
        if num_bytes > self.remaining:
            self._fail(f"{self.field} needs {num_bytes} bytes at {self.position}, the file ends at {self._size}")
        self._start, self._at = self.position, 0
        self._file.seek(self._start)
        self._window = self._file.read(max(num_bytes, _WINDOW))
        if len(self._window) < num_bytes:
            self._fail(f"the file became shorter while {self.field} was read")


def refuse(path: object, problem: str) -> ModelFileError:
    """The error for a model file: which file, what is wrong (it may quote the file: a line of it), what to do."""
    return ModelFileError(
        f"{path}: {one_line(problem)}. Fetch the file again or choose another one.", param="source"
    )
