"""`ocak serve`: port, models, workers, API, banner; and the same backwards at the end.

Invariant: what can be refused (settings, port, files) is refused before a worker starts, and whatever was
started is stopped, however it ends.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import typer
import uvloop

from ocak.api.http import HttpOptions, create_app
from ocak.cli.api_keys import resolve_keys
from ocak.cli.banner import banner
from ocak.cli.compose import Plan, build_fleet, build_gateway, plan_models
from ocak.cli.progress import LogStream, progress_line
from ocak.cli.server import Server, bind
from ocak.cli.settings import ServerSettings, Settings
from ocak.core.errors import LoadFailed
from ocak.fleet.fleet import Fleet
from ocak.gateway.gateway import Gateway
from ocak.gateway.keys import KeyRing
from ocak.telemetry import logs

REDRAW_S = 0.1
FLEET_DRAIN_S = 1.0  # requests have ended with their connections; this is for the workers' own goodbye


def serve(settings: Settings) -> None:
    """Serve until a signal; raises an `OcakError` when that is not possible."""
    logs.set_up(settings.server.log_level, settings.server.log_format, LogStream())
    keys = resolve_keys(settings.server)
    with bind(settings.server.host, settings.server.port) as sock:
        uvloop.run(_serve(settings, keys, plan_models(settings), sock))


async def _serve(settings: Settings, keys: Sequence[str], plans: Sequence[Plan], sock: socket.socket) -> None:
    fleet = build_fleet(plans, settings.server)
    gateway = build_gateway(plans, fleet)
    app = create_app(gateway, keys=KeyRing(keys), options=_http_options(settings.server))
    server = Server(app, sock, settings.server.drain_seconds)
    await fleet.start()
    announcing = asyncio.create_task(_announce(_url(sock), gateway, fleet, needs_key=bool(keys)))
    announcing.add_done_callback(lambda task: server.stop() if _has_failed(task) else None)
    try:
        await server.run_until_signal()
    finally:
        await fleet.stop(drain_s=FLEET_DRAIN_S)
        announcing.cancel()
    if _has_failed(announcing):
        await announcing


def _http_options(server: ServerSettings) -> HttpOptions:
    return HttpOptions(
        max_body_bytes=server.max_body_bytes,
        allowed_hosts=server.allowed_hosts,
        cors_origins=server.cors_origins,
        drain_s=server.drain_seconds,
        state_dir=Path(server.state_dir).expanduser().resolve() if server.state_dir else None,
    )


async def _announce(url: str, gateway: Gateway, fleet: Fleet, *, needs_key: bool) -> None:
    """Show the models load, then the banner. Raises `LoadFailed` when not one of them can be served."""
    with progress_line() as line:
        showing = asyncio.create_task(_show_loading(gateway, line.show))
        failures = [await fleet.settled(model.key) for model in gateway.models]
        showing.cancel()
    if failures and all(failures):
        raise LoadFailed("; ".join(f"{error}" for error in failures))
    models = [model.provider.status() for model in gateway.models]
    with suppress(OSError):  # nobody may be reading: that is no reason to stop serving
        typer.echo(banner(url, models, needs_key=needs_key))


async def _show_loading(gateway: Gateway, show: Callable[[str, float], None]) -> None:
    while True:
        statuses = [model.provider.status() for model in gateway.models]
        loads = {status.key: status.load.progress for status in statuses if status.is_expected}
        if loads:
            show("loading " + ", ".join(loads), sum(loads.values()) / len(loads))
        await asyncio.sleep(REDRAW_S)


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


def _url(sock: socket.socket) -> str:
    """The address to paste: of a server that listens everywhere, the one on this machine."""
    host, port = sock.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{local}:{port}"
