"""Asks a process of its own what models would take (`worker/dry_run.py`): it may die of a model, we do not.

Invariant: the process is gone when the `with` block ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from threading import Timer
from typing import Self

import msgspec

from ocak.core.errors import LoadFailed
from ocak.fleet.process import ENVIRONMENT
from ocak.memory.needs import Measured, Needs
from ocak.worker.messages import LoadOptions

ANSWER_WITHIN_S = 120.0  # a vocabulary of a million tokens takes seconds
MEASURED: msgspec.json.Decoder[Measured] = msgspec.json.Decoder(Measured)


class Prober:
    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ocak.worker.dry_run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=ENVIRONMENT | os.environ,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def measure(self, options: LoadOptions) -> Needs:
        """Return what loading so would take. Raises `LoadFailed`."""
        measured = self._ask(msgspec.json.encode(options))
        if measured.needs is None:
            raise LoadFailed(measured.error, param=measured.param)
        return measured.needs

    def _ask(self, question: bytes) -> Measured:
        assert self._process.stdin is not None and self._process.stdout is not None
        guard = Timer(ANSWER_WITHIN_S, self._process.kill)
        guard.start()
        try:
            self._process.stdin.write(question + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            guard.cancel()
        if not answer.endswith(b"\n"):
            raise LoadFailed(f"llama.cpp ended while it was asked what this model takes: {self._last_words()}")
        return MEASURED.decode(answer)

    def _last_words(self) -> str:
        self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").split("\n")
        words = [line.strip() for line in lines if line.strip()]
        return words[-1] if words else f"status {self._process.returncode}"
