"""Decides which hosts a request may name and which web pages may call. Pure.

A page of another site must not reach a server on this machine: neither by a name that it points at a loopback
address (DNS rebinding: the Host header betrays it), nor by a plain form post (its Origin header does).
Origins are never reflected: an answer names one only if it is in the list, and credentials are never allowed.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from ocak.api.errors import BadHost, ForbiddenOrigin, Header
from ocak.api.exchange import Exchange

LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))
ANY = "*"
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS"))
PREFLIGHT_HEADERS: list[Header] = [
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, x-api-key, x-request-id"),
    (b"access-control-max-age", b"600"),
]


class Origins:
    """`hosts` are names allowed besides the loopback ones; `origins` are whole (`https://chat.example.com`)."""

    def __init__(self, hosts: tuple[str, ...], origins: tuple[str, ...], *, trusts_pages: bool) -> None:
        self._hosts = LOOPBACK_NAMES | {host.lower() for host in hosts}
        self._any_host = ANY in hosts
        self._origins = frozenset(origins)
        self._trusts_pages = trusts_pages  # a key is needed: a strange page has none

    def admit(self, exchange: Exchange) -> list[Header] | None:
        """Return the headers of a preflight's answer, None for other requests. Raises `HttpError`s."""
        self._check_host(exchange)
        origin = exchange.headers.get(b"origin")
        if origin is None:
            return None
        return self._check_origin(exchange, origin.decode("latin-1"))

    def _check_host(self, exchange: Exchange) -> None:
        server = exchange.scope.get("server")
        if self._any_host or server is None or not _is_loopback(server[0]):
            return
        name = _host_name(exchange.headers.get(b"host", b"").decode("latin-1"))
        if name not in self._hosts:
            raise BadHost(
                f"the Host header names {name[:100]!r}; on this address the server answers to "
                f"{', '.join(sorted(self._hosts))} (allowed_hosts adds to them)"
            )

    def _check_origin(self, exchange: Exchange, origin: str) -> list[Header] | None:
        if origin in self._origins:
            exchange.extra_headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", b"x-request-id, x-ocak-dropped-tokens"),
                (b"vary", b"origin"),
            ]
            return PREFLIGHT_HEADERS if _is_preflight(exchange) else None
        host = exchange.headers.get(b"host", b"").decode("latin-1").lower()
        if exchange.method not in SAFE_METHODS and not self._trusts_pages and urlsplit(origin).netloc != host:
            raise ForbiddenOrigin(
                f"pages of {origin[:100]!r} may not call this server; cors_origins lists those that may"
            )
        return None


def _is_preflight(exchange: Exchange) -> bool:
    return exchange.method == "OPTIONS" and b"access-control-request-method" in exchange.headers


def _host_name(host: str) -> str:
    """Strip the port: `[::1]:8080` and `localhost:8080`."""
    bracket = host.find("]")
    return (host[: bracket + 1] if bracket >= 0 else host.partition(":")[0]).lower()


@lru_cache(maxsize=64)
def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # a unix socket
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
