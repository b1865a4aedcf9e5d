"""Shows how far something long has come: a line that rewrites itself on a terminal, else a few lines."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

REDRAW_S = 0.1
CLEAR = "\r\x1b[K"
STEP_ELSEWHERE = 0.25  # without a terminal: a line each quarter,
PATIENCE_S = 2.0  # if it takes that long at all


class ProgressLine:
    """`show` may be called from any one thread, as often as one likes."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._began_at = time.monotonic()
        self._drawn_at = 0.0
        self._next_step = STEP_ELSEWHERE
        self.is_open = False

    def show(self, label: str, fraction: float, detail: str = "") -> None:
        """Draw the line; `fraction` runs from 0 to 1."""
        if self._is_terminal:
            self._redraw(f"{label} {_bar(fraction)} {fraction:4.0%}  {detail}")
        elif fraction >= self._next_step and time.monotonic() - self._began_at >= PATIENCE_S:
            self._next_step = fraction - fraction % STEP_ELSEWHERE + STEP_ELSEWHERE
            print(f"{label} {fraction:.0%} {detail}".rstrip(), file=self._stream, flush=True)  # noqa: T201

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self.is_open:
            self._stream.write(CLEAR)
            self._stream.flush()
        self.is_open = False

    def _redraw(self, text: str) -> None:
        now = time.monotonic()
        if now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        self.is_open = True
        self._stream.write(f"{CLEAR}{text}\r"[:200])
        self._stream.flush()


class LogStream(io.StringIO):
    """Standard error for log lines: each begins by wiping what a progress line has left there."""

    def write(self, text: str) -> int:
        return sys.stderr.write(CLEAR + text if sys.stderr.isatty() and text.strip() else text)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def progress_line() -> Iterator[ProgressLine]:
    line = ProgressLine()
    try:
        yield line
    finally:
        line.close()


def bytes_text(count: float) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _bar(fraction: float, width: int = 24) -> str:
    filled = round(max(0.0, min(1.0, fraction)) * width)
    return "█" * filled + "░" * (width - filled)
