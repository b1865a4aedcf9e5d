"""Writes docs/cli.md from the --help texts; `--check` only tells whether it is up to date."""

from __future__ import annotations

import os
import sys
from pathlib import Path

REFERENCE = Path(__file__).parent.parent / "docs" / "cli.md"
RESIDENCE = (("ps",), ("load",), ("unload",), ("pin",), ("unpin",))
VERBS = ((), ("serve",), ("run",), ("plan",), *RESIDENCE, ("pull",), ("config", "check"), ("version",))
WIDTH = "100"
HEAD = """# The command line

Generated from the `--help` texts by `make docs`; a test keeps it up to date. Every option of `ocak serve` is
also a setting of `ocak.toml` and a variable: `--kv-cells 8192` is `kv_cells = 8192` and `OCAK_KV_CELLS=8192`.
Flags win over variables, variables over the file, the file over the defaults.
"""


def reference() -> str:
    """Return the whole document."""
    os.environ["COLUMNS"] = WIDTH
    return "\n".join(
        [HEAD, *(f"## ocak {' '.join(verb)}".rstrip() + f"\n\n```\n{help_text(verb)}```\n" for verb in VERBS)]
    )


def help_text(verb: tuple[str, ...]) -> str:
    from typer.testing import CliRunner

    from ocak.cli.main import app

    result = CliRunner().invoke(app, [*verb, "--help"], prog_name="ocak")
    return "\n".join(line.rstrip() for line in result.output.splitlines()) + "\n"


def main() -> int:
    text = reference()
    if "--check" in sys.argv:
        return 0 if REFERENCE.read_text() == text else 1
    REFERENCE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
