"""`ocak serve` from its banner to its end, in a process of its own."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.cli.processes import RunningServer, ocak, serving


@contextmanager
def an_answer(server: RunningServer, max_tokens: int) -> Iterator[http.client.HTTPResponse]:
    """Begin an answer; yield it after its first bytes."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    body = {"prompt": "go", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    with closing(connection), connection.getresponse() as answer:
        assert answer.status == 200
        assert answer.readline()
        yield answer


def test_the_banner_tells_the_address_the_model_its_memory_and_a_request(tiny_model: Path) -> None:
    with serving(tiny_model, "--parallel", "2", "--context", "256") as server:
        assert f"at {server.url}" in server.banner
        assert "tiny (llama, 99.1 k parameters) on " in server.banner
        assert "context 256 tokens, 2 sequences, 512 KV cells" in server.banner
        assert "weights + " in server.banner and " resident" in server.banner
        assert f"curl {server.url}/v1/chat/completions" in server.banner
        assert server.get("/health/ready")["status"] == "ready"
        [model] = server.get("/models/status")["models"]
        assert model["memory"]["estimated"] > 0


def test_served_names_come_first_and_the_own_name_still_works(tiny_model: Path) -> None:
    with serving(tiny_model, "--served-name", "gpt-x", "--alias", "y") as server:
        assert server.get("/v1/models")["data"][0]["id"] == "gpt-x"
        for name in ("gpt-x", "y", "tiny"):
            assert server.get(f"/v1/models/{name}")["object"] == "model"


def test_a_configuration_serves_several_models(tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "ocak.toml"
    config.write_text(f'[models.a]\nsource = "{tiny_model}"\n[models.b]\nsource = "{tiny_model}"\nparallel = 1\n')
    with serving("--config", config) as server:
        assert [model["id"] for model in server.get("/v1/models")["data"]] == ["a", "b"]


def test_a_key_is_asked_for_in_the_pasted_request(tiny_model: Path) -> None:
    with serving(tiny_model, extra={"OCAK_API_KEY": "long-enough"}) as server:
        assert "$OCAK_API_KEY" in server.banner
        assert "long-enough" not in server.banner


def test_a_front_without_models_serves() -> None:
    with serving("--no-models") as server:
        assert server.get("/health/live")


def test_no_worker_outlives_the_server(tiny_model: Path) -> None:
    with serving(tiny_model) as server:
        workers = psutil.Process(server.process.pid).children()
        assert workers
        assert server.end() == 0
        assert not any(worker.is_running() for worker in workers)


def test_an_answer_in_flight_is_finished_before_the_end(tiny_model: Path) -> None:
    with serving(tiny_model) as server, an_answer(server, max_tokens=300) as answer:
        server.process.send_signal(signal.SIGTERM)
        assert answer.read().rstrip().endswith(b"data: [DONE]")
        assert server.process.wait(30) == 0


def test_a_second_ctrl_c_ends_at_once(talkative: tuple[Path | str, ...]) -> None:
    with serving(*talkative, "--drain-seconds", "600") as server, an_answer(server, max_tokens=60_000) as answer:
        server.process.send_signal(signal.SIGINT)
        _wait_until_refused(server)
        server.process.send_signal(signal.SIGINT)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
        assert server.process.wait(30) == 0


def test_an_answer_that_outlasts_the_deadline_is_ended(talkative: tuple[Path | str, ...]) -> None:
    with serving(*talkative, "--drain-seconds", "1") as server, an_answer(server, max_tokens=60_000) as answer:
        server.process.send_signal(signal.SIGTERM)
        assert b"[DONE]" not in _read_to_the_end(answer)
        assert server.process.wait(30) == 0


def test_a_model_that_no_worker_can_load_ends_the_server_with_the_reason(tmp_path: Path) -> None:
    from tests.models import TinyModel, write_model

    path = write_model(tmp_path / "odd.gguf", TinyModel())
    path.write_bytes(
        path.read_bytes()
        .replace(b"llama.", b"lluma.")
        .replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lluma")
    )
    result = ocak("serve", path, "--port", "0")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("ocak: error: ")


def _read_to_the_end(answer: http.client.HTTPResponse) -> bytes:
    try:
        return answer.read()
    except http.client.IncompleteRead as error:
        return error.partial
    except ConnectionError:
        return b""


def _wait_until_refused(server: RunningServer) -> None:
    """Return when the server takes no more connections: the first signal has arrived."""
    host, port = server.url.removeprefix("http://").split(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=30).close()
        except ConnectionError:
            return
