"""Models that this machine cannot serve: the last line says what is wrong, no traceback; the status is 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.processes import ocak


@pytest.fixture
def foreign(tmp_path: Path, tiny_model: Path) -> Path:
    """A sound file, of an architecture that nobody knows."""
    path = tmp_path / "foreign.gguf"
    path.write_bytes(tiny_model.read_bytes().replace(b"llama", b"brama"))
    return path


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("run", "hello", "-m"), ("plan",)])
def test_an_architecture_that_llama_cpp_does_not_know_is_named(foreign: Path, command: tuple[str, ...]) -> None:
    result = ocak(*command, foreign)
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert line.startswith("ocak: error: ") and str(foreign) in line
    assert "does not know the architecture 'brama'" in line and "choose another model" in line
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_a_key_in_a_file_cannot_write_to_the_terminal(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "forged.gguf"
    path.write_bytes(tiny_model.read_bytes().replace(b"llama.block_count\x04", b"\x1b[2J\nocak: good\x63"))
    result = ocak("serve", path)
    [line] = result.stderr.splitlines()
    assert result.returncode == 1 and line.isprintable()
    assert r"\x1b[2J\nocak: good" in line
