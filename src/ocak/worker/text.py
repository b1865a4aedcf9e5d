"""Token bytes to text that is safe to show: whole UTF-8 characters, and no part of a stop string.

Invariant: the text handed out, put together, is the answer up to its first stop string, character for character,
whatever pieces it came in. The first is the one that is complete first; of two that end together, the longer.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class AnswerText:
    """The text of one answer as it grows; stop strings begin behind its first `min_tokens` tokens."""

    def __init__(self, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._num_unwatched = min_tokens  # tokens that may hold a stop string
        self._held = ""  # decoded, but perhaps the beginning of a stop string
        self.is_stopped = False

    @property
    def num_held(self) -> int:
        """Characters that are whole but not safe yet."""
        return len(self._held)

    def push(self, piece: bytes) -> str:
        """Take a token's bytes; return the text that is safe by now. `is_stopped` tells of a stop string."""
        text = self._decoder.decode(piece)
        if not self._stop:
            return text
        if self._num_unwatched > 0:
            self._num_unwatched -= 1
            return text
        return self._release(text)

    def finish(self) -> str:
        """Return what was held back; the answer ended without a stop string."""
        text = self._decoder.decode(b"", final=True)
        if not self._stop:
            return text
        safe = self._release(text)
        held, self._held = self._held, ""
        return safe + held

    def _release(self, text: str) -> str:
        self._held += text
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            _, start = min(found)
            safe, self._held = self._held[:start], ""
            return safe
        keep = max(overlap(self._held, stop) for stop in self._stop)
        split = len(self._held) - keep
        safe, self._held = self._held[:split], self._held[split:]
        return safe


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` could begin."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
