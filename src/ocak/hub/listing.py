"""Reads what the hub says about a repository. Pure: bytes in, checked values out.

`GET /api/models/{owner}/{repo}?blobs=true` lists files as `siblings`, each with its size and, for files in
LFS, the SHA-256 of its content; the others carry their git blob id.
Invariant: a digest is either well formed or absent; sizes are not negative.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from ocak.core.errors import DownloadError
from ocak.hub.reference import RepoFile

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: tuple[RepoFile, ...]


class _Lfs(msgspec.Struct):
    sha256: str = ""
    size: int = -1


class _Sibling(msgspec.Struct, rename={"blob_id": "blobId"}):
    rfilename: str
    size: int | None = None
    blob_id: str | None = None
    lfs: _Lfs | None = None


class _Repository(msgspec.Struct):
    sha: str
    siblings: list[_Sibling] = []


class _Named(msgspec.Struct):
    id: str


def parse_listing(body: bytes, repository: str) -> Listing:
    """The listing in an answer; raises `DownloadError` when it is not one."""
    try:
        answer = msgspec.json.decode(body, type=_Repository)
    except msgspec.DecodeError as error:
        raise DownloadError(f"The hub's listing of {repository} cannot be read: {error}.") from error
    if _SHA1.fullmatch(answer.sha) is None:
        raise DownloadError(f"The hub's listing of {repository} names no commit.")
    return Listing(answer.sha, tuple(_file(sibling) for sibling in answer.siblings))


def parse_names(body: bytes) -> list[str]:
    """The names in a search's answer; none when it cannot be read."""
    try:
        return [repository.id for repository in msgspec.json.decode(body, type=list[_Named])]
    except msgspec.DecodeError:
        return []


def _file(sibling: _Sibling) -> RepoFile:
    lfs = sibling.lfs
    if lfs is not None:
        digest = f"sha256:{lfs.sha256}" if _SHA256.fullmatch(lfs.sha256) else ""
        return RepoFile(sibling.rfilename, max(lfs.size, 0), digest)
    blob_id = sibling.blob_id or ""
    digest = f"git-sha1:{blob_id}" if _SHA1.fullmatch(blob_id) else ""
    return RepoFile(sibling.rfilename, max(sibling.size or 0, 0), digest)
