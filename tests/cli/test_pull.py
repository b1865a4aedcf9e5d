"""`hf:` models through the command line, from a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import ocak, serving
from tests.hub.stand_in import HubState, hub_stand_in

REFERENCE = "hf:maker/tiny-GGUF:tiny-Q8_0.gguf"


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[HubState]:
    with hub_stand_in() as state:
        state.repos["maker/tiny-GGUF"] = {"tiny-Q8_0.gguf": tiny_model.read_bytes()}
        yield state


def where(hub: HubState, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, "OCAK_HOME": str(home), "HF_TOKEN": "", "HF_HUB_OFFLINE": ""}


def test_pull_prints_where_the_model_lies(hub: HubState, tmp_path: Path, tiny_model: Path) -> None:
    result = ocak("pull", REFERENCE, extra=where(hub, tmp_path))
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).read_bytes() == tiny_model.read_bytes()


def test_a_pulled_model_is_served_under_its_repository_and_never_pulled_again(
    hub: HubState, tmp_path: Path
) -> None:
    for _ in range(2):
        with serving(REFERENCE, extra=where(hub, tmp_path)) as server:
            assert server.get("/v1/models")["data"][0]["id"] == "tiny-GGUF"
    assert len(hub.contents()) == 1


def test_a_file_that_is_not_in_the_repository_names_those_that_are(hub: HubState, tmp_path: Path) -> None:
    result = ocak("run", "hi", "-m", "hf:maker/tiny-GGUF:tiny-Q9.gguf", extra=where(hub, tmp_path))
    assert result.returncode == 1
    assert "tiny-Q8_0.gguf" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_home_without_rights_says_what_to_set(hub: HubState) -> None:
    result = ocak("pull", REFERENCE, extra=where(hub, Path("/proc/ocak")))
    assert result.returncode == 1
    assert "OCAK_HOME" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
