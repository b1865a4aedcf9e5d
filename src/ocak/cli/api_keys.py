"""Decides which API keys are in force and whether the server may listen without one. Never shows a key."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from ocak.cli.settings import ServerSettings
from ocak.core.errors import ConfigError

MIN_KEY_BYTES = 8


def resolve_keys(server: ServerSettings) -> tuple[str, ...]:
    """Return the keys themselves; refuse to listen beyond loopback without one, unless that was asked for."""
    keys = tuple(_resolve(text) for text in server.api_key)
    if not keys and not server.no_auth and not is_loopback(server.host):
        raise ConfigError(
            f"--host {server.host} listens beyond this machine and needs a key: set OCAK_API_KEY or "
            "--api-key (a key, env:NAME or file:PATH), or allow everyone with --no-auth",
            param="api_key",
        )
    return keys


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _resolve(text: str) -> str:
    scheme, _, rest = text.partition(":")
    match scheme:
        case "env":
            key = os.environ.get(rest, "")
            place = f"--api-key {text}: the variable"
        case "file":
            key = _read(rest)
            place = f"--api-key {text}: the file"
        case _:
            key, place = text, "--api-key"
    key = key.strip()
    if len(key.encode("utf-8", "surrogatepass")) < MIN_KEY_BYTES:
        raise ConfigError(f"{place} must hold a key of at least {MIN_KEY_BYTES} characters", param="api_key")
    return key


def _read(path: str) -> str:
    try:
        return Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"--api-key file:{path}: {reason}", param="api_key") from error
