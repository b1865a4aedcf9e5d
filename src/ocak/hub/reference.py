"""Decides what `hf:owner/repo[:file-or-quant]` means and which files of a listing it names. Pure.

A selector is the name of a file, else a quantisation such as `Q4_K_M` in any case; without one `Q4_K_M` is
preferred, then `Q8_0`, then the only one there is. Projectors and importance matrices are never chosen.
Invariant: what is chosen is one whole model: a lone GGUF, or every part of one split, in order; its paths are
safe to join to a folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from ocak.core.errors import DownloadError
from ocak.memory.split_names import parse_split_name

SCHEME: Final = "hf:"
_PREFERRED: Final = ("Q4_K_M", "Q8_0")
_NAME: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.)){0,95}"
_REFERENCE: Final = re.compile(rf"hf:(?P<owner>{_NAME})/(?P<repo>{_NAME})(?::(?P<selector>[^\0]+))?", re.ASCII)
_QUANT: Final = re.compile(
    r"(?:^|[-._])(?P<quant>(?:UD-)?(?:(?:IQ|TQ|Q)\d[A-Z0-9_]*|BF16|FP?16|FP?32|MXFP4(?:_MOE)?|NVFP4))$",
    re.IGNORECASE | re.ASCII,
)
_NOT_MODELS: Final = ("mmproj", "imatrix")
_SHOWN: Final = 12


@dataclass(frozen=True, slots=True)
class HubReference:
    """A parsed reference; `selector` is empty when the reference names only the repository."""

    owner: str
    repo: str
    selector: str = ""

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.repo}"


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file as listed; `digest` is `sha256:…`, or `git-sha1:…` for files outside LFS, else empty."""

    path: str
    num_bytes: int
    digest: str


def is_reference(source: str) -> bool:
    """Whether a model's `source` names the hub."""
    return source.startswith(SCHEME)


def parse_reference(text: str) -> HubReference:
    """Parse `hf:owner/repo[:file-or-quant]`; raises `DownloadError`."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise DownloadError(f"{text!r} is not of the form hf:owner/repo[:file-or-quant].", param="source")
    return HubReference(match["owner"], match["repo"], match["selector"] or "")


def choose_files(files: Iterable[RepoFile], reference: HubReference) -> tuple[RepoFile, ...]:
    """The files of the one model that `reference` names; raises `DownloadError` listing what is there."""
    candidates = {f.path: f for f in files if _is_model(f.path)}
    if reference.selector.lower().endswith(".gguf"):
        chosen = _named(candidates, reference)
    else:
        chosen = _fitting(_first_parts(candidates), reference)
    return _whole_set(chosen, candidates, reference)


def quant_of(path: str) -> str:
    """The quantisation that a file's name (else its folder's) ends with, in upper case; empty when none."""
    folder, _, name = path.rpartition("/")
    split = parse_split_name(name)
    stem = split.prefix if split else name.removesuffix(".gguf")
    for text in (stem, folder.rpartition("/")[2]):
        match = _QUANT.search(text)
        if match is not None:
            return match["quant"].upper()
    return ""


def is_safe_path(path: str) -> bool:
    """Whether a listed path stays below the folder it is joined to, in visible files only."""
    parts = path.split("/")
    return path.isprintable() and "\\" not in path and all(part and not part.startswith(".") for part in parts)


def nearest(wanted: str, names: Iterable[str]) -> str:
    """The names most like `wanted`, for an error message; empty when none is."""
    by_lower = {name.lower(): name for name in names}
    close = get_close_matches(wanted.lower(), by_lower, n=3, cutoff=0.5)
    return ", ".join(by_lower[name] for name in close)


def _is_model(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.endswith(".gguf") and not any(word in name for word in _NOT_MODELS)


def _named(candidates: Mapping[str, RepoFile], reference: HubReference) -> RepoFile:
    file = candidates.get(reference.selector)
    if file is not None:
        return file
    close = nearest(reference.selector, candidates) or _shown(candidates)
    raise DownloadError(
        f"{reference.repository} has no GGUF model named {reference.selector!r}; there is: {close}.",
        param="source",
    )


def _fitting(firsts: list[RepoFile], reference: HubReference) -> RepoFile:
    """The one model of the wanted quantisation, else of a preferred one, else the only one."""
    for quant in (reference.selector,) if reference.selector else _PREFERRED:
        matching = _with_quant(firsts, quant)
        if matching:
            return _only(matching, reference)
    if reference.selector or not firsts:
        raise DownloadError(_nothing_fits(firsts, reference), param="source")
    return _only(firsts, reference)


def _first_parts(candidates: Mapping[str, RepoFile]) -> list[RepoFile]:
    """One file for each model: a lone file, or the first part listed of a split."""
    firsts: dict[str, RepoFile] = {}
    for path in sorted(candidates):
        split = parse_split_name(path)
        firsts.setdefault(split.sibling(1) if split else path, candidates[path])
    return list(firsts.values())


def _with_quant(firsts: Iterable[RepoFile], quant: str) -> list[RepoFile]:
    """Models of exactly this quantisation, else those that differ only in the `UD-` of dynamic ones."""
    wanted = quant.upper()
    exact = [file for file in firsts if quant_of(file.path) == wanted]
    return exact or [file for file in firsts if quant_of(file.path) == f"UD-{wanted}"]


def _only(matching: list[RepoFile], reference: HubReference) -> RepoFile:
    if len(matching) == 1:
        return matching[0]
    raise DownloadError(
        f"{reference.repository} has several models that fit; name one as "
        f"hf:{reference.repository}:FILE, of: {_shown(file.path for file in matching)}.",
        param="source",
    )


def _nothing_fits(firsts: list[RepoFile], reference: HubReference) -> str:
    if not firsts:
        return f"{reference.repository} holds no GGUF model; look for a repository whose name ends in -GGUF."
    names = _shown(file.path for file in firsts)
    return f"{reference.repository} has no {reference.selector!r}; there is: {names}."


def _whole_set(
    file: RepoFile, candidates: Mapping[str, RepoFile], reference: HubReference
) -> tuple[RepoFile, ...]:
    split = parse_split_name(file.path)
    names = split.siblings() if split else (file.path,)
    missing = [name for name in names if name not in candidates]
    if missing:
        raise DownloadError(
            f"{reference.repository} lists {file.path} but not {_shown(missing)}: the model is not whole.",
            param="source",
        )
    unsafe = [name for name in names if not is_safe_path(name)]
    if unsafe:
        raise DownloadError(f"{reference.repository} lists unsafe paths, refused: {unsafe!r}.")
    return tuple(candidates[name] for name in names)


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more
