"""What the user can put right is one line on stderr and a status that is not 0."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.cli.processes import ocak


def refused(*arguments: str | Path, **how: object) -> str:
    """Run a command that must fail; return its one line."""
    result = ocak(*arguments, **how)  # type: ignore[arg-type]
    assert result.returncode in (1, 2), result
    [line] = result.stderr.splitlines()
    assert result.stdout == ""
    assert line.startswith("ocak: error: ")
    return line.removeprefix("ocak: error: ")


def test_a_missing_model_file() -> None:
    line = refused("serve", "/nowhere/model.gguf")
    assert line.startswith("there is no model file /nowhere/model.gguf; MODEL is embedded, a path")


def test_a_repository_without_its_scheme() -> None:
    assert refused("serve", "Qwen/Qwen3-0.6B-GGUF").endswith("write hf:Qwen/Qwen3-0.6B-GGUF")


@pytest.mark.parametrize("data", [b"", b"GGUF", b"<html>not found</html>", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_a_file_that_is_no_gguf(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert str(path) in refused("serve", path)


def test_a_truncated_model(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny_model.read_bytes()[:-1000])
    assert str(path) in refused("run", "hello", "-m", path)


def test_a_part_of_a_split_is_missing(tmp_path: Path) -> None:
    from tests.models import write_split_model

    first, second, _ = write_split_model(tmp_path / "split.gguf")
    second.unlink()
    assert second.name in refused("serve", first)


def test_a_port_in_use(tiny_model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused("serve", tiny_model, "--port", str(port))
    assert line == f"port {port} on 127.0.0.1 is in use; choose another with --port"


def test_an_address_that_is_not_ours() -> None:
    assert refused("serve", "--host", "192.0.2.1", "--no-auth").startswith("--host 192.0.2.1 is no address")


def test_listening_everywhere_without_a_key() -> None:
    assert "OCAK_API_KEY" in refused("serve", "--host", "0.0.0.0")


def test_a_number_out_of_range() -> None:
    assert refused("serve", "--parallel", "0") == "--parallel must be a whole number from 1 to 256, not 0"


def test_an_option_that_does_not_exist() -> None:
    assert "--port" in refused("serve", "--prot", "80")


def test_an_option_of_another_server() -> None:
    assert refused("serve", "--ctx-size", "8192").endswith("ocak's is --context, in tokens per sequence")


def test_text_that_is_no_unicode(tiny_model: Path) -> None:
    assert "lone surrogate" in refused("run", "caf\udce9", "-m", tiny_model)
    assert "lone surrogate" in refused("serve", "caf\udce9.gguf")


def test_a_verb_that_does_not_exist() -> None:
    assert "serve" in refused("sevre")


def test_a_variable_that_is_nearly_one_of_ours() -> None:
    assert refused("serve", extra={"OCAK_PARALEL": "2"}).endswith("did you mean OCAK_PARALLEL?")


def test_a_configuration_that_does_not_exist() -> None:
    assert refused("serve", "--config", "/nowhere.toml").startswith("--config /nowhere.toml: No such file")


def test_a_chat_template_that_does_not_exist(tiny_model: Path) -> None:
    assert refused("serve", tiny_model, "--chat-template", "/no.jinja").startswith("--chat-template /no.jinja:")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_directory_without_rights(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(tiny_model.read_bytes())
    folder.chmod(0)
    try:
        assert "Permission denied" in refused("serve", folder / "model.gguf")
    finally:
        folder.chmod(0o700)


def test_a_folder_instead_of_a_model(tmp_path: Path) -> None:
    assert str(tmp_path) in refused("serve", tmp_path)


def test_a_reference_that_is_none() -> None:
    assert "hf:owner/repo" in refused("pull", "hf:nonsense")


def test_no_continuous_batching() -> None:
    assert "--parallel 1" in refused("serve", "--no-cont-batching")


def test_two_models_at_once() -> None:
    assert "both given" in refused("serve", "a.gguf", "-m", "b.gguf")


def test_a_server_that_is_not_there() -> None:
    assert refused("run", "hello", "--url", "http://127.0.0.1:9").startswith("cannot reach http://127.0.0.1:9")


def test_a_question_of_nothing(tiny_model: Path) -> None:
    assert "there is no question" in refused("run", "-m", tiny_model, stdin=" \n")


def test_without_arguments_the_help_is_shown() -> None:
    result = ocak()
    assert result.returncode == 0
    assert "Usage: ocak" in result.stdout
