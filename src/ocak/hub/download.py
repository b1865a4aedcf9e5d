"""Pulls a model: listing, choice, bytes, digest, final name. Knows no HTTP and no layout of folders.

A model that was pulled before is found without the network; `refresh` asks the hub for a newer version.
Invariant: `pull` returns only paths whose content had the digest that the hub listed. What a broken pull leaves
behind is resumed by the next one; two pulls of one repository never write at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocak.core.errors import DownloadError
from ocak.hub.partial import PartialFile
from ocak.hub.progress import DownloadProgress, ProgressCallback, Stage
from ocak.hub.reference import HubReference, RepoFile, choose_files, parse_reference
from ocak.hub.settings import HubSettings, RetryPolicy
from ocak.hub.store import Store

if TYPE_CHECKING:
    from ocak.hub.client import HubClient

_log: Final = logging.getLogger(__name__)
_LOCK_POLL_S: Final = 0.1
_TRIES: Final = 2  # downloads of one file before its digest is given up
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def pull(
    reference: str,
    *,
    settings: HubSettings,
    progress: ProgressCallback | None = None,
    refresh: bool = False,
) -> Path:
    """Fetch the model that `hf:owner/repo[:file-or-quant]` names; returns its first GGUF file.

    Blocks, so call it outside of an event loop (`asyncio.to_thread`). Raises `DownloadError`.
    """
    parsed = parse_reference(reference)
    store = Store(settings.home, parsed)
    with _disk_errors(store.folder):
        chosen = store.chosen(parsed.selector)
        if not chosen or (refresh and not settings.is_offline):
            chosen = asyncio.run(_pull(parsed, store, settings, refresh, progress or _ignore))
    return chosen[0]


def find_local(reference: str, settings: HubSettings) -> Path | None:
    """The first file of a model that was pulled before, without asking anybody; None when it must be pulled."""
    parsed = parse_reference(reference)
    store = Store(settings.home, parsed)
    with _disk_errors(store.folder):
        chosen = store.chosen(parsed.selector)
    return chosen[0] if chosen else None


async def _pull(
    reference: HubReference, store: Store, settings: HubSettings, refresh: bool, report: ProgressCallback
) -> tuple[Path, ...]:
    if settings.is_offline:
        return _local(store, reference, "HF_HUB_OFFLINE is set.")
    from ocak.hub.client import HubUnreachable, connect  # aiohttp costs 0.1 s that a warm start need not pay

    async with _locked(store, settings.retry, report):
        chosen = store.chosen(reference.selector)
        if chosen and not refresh:
            return chosen  # another process was pulling it
        try:
            async with connect(settings) as client:
                return await _from_hub(client, store, reference, settings.retry, report)
        except HubUnreachable as error:
            return _local(store, reference, error.message)


async def _from_hub(
    client: HubClient, store: Store, reference: HubReference, retry: RetryPolicy, report: ProgressCallback
) -> tuple[Path, ...]:
    listing = await client.listing(reference.repository)
    files = choose_files(listing.files, reference)
    for file in files:
        store.path(file)
        if not file.digest:
            raise DownloadError(
                f"{reference.repository} lists no digest for {file.path}: it could not be verified."
            )
    source = _Source(client, reference.repository, listing.commit, retry)
    await _Download(source, store, files, report).run()
    paths = store.commit(files, reference.selector)
    total_bytes = sum(file.num_bytes for file in files)
    report(DownloadProgress("done", "", total_bytes, total_bytes))
    return paths


def _local(store: Store, reference: HubReference, why: str) -> tuple[Path, ...]:
    """What was pulled before, when the hub cannot be asked; raises `DownloadError` saying why it is needed."""
    try:
        chosen = store.chosen(reference.selector) or tuple(
            store.path(file) for file in choose_files(store.verified(), reference)
        )
    except DownloadError:
        raise DownloadError(f"{why} No complete copy of {reference.repository} is in {store.folder}.") from None
    _log.warning("%s Using the copy of %s pulled before.", why, reference.repository)
    return chosen


@dataclass(frozen=True, slots=True)
class _Source:
    """One commit of one repository, and how long to insist on it."""

    client: HubClient
    repository: str
    commit: str
    retry: RetryPolicy


class _Download:
    """The transfer of one model's files, one after the other, until all are verified."""

    def __init__(
        self, source: _Source, store: Store, files: tuple[RepoFile, ...], report: ProgressCallback
    ) -> None:
        self._source = source
        self._store = store
        self._files = files
        self._report = report
        self._done_bytes = 0  # of the files before the one at work

    async def run(self) -> None:
        self._store.require_room(sum(self._store.missing_bytes(file) for file in self._files))
        for file in self._files:
            await self._obtain(file)
            self._done_bytes += file.num_bytes

    async def _obtain(self, file: RepoFile) -> None:
        """Have `file` verified: it is, or what lies there already is right, or it is fetched."""
        self._tell("verifying", file.path)
        if self._store.has(file) or self._store.adopt(file):
            return
        for _ in range(_TRIES):
            actual = await self._fetch(file)
            if actual == file.digest:
                self._store.stage(file)
                return
            self._store.partial(file).unlink()
        raise DownloadError(
            f"{self._source.repository}/{file.path} was downloaded {_TRIES} times with a wrong digest: expected "
            f"{file.digest}, got {actual}. Something alters it on its way, or the hub's listing is wrong."
        )

    async def _fetch(self, file: RepoFile) -> str:
        """Gather all bytes of `file`, insisting while new ones come; returns their digest."""
        attempt, retry = 0, self._source.retry
        with PartialFile(self._store.partial(file), file) as partial:
            while not partial.is_complete:
                before = partial.num_bytes
                error = await self._try_stream(file, partial)
                if error is None:
                    continue
                attempt = 0 if partial.num_bytes > before else attempt + 1
                if attempt >= retry.attempts:
                    raise error
                _log.info("%s Going on with %s at byte %d.", error.message, file.path, partial.num_bytes)
                await asyncio.sleep(max(retry.wait_s(attempt), error.retry_after_s or 0))
            return partial.finish()

    async def _try_stream(self, file: RepoFile, partial: PartialFile) -> DownloadError | None:
        """Stream until the end; an error that may pass is returned."""
        from ocak.hub.client import HubUnreachable

        try:
            await self._stream(file, partial)
        except HubUnreachable as error:
            return error
        return None if partial.is_complete else HubUnreachable(f"{file.path} ended before its end.")

    async def _stream(self, file: RepoFile, partial: PartialFile) -> None:
        start, source = partial.num_bytes, self._source
        async with source.client.content(source.repository, source.commit, file.path, start) as response:
            if start and not _continues(response.headers.get("Content-Range", ""), start):
                partial.restart()
                if response.status != 200:
                    return
            async for chunk in response.content.iter_any():
                partial.write(chunk)
                self._tell("downloading", file.path, partial.num_bytes)
                if partial.is_complete:
                    return

    def _tell(self, stage: Stage, path: str, num_bytes: int = 0) -> None:
        total_bytes = sum(file.num_bytes for file in self._files)
        self._report(DownloadProgress(stage, path, self._done_bytes + num_bytes, total_bytes))


def _continues(content_range: str, start: int) -> bool:
    """Whether a partial answer begins where it was asked to."""
    return content_range.startswith(f"bytes {start}-")


@asynccontextmanager
async def _locked(store: Store, retry: RetryPolicy, report: ProgressCallback) -> AsyncIterator[None]:
    """Hold the repository's lock; waits while another process pulls from it."""
    deadline = time.monotonic() + retry.lock_wait_s
    while True:
        with store.try_lock() as is_ours:
            if is_ours:
                yield
                return
        if time.monotonic() > deadline:
            raise DownloadError(
                f"Another process has been pulling to {store.folder} for {retry.lock_wait_s:.0f} s."
            )
        report(DownloadProgress("waiting"))
        await asyncio.sleep(_LOCK_POLL_S)


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Say what to do about a disk that is full or closed to us."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            advice = "The disk is full: free some space and pull again, what came is kept; or set OCAK_HOME."
        elif error.errno == errno.EFBIG:
            advice = (
                "No file may be as large there, by the file system or `ulimit`: what came is kept; set OCAK_HOME "
                "to another disk, or lift the limit and pull again."
            )
        elif error.errno in _FORBIDDEN:
            advice = "There is no right to write there: set OCAK_HOME to a folder of your own."
        else:
            advice = "Check the disk, or set OCAK_HOME to another one."
        raise DownloadError(f"{folder}: {error.strerror or error}. {advice}") from error


def _ignore(_: DownloadProgress) -> None:
    """The progress of a pull that nobody watches."""
