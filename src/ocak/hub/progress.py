"""Shows how far a download is. Knows neither files on disk nor the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["waiting", "verifying", "downloading", "done"]


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """Where a pull stands: `file` is the one at work, the bytes are those of all files together.

    `waiting`: another process is pulling the same repository; `verifying`: bytes already here are hashed.
    """

    stage: Stage
    file: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


ProgressCallback = Callable[[DownloadProgress], None]


@contextmanager
def rich_progress() -> Iterator[ProgressCallback]:
    """A progress bar on the terminal's error stream; yields the callback for `pull`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("waiting", total=None)

        def show(progress: DownloadProgress) -> None:
            description = f"{progress.stage} {progress.file}".strip()
            bar.update(
                task,
                description=description,
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
            )

        yield show
