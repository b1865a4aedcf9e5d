"""Binds the port, runs the HTTP server on it, and decides how signals end it. Knows no model.

The first SIGINT or SIGTERM stops accepting and lets what runs finish within a deadline; a further
SIGINT ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import typer
import uvicorn

from ocak.api.connection import BoundedHttp
from ocak.core.errors import ConfigError

KEEP_ALIVE_S = 65  # longer than the minute for which load balancers keep idle connections
BACKLOG = 2048
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded; connections are refused until the server listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise bind_error(error, host, port) from error
    sock.setblocking(False)
    return sock


def bind_error(error: OSError, host: str, port: int) -> ConfigError:
    """Say in one line which address could not be had, why, and what to do."""
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return ConfigError(f"--host {host} is no address of this machine", param="host")
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is in use; choose another with --port", param="port")
    if error.errno == errno.EACCES:
        return ConfigError(f"port {port} needs rights that you lack; choose 1024 or above", param="port")
    return ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", param="port")


class Server(uvicorn.Server):
    """uvicorn on a socket of ours, with our signals."""

    def __init__(self, app: Any, sock: socket.socket, drain_seconds: int) -> None:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=BoundedHttp,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=drain_seconds,
        )
        super().__init__(config)
        self._sock = sock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            self._sock.listen(BACKLOG)  # another may listen by now, and uvloop would go on as if it had the port
            await super().startup(sockets)
        except OSError as error:
            raise bind_error(error, *self._sock.getsockname()[:2]) from error

    async def run_until_signal(self) -> None:
        """Serve until a signal or `stop`; returns when the answers in flight have ended."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        try:
            await self.serve(sockets=[self._sock])
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Accept no more; what runs may finish."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are the loop's, not uvicorn's."""
        yield

    def _on_signal(self, number: signal.Signals) -> None:
        if self.should_exit and number == signal.SIGINT:
            self._end_at_once()
        elif not self.should_exit and self.server_state.tasks:
            typer.echo(f"finishing {len(self.server_state.tasks)} requests; Ctrl-C ends them", err=True)
        self.stop()

    def _end_at_once(self) -> None:
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in list(self.server_state.tasks):
            task.cancel()
