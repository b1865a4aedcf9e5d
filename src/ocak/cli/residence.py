"""`ocak ps`, `load`, `unload`, `pin`, `unpin`: the models of a running server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar
from urllib.parse import quote

import msgspec
import typer

from ocak.cli.progress import bytes_text
from ocak.cli.remote_server import RemoteServer
from ocak.core.errors import GenerationFailed
from ocak.core.status import ModelStatus

HEADING = ("model", "state", "priority", "reserved", "resident", "running", "requests", "last asked", "until")
COLORS = {"ready": "green", "failed": "red", "unresponsive": "red", "unloaded": None}
REDRAW_S = 1.0
CLEAR = "\x1b[H\x1b[J"


Answer = TypeVar("Answer", bound=msgspec.Struct)


class _Models(msgspec.Struct):
    models: list[ModelStatus]


def show_models(server: RemoteServer, *, as_json: bool, watches: bool) -> None:
    """Print every model's state; until interrupted, if it is watched."""
    while True:
        body = asyncio.run(server.ask("GET", "/models/status"))
        text = body.decode() if as_json else "\n".join(as_table(_decode(body, _Models).models, time.time()))
        typer.echo(f"{CLEAR}{text}" if watches and not as_json else text)
        if not watches:
            return
        time.sleep(REDRAW_S)


def change(server: RemoteServer, verb: str, key: str, *, as_json: bool) -> None:
    """Have one model loaded, unloaded, pinned or unpinned, and print what it is then."""
    body = asyncio.run(server.ask("POST", f"/api/v1/models/{quote(key)}/{verb}"))
    typer.echo(body.decode() if as_json else _sentence(_decode(body, ModelStatus)))


def as_table(models: Sequence[ModelStatus], now: float) -> Iterator[str]:
    """The models for people, a line each; below them, why one is not there."""
    lines = [HEADING, *(_cells(model, now) for model in models)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADING))]
    for line, model in zip(lines, [None, *models], strict=True):
        padded = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        if model is not None:
            padded[1] = typer.style(padded[1], fg=COLORS.get(model.state, "yellow"))
        yield "  ".join(padded).rstrip()
    yield from (f"{model.key}: {model.error}" for model in models if model.error)


def _cells(model: ModelStatus, now: float) -> tuple[str, ...]:
    state = f"loading {model.load.progress:.0%}" if model.state == "loading" else model.state
    memory = model.memory.estimated or model.memory.reserved
    last = "never" if model.last_request is None else f"{_span(now - model.last_request)} ago"
    until = "-" if model.expires_at is None else f"in {_span(model.expires_at - now)}"
    resident = bytes_text(model.memory.resident) if model.memory.resident else "-"
    running = (
        f"{model.engine.running}+{model.engine.waiting}" if model.engine.waiting else f"{model.engine.running}"
    )
    sizes = (bytes_text(memory), resident)
    return (model.key, state, model.priority, *sizes, running, f"{model.requests}", last, until)


def _sentence(model: ModelStatus) -> str:
    if model.state == "ready" and model.info is not None:
        taken = bytes_text(model.memory.resident or model.memory.estimated)
        return f"{model.key} is ready ({model.priority}), {taken}, loaded in {model.info.load_s:.1f} s"
    return f"{model.key} is {model.state} ({model.priority})" + (f": {model.error}" if model.error else "")


def _span(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _decode(body: bytes, kind: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise GenerationFailed("this server does not tell its models' state as ocak does") from error
