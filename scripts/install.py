"""Runs pip and shows in one line how far it is, llama.cpp's compilation included.

Usage: install.py PIP-ARGUMENTS. The whole output goes to a log beside the environment; when pip fails, its end
is shown and its status is returned. Needs nothing but the standard library.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

LOG = Path(sys.prefix) / "install.log"
TAIL_LINES = 40
QUIET_S = 10  # without a terminal: a line this often
STEPS = re.compile(r"^\s*\[\s*(\d+)/(\d+)\] ")  # ninja
PERCENT = re.compile(r"^\s*\[\s*(\d+)%\] ")  # make
STAGES = {
    "Collecting ": "collecting",
    "Downloading ": "downloading",
    "Installing build dependencies": "preparing the build",
    "Getting requirements to build": "preparing the build",
    "Building wheel for ": "building",
    "Building editable for ": "building",
    "Installing collected packages": "installing",
}


class Display:
    """One line, rewritten on a terminal, repeated now and then elsewhere."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._shown_at = -float(QUIET_S)

    def show(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        line = f"{text}  ({seconds:.0f} s)"
        if self._is_terminal:
            sys.stdout.write(f"\r\x1b[K{line[:100]}")
        elif seconds - self._shown_at >= QUIET_S:
            self._shown_at = seconds
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def close(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        sys.stdout.write(f"{chr(13) + chr(27) + '[K' if self._is_terminal else ''}{text} in {seconds:.0f} s\n")


def main() -> int:
    arguments = sys.argv[1:]
    display = Display()
    with subprocess.Popen(
        [sys.executable, "-m", "pip", "install", "--verbose", "--no-input", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        assert pip.stdout is not None
        tail = follow(pip.stdout, display)
    if pip.returncode:
        display.close("failed")
        sys.stdout.write("\n".join(tail) + f"\n\nThe whole output: {LOG}\n")
    else:
        display.close("installed")
    return pip.returncode


def follow(lines: Iterable[str], display: Display) -> deque[str]:
    """Log every line, show what it says of the progress, and return the last ones."""
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with LOG.open("a") as log:
        for line in lines:
            log.write(line)
            tail.append(line.rstrip())
            if text := progress(line):
                display.show(text)
    return tail


def progress(line: str) -> str | None:
    """What one line of pip's output says of the progress; None when it says nothing."""
    text = line.strip()
    if match := STEPS.match(line):
        return f"compiling llama.cpp [{match[1]}/{match[2]}]"
    if match := PERCENT.match(line):
        return f"compiling llama.cpp {match[1]} %"
    for start, stage in STAGES.items():
        if text.startswith(start):
            rest = text.removeprefix(start).split(" ")[0] if start.endswith(" ") else ""
            return f"{stage} {rest}".strip()
    return None


if __name__ == "__main__":
    sys.exit(main())
