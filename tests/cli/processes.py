"""Starts the real command line in processes of its own. Knows no test."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "src"
DEADLINE_S = 30.0
LAST_LINES = ("    -d ", "  no model is served")  # of the banner
OWN = ("OCAK_", "LLM_LLAMA_SERVICE_")


def environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without anybody's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    return {**kept, "PYTHONPATH": str(SOURCE), "PYTHONUTF8": "1", **(extra or {})}


def ocak(
    *arguments: str | Path,
    stdin: str | None = None,
    extra: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        command(*arguments),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environ(extra),
        cwd=folder,
        check=False,
    )


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "ocak", *map(str, arguments)]


class RunningServer:
    """`ocak serve` on a free port, after its banner."""

    def __init__(self, process: subprocess.Popen[str], banner: str) -> None:
        self.process = process
        self.banner = banner
        match = re.search(r"http://[^ ]+:\d+", banner)
        assert match, banner
        self.url = match[0]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=DEADLINE_S) as answer:
            return json.load(answer)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def serving(*arguments: str | Path, extra: Mapping[str, str] | None = None) -> Iterator[RunningServer]:
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ(extra),
    )
    try:
        yield RunningServer(process, _banner(process))
    finally:
        process.kill()
        process.communicate()


def _banner(process: subprocess.Popen[str]) -> str:
    """Everything up to its last line; a server that says nothing is ended, which ends the reading."""
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    try:
        while line := process.stdout.readline():
            lines.append(line)
            if line.startswith(LAST_LINES):
                return "".join(lines)
    finally:
        watchdog.cancel()
    raise AssertionError("".join(lines) + process.stderr.read())


class Terminal:
    """A command in a pseudo-terminal."""

    def __init__(self, *arguments: str | Path) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            os.execve(sys.executable, command(*arguments), environ({"TERM": "dumb"}))
        self._pid = pid
        self.status: int | None = None
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def read_until(self, pattern: str) -> str:
        """Read on until `pattern` is found in what is new; return that."""
        start, deadline = len(self.seen), time.monotonic() + DEADLINE_S
        while not re.search(pattern, self.seen[start:]):
            assert self._read_some(deadline), f"{pattern!r} is not in {self.seen[start:]!r}"
        return self.seen[start:]

    def wait(self) -> int:
        """Return the exit status."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read_some(deadline):
            pass
        assert time.monotonic() < deadline, f"still running after {self.seen[-200:]!r}"
        self.status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return self.status

    def interrupt(self) -> int:
        """Press Ctrl-C until the command ends: one between the prompt and its reading is lost."""
        while self.status is None:
            self.type("\x03")
            while self._read_some(time.monotonic() + 0.5):
                pass
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.status is None:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        os.close(self._fd)

    def _read_some(self, deadline: float) -> bool:
        """Read what there is; False at the end, or after the deadline."""
        if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)
