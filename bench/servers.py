"""Starts and stops the servers under test, on free loopback ports, and reads their costs.

Knows no workload. Only processes started here are ever stopped, by their own id.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench import paths

READY_WITHIN_S = 120
MODEL_NAME = "bench"
LCP = "llama-cpp-python's server"


@dataclass(frozen=True, slots=True)
class Program:
    """How to start one server; ``{port}`` in the command is replaced by a free port."""

    name: str
    command: tuple[str, ...]
    ready_path: str
    served_name: str = MODEL_NAME
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def is_ocak(self) -> bool:
        """Whether it has ocak's metrics and status routes."""
        return self.name.startswith("ocak")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    program: Program
    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def front_cpu_s(self) -> float:
        """CPU seconds used so far by the process itself, its children left out."""
        return _cpu_s(psutil.Process(self.process.pid))

    def children_cpu_s(self) -> float:
        """CPU seconds used so far by its living children (ocak: the workers)."""
        return sum(_cpu_s(child) for child in self._children())

    def rss_mib(self) -> tuple[float, float]:
        """Resident MiB of the process itself and of all of its children."""
        own = psutil.Process(self.process.pid).memory_info().rss
        return own / 2**20, sum(child.memory_info().rss for child in self._children()) / 2**20

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def ocak(model: str, parallel: int, context: int, *options: str, name: str = "ocak") -> Program:
    """Ocak with one model, two threads, ``context`` cells a slot."""
    sizes = ("--parallel", str(parallel), "--context", str(context), "--threads", "2")
    command = (*OCAK, "serve", model, "--port", "{port}", *sizes, "--served-name", MODEL_NAME, *options)
    return Program(name, command, "/health/ready")


def llama_server(model: str, parallel: int, context: int, *options: str, name: str = "llama-server") -> Program:
    """The peer with the same cells, its prompt caches off (no request repeats a prompt)."""
    sizes = ("-np", str(parallel), "-c", str(parallel * context), "-t", "2")
    quiet = ("--no-webui", "--log-disable", "--metrics", "--cache-ram", "0")
    command = (str(paths.tool("llama-server")), "-m", model, "--port", "{port}", *sizes, *quiet, *options)
    return Program(name, command, "/health")


def lcp_server(model: str, parallel: int, context: int) -> Program:
    """llama-cpp-python's own server script, which shares its cells and keeps a trie of prefixes."""
    script = paths.llama_cpp().parent.parent / "examples" / "server" / "server.py"
    starter = str(Path(__file__).with_name("lcp_server.py"))
    sizes = (str(parallel), str(parallel * context))
    command = (str(paths.lcp_python()), starter, str(script), model, "{port}", *sizes)
    return Program(LCP, command, "/v1/models")


OCAK = (sys.executable, "-m", "ocak")
NO_PREFIXES = "--no-prefix-cache"  # where the two sides of a round send the same prompts


@contextmanager
def running(*programs: Program) -> Iterator[list[Server]]:
    """Start all, one after another, wait until each is ready; stop all at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(_running(program)) for program in programs]


@contextmanager
def _running(program: Program) -> Iterator[Server]:
    server = start(program)
    try:
        wait_until_ready(server)
        yield server
    finally:
        stop(server)


def start(program: Program) -> Server:
    """Start without waiting, in the folder of logs, where no configuration file lies."""
    port = free_port()
    command = [part.replace("{port}", str(port)) for part in program.command]
    logs = paths.peers() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{program.name.replace(' ', '-')}.log").open("ab") as log:
        environment = _environment() | dict(program.environment)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=logs)
    return Server(program, process, port)


def wait_until_ready(server: Server, path: str | None = None, poll_s: float = 0.02) -> None:
    """Return once ``path`` (default: the program's readiness) answers 200."""
    deadline = time.monotonic() + READY_WITHIN_S
    while not answers(server.url + (path or server.program.ready_path)):
        if server.process.poll() is not None:
            raise RuntimeError(f"{server.program.name} ended with {server.process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{server.program.name} was not ready within {READY_WITHIN_S} s")
        time.sleep(poll_s)


def answers(url: str) -> bool:
    """Whether the address answers 200 now."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def stop(server: Server) -> None:
    """Ask it to end; kill it, and any child it left behind, after 15 s."""
    children = server._children() if server.process.poll() is None else []
    server.process.terminate()
    try:
        server.process.wait(15)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait(5)
    _, left_behind = psutil.wait_procs(children, timeout=5)
    for child in left_behind:
        child.kill()


def free_port() -> int:
    """A loopback port nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _environment() -> dict[str, str]:
    """The environment without ocak's own settings: a benchmark states all of them."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("OCAK_", "LLM_LLAMA_SERVICE_"))}
