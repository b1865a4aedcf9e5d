"""Closed streams, and an output that is full: no reason to fall."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import environ


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full"])
def test_a_missing_or_full_stream_is_no_reason_to_crash(redirection: str, tiny_model: Path) -> None:
    command = f"{sys.executable} -m ocak run -m {tiny_model} --max-tokens 2 x {redirection}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, env=environ(), check=False
    )
    assert "Traceback" not in result.stderr
    assert result.returncode == (1 if redirection == ">/dev/full" else 0), result.stderr
