"""Two servers on one machine: they share a cache of models, and cannot share a port."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cli.processes import DEADLINE_S, command, environ, ocak, serving
from tests.hub.stand_in import hub_stand_in


def in_use(port: int) -> str:
    return f"ocak: error: port {port} on 127.0.0.1 is in use; choose another with --port"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=DEADLINE_S) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_port_that_another_server_has_is_named_and_that_server_goes_on(tiny_model: Path) -> None:
    with serving(tiny_model) as first:
        port = int(first.url.rpartition(":")[2])
        second = ocak("serve", tiny_model, "--port", str(port))
        assert (second.returncode, second.stderr.splitlines()) == (2, [in_use(port)])
        assert first.get("/v1/models")["data"]


def test_of_two_that_have_yet_to_pull_their_model_one_gets_the_port_and_one_says_why_not(
    tmp_path: Path, tiny_model: Path
) -> None:
    """Both may take the port while neither listens; the first that does has it."""
    port = free_port()
    with hub_stand_in() as hub:
        hub.repos["maker/tiny-GGUF"] = {"tiny-Q8_0.gguf": tiny_model.read_bytes()}
        hub.pause.clear()
        both = [start(port, {"HF_ENDPOINT": hub.endpoint, "OCAK_HOME": str(tmp_path / home)}) for home in "ab"]
        try:
            until(lambda: len(hub.contents()) == 2)
            hub.pause.set()
            until(lambda: any(process.poll() is not None for process in both))
            ended, other = sorted(both, key=lambda process: process.poll() is None)
            said = ended.communicate(timeout=DEADLINE_S)[1]
            assert (ended.returncode, said.splitlines()[-1]) == (2, in_use(port))
            assert "Traceback" not in said
            until(lambda: answers(port))
            assert other.poll() is None
        finally:
            for process in both:
                process.kill()
                process.communicate()


def start(port: int, where: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("serve", "hf:maker/tiny-GGUF", "--port", str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environ({"HF_TOKEN": "", "HF_HUB_OFFLINE": "", **where}),
    )


def test_two_servers_that_need_the_same_model_pull_it_once(tmp_path: Path, tiny_model: Path) -> None:
    with hub_stand_in() as hub, ThreadPoolExecutor() as threads:
        hub.repos["maker/tiny-GGUF"] = {"tiny-Q8_0.gguf": tiny_model.read_bytes()}
        where = {"HF_ENDPOINT": hub.endpoint, "OCAK_HOME": str(tmp_path), "HF_TOKEN": "", "HF_HUB_OFFLINE": ""}

        def served(_: int) -> str:
            with serving("hf:maker/tiny-GGUF", extra=where) as server:
                name: str = server.get("/v1/models")["data"][0]["id"]
                return name

        hub.pause.clear()
        names = threads.map(served, range(2))
        assert hub.started.wait(DEADLINE_S)
        hub.pause.set()
        assert list(names) == ["tiny-GGUF"] * 2
        assert len(hub.contents()) == 1
