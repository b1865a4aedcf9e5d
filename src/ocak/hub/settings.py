"""Decides where models come from and where they are kept, from the environment. Opens nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from ocak.core.errors import ConfigError

_DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to insist. `attempts` are those in a row that bring no new byte."""

    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    lock_wait_s: float = 24 * 3600.0

    def wait_s(self, attempt: int) -> float:
        """Seconds before attempt `attempt` + 1; doubles each time."""
        return float(min(self.first_wait_s * 2.0**attempt, self.longest_wait_s))


@dataclass(frozen=True, slots=True)
class HubSettings:
    """The hub to ask, the token to show it, the folder for models (`home`), and whether to stay offline."""

    home: Path
    endpoint: str = _DEFAULT_ENDPOINT
    token: str | None = field(default=None, repr=False)
    is_offline: bool = False
    retry: RetryPolicy = RetryPolicy()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> HubSettings:
        """From `OCAK_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE`; raises `ConfigError`."""
        return cls(
            home=ocak_home(environ),
            endpoint=_endpoint(environ),
            token=_token(environ),
            is_offline=environ.get("HF_HUB_OFFLINE", "").strip().lower() in _TRUE,
        )


def ocak_home(environ: Mapping[str, str]) -> Path:
    """`OCAK_HOME`, else `ocak` in `XDG_CACHE_HOME`, else `~/.cache/ocak`."""
    if environ.get("OCAK_HOME"):
        return Path(environ["OCAK_HOME"]).expanduser().absolute()
    cache = environ.get("XDG_CACHE_HOME") or ""
    base = Path(cache) if Path(cache).is_absolute() else Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "ocak"


def _token(environ: Mapping[str, str]) -> str | None:
    token = environ.get("HF_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError("HF_TOKEN holds characters that no token has", param="HF_TOKEN")
    return token or None


def _endpoint(environ: Mapping[str, str]) -> str:
    endpoint = (environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).strip().rstrip("/")
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"HF_ENDPOINT is {endpoint!r}, it must be like {_DEFAULT_ENDPOINT}", param="HF_ENDPOINT")
    return endpoint
