"""`ocak pull` onto a disk that fills meanwhile: one line says so, and the next pull goes on where it ended."""

from __future__ import annotations

import errno
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import join, quote

import pytest

from tests.cli.processes import DEADLINE_S, command, environ, ocak
from tests.hub.stand_in import HubState, hub_stand_in

REFERENCE = "hf:maker/tiny-GGUF"
FILE_LIMIT = 80_000  # bytes; the model has more
DISK = "1m"


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[HubState]:
    with hub_stand_in() as state:
        state.repos["maker/tiny-GGUF"] = {"tiny-Q8_0.gguf": tiny_model.read_bytes()}
        yield state


@pytest.fixture
def where(hub: HubState, tmp_path: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "OCAK_HOME": str(tmp_path), "HF_TOKEN": "", "HF_HUB_OFFLINE": ""}


def test_a_file_that_may_not_grow_further_is_resumed_where_it_may(
    hub: HubState, where: dict[str, str], tiny_model: Path
) -> None:
    small = subprocess.run(
        command("pull", REFERENCE),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environ(where),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT)),
        check=False,
    )
    assert small.returncode == 1 and small.stdout == ""
    line = small.stderr.splitlines()[-1]
    assert "File too large" in line and "what came is kept" in line and "OCAK_HOME" in line
    assert "Traceback" not in small.stderr
    whole = ocak("pull", REFERENCE, extra=where)
    assert Path(whole.stdout.strip()).read_bytes() == tiny_model.read_bytes()
    assert [asked.range for asked in hub.contents()] == [None, f"bytes={FILE_LIMIT}-"]


def test_a_disk_that_fills_during_a_pull_loses_nothing(
    hub: HubState, where: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    """On a disk of its own, in a mount namespace that ends with its last process."""
    home, pull = quote(str(tmp_path)), join(command("pull", REFERENCE))
    mount = f"mount -t tmpfs -o size={DISK} none {home}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no disk may be mounted here")
    script = f"{mount}; {pull}; echo status $?; rm {home}/filler; cat $({pull})"
    hub.pause.clear()
    with subprocess.Popen(
        ["unshare", "-Urm", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ(where),
    ) as process:
        try:
            disk = Path(f"/proc/{process.pid}/root{tmp_path}")
            await_bytes(disk)
            fill(disk / "filler")
            hub.pause.set()
            out, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert "The disk is full: free some space and pull again, what came is kept" in err.decode()
    assert b"Traceback" not in err
    status, _, model = out.partition(b"\n")
    assert status == b"status 1"
    assert model == tiny_model.read_bytes()
    first, second = hub.contents()
    assert first.range is None and second.range is not None, "the second went on where the first had ended"


def await_bytes(disk: Path) -> None:
    """Wait until a part of the model has been written."""
    deadline = time.monotonic() + DEADLINE_S
    while not any(part.stat().st_size for part in disk.glob("models/*/*/.ocak/partial/*")):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)


def fill(path: Path) -> None:
    """Leave no room."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 12, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    break
