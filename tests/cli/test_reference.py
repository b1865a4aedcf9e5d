"""The documentation of the command line says what the command line says."""

from __future__ import annotations

import subprocess
import sys

from tests.cli.processes import SOURCE, environ


def test_docs_cli_md_is_up_to_date() -> None:
    script = SOURCE.parent / "scripts" / "cli_reference.py"
    result = subprocess.run([sys.executable, script, "--check"], env=environ(), check=False)
    assert result.returncode == 0, "run: make docs"
