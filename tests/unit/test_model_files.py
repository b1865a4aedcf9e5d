"""What counts as a change of a file that a worker reads its weights from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ocak.fleet.model_files import ModelFiles
from ocak.worker.messages import LoadOptions


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    os.utime(path, ns=(0, 0))  # whatever is written later has another time
    return path


def rename_over(path: Path) -> None:
    newer = path.with_name("newer")
    newer.write_bytes(b"others")
    newer.rename(path)


@pytest.mark.parametrize(
    "change", [lambda p: os.truncate(p, 3), lambda p: p.write_bytes(b"WEIGHTS")], ids=["cut", "written over"]
)
def test_what_is_written_to_or_cut_has_changed(path: Path, change: Callable[[Path], object]) -> None:
    files = ModelFiles(LoadOptions(path=str(path)))
    assert files.changed() is None
    change(path)
    assert files.changed() == path


@pytest.mark.parametrize("change", [rename_over, Path.unlink, lambda p: p.chmod(0o400)])
def test_what_a_worker_has_open_does_not_change_by_a_new_file_under_its_name(
    path: Path, change: Callable[[Path], object]
) -> None:
    files = ModelFiles(LoadOptions(path=str(path)))
    change(path)
    assert files.changed() is None


def test_every_part_and_the_draft_are_watched(tmp_path: Path, path: Path) -> None:
    parts = [tmp_path / f"m-{n:05d}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.write_bytes(b"part")
    for watched in (*parts, path):
        files = ModelFiles(LoadOptions(path=str(parts[0]), draft_path=str(path)))
        os.truncate(watched, 1)
        assert files.changed() == watched


def test_a_file_that_was_read_into_memory_may_change(path: Path) -> None:
    files = ModelFiles(LoadOptions(path=str(path), mmap=False))
    os.truncate(path, 1)
    assert files.changed() is None


def test_a_file_that_is_not_there_is_the_loads_to_complain_of(tmp_path: Path) -> None:
    assert ModelFiles(LoadOptions(path=str(tmp_path / "none.gguf"))).changed() is None
