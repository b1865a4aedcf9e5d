"""From a request to its first token where the model is not loaded: cold, warm, and when another has to go for it.

Cold: a fresh server, the file dropped from the page cache. Warm: a running server with a worker that stands by.
llama-server's router swaps the same two files. The limit of a swap is what copying the weights and reading the
vocabulary take, measured in the same run.
"""

import http.client
import json
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from bench import paths
from bench.report import Report, Row, say
from bench.servers import OCAK, Program, Server, running, start, stop

CONTEXT, PARALLEL, LIMIT = 1024, 4, "1700MB"  # enough for either model, not for both
PROBE_S = 0.005
GONE_WITHIN_S = 10.0
Samples = dict[str, list[float]]


def measure(short: bool = False) -> Report:
    """Cold starts, warm loads, swaps of both programs in turn, and how soon a model's memory is back."""
    repeats = 3 if short else 10
    samples: Samples = {name: [] for name in ("cold", "warm", "ocak", "llama-server", "lag", "unload")}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for key, model in (("a", paths.model()), ("b", paths.cycle_model())):
            (folder / f"{key}.gguf").symlink_to(model)
        for _ in range(repeats):
            samples["cold"].append(_cold(folder))
        with running(_ocak(folder), _router(folder)) as (ours, peer):
            _warm(ours, repeats, samples)
            for _ in range(repeats):
                for server in (ours, peer):
                    _swap(server, samples)
    limit_s = _limit(paths.cycle_model())
    return _report(samples, limit_s)


def _cold(folder: Path) -> float:
    """Start a server on a file that is on the disk alone, and ask at once."""
    with paths.model().open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    server = start(_ocak(folder))
    try:
        _ask(server, "a")
        return time.perf_counter() - started
    finally:
        stop(server)


def _warm(server: Server, repeats: int, samples: Samples) -> None:
    """Unload and ask again; what the front does meanwhile is measured too."""
    expected = _ask(server, "a")
    for _ in range(repeats):
        unloaded = time.perf_counter()
        _post(server, "/api/v1/models/a/unload")
        samples["unload"].append(time.perf_counter() - unloaded)
        _until_standby(server)
        with _lag(server, samples["lag"]):
            started = time.perf_counter()
            assert _ask(server, "a") == expected, "another first token"
            samples["warm"].append(time.perf_counter() - started)
        say(f"swap: warm {samples['warm'][-1]:.2f} s")


def _swap(server: Server, samples: Samples) -> None:
    """From one model to the other and back; the way there is not counted."""
    _ask(server, "a")
    if server.program.is_ocak:
        _until_standby(server)
    started = time.perf_counter()
    _ask(server, "b")
    samples[server.program.name].append(time.perf_counter() - started)
    say(f"swap: {server.program.name} {samples[server.program.name][-1]:.2f} s")


def _ask(server: Server, model: str) -> str:
    """Return the first token's text; until the server listens, try again."""
    body = json.dumps({"model": model, "prompt": "hello", "max_tokens": 1, "temperature": 0, "stream": True})
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            with connection.getresponse() as answer:
                if answer.status == 200:
                    return _first_text(answer)
        except ConnectionError:
            pass
        finally:
            connection.close()
        time.sleep(PROBE_S)


def _first_text(answer: http.client.HTTPResponse) -> str:
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "choices" not in event:
                raise RuntimeError(f"no answer: {event}")
            return str(event["choices"][0]["text"])
    raise RuntimeError("the stream had no text")


def _post(server: Server, path: str) -> None:
    request = urllib.request.Request(f"{server.url}{path}", method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _until_standby(server: Server) -> None:
    """Wait until a worker stands by: one more than models are loaded, and it has imported what it needs."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while len(server._children()) < _num_loaded(server) + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)


def _num_loaded(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/models/status", timeout=10) as answer:
        return sum(model["state"] == "ready" for model in json.load(answer)["models"])


@contextmanager
def _lag(server: Server, seen: list[float]) -> Iterator[None]:
    """Ask the front for its health again and again meanwhile, and note how long each answer takes."""
    is_over = threading.Event()

    def probe() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        while not is_over.wait(PROBE_S):
            started = time.perf_counter()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            seen.append(time.perf_counter() - started)
        connection.close()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _limit(model: Path) -> float:
    """Seconds that it takes at least: its bytes copied from the page cache into memory, and its vocabulary."""
    import llama_cpp

    buffer = np.zeros(model.stat().st_size, np.uint8)
    copied: list[float] = []
    read: list[float] = []
    for _ in range(3):
        started = time.perf_counter()
        with model.open("rb", buffering=0) as file:
            file.readinto(memoryview(buffer))
        copied.append(time.perf_counter() - started)
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        started = time.perf_counter()
        llama_cpp.llama_model_free(llama_cpp.llama_model_load_from_file(str(model).encode(), parameters))
        read.append(time.perf_counter() - started)
    say(f"swap: limit: {min(copied):.2f} s for the bytes, {min(read):.2f} s for the vocabulary")
    return min(copied) + min(read)


def _ocak(folder: Path) -> Program:
    """Two models, of which one fits."""
    config = folder / "ocak.toml"
    sizes = f"context = {CONTEXT}\nparallel = {PARALLEL}\nthreads = 2\npreload = false\n"
    config.write_text("".join(f'[models.{key}]\nsource = "{folder}/{key}.gguf"\n{sizes}' for key in "ab"))
    command = (*OCAK, "serve", "--config", str(config), "--port", "{port}", "--memory-limit", LIMIT)
    return Program("ocak", command, "/health/live")


def _router(folder: Path) -> Program:
    sizes = ("-np", str(PARALLEL), "-c", str(PARALLEL * CONTEXT), "-t", "2", "--models-max", "1")
    command = (str(paths.tool("llama-server")), "--models-dir", str(folder), "--port", "{port}", *sizes)
    return Program("llama-server", (*command, "--no-webui", "--log-disable"), "/health")


def _report(samples: Samples, limit_s: float) -> Report:
    middle = {name: median(seconds) for name, seconds in samples.items()}
    lag_ms = 1000 * float(np.percentile(samples["lag"], 99))
    warm, swap, peer = middle["warm"] / middle["cold"], middle["ocak"] / limit_s, middle["llama-server"]
    rows = [
        Row("warm / cold, to the first token", "≤ 0.35 x", f"{warm:.2f} x", warm <= 0.35),
        Row("a swap / its limit", "≤ 1.5 x", f"{swap:.2f} x", swap <= 1.5),
        Row("llama-server's router / ocak", "≥ 2 x", f"{peer / middle['ocak']:.2f} x", peer >= 2 * middle["ocak"]),
        Row(
            "unloaded, all memory back",
            "≤ 1 s",
            f"{max(samples['unload']):.2f} s at most",
            max(samples["unload"]) <= 1,
        ),
        Row(
            "front while a load runs: 99 of 100 answers of /health/live",
            "≤ 10 ms",
            f"{lag_ms:.1f} ms",
            lag_ms <= 10,
        ),
        *(
            Row(f"seconds: {name}", "reported", _spread(samples[name]))
            for name in ("cold", "warm", "ocak", "llama-server")
        ),
        Row("the limit of a swap", "reported", f"{limit_s:.2f} s"),
    ]
    notes = [
        f"two models of 0.5B (Q4_0), of which one fits; medians of {len(samples['warm'])} each",
        "cold: a fresh server, the file not in the page cache; warm: a worker stands by, the file is cached",
        "the limit: the file's bytes copied from the page cache into touched memory, and the vocabulary read",
    ]
    return Report("swap", "Loads and swaps: from a request to its first token, 0.5B Q4_0", rows, notes, samples)


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
