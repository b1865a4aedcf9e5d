"""API keys: kept as SHA-256, compared in constant time. An empty ring lets everyone in as the public tenant."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from ocak.core.errors import Unauthorized
from ocak.core.request import DEFAULT_TENANT

TENANT_LENGTH = 16


class KeyRing:
    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def is_open(self) -> bool:
        return not self._digests

    def tenant(self, key: str | None) -> str:
        """Return the tenant that `key` stands for, or raise `Unauthorized`."""
        if self.is_open:
            return DEFAULT_TENANT
        if key is None:
            raise Unauthorized("no API key: send it as 'Authorization: Bearer KEY'")
        digest = _digest(key)
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("the API key is not known here")
        return digest.hex()[:TENANT_LENGTH]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
