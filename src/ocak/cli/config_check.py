"""`ocak config check`: every setting, its value, and its origin. Secrets are counted, never shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import typer

from ocak.cli.api_keys import resolve_keys
from ocak.cli.schema import settings_of
from ocak.cli.settings import Settings

Row = tuple[str, str, str]
HEADING: Row = ("setting", "value", "from")


def print_settings(settings: Settings) -> None:
    """Print the table; raises `ConfigError` when the server would not start with these settings."""
    resolve_keys(settings.server)
    rows = [HEADING, *setting_rows(settings)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, value, origin in rows:
        line = f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}"
        typer.echo(typer.style(line, dim=origin == "default", bold=(name, value, origin) == HEADING))


def setting_rows(settings: Settings) -> Iterator[Row]:
    structs: Mapping[str, msgspec.Struct] = {
        "server": settings.server,
        **{f"models.{key}": model for key, model in settings.models.items()},
    }
    for label, struct in structs.items():
        for name, setting in settings_of(type(struct)).items():
            value = getattr(struct, name)
            shown = _masked(value) if setting.is_secret else _shown(value)
            yield f"{label}.{name}", shown, settings.origins[f"{label}.{name}"]


def _masked(value: object) -> str:
    return f"{len(value)} set" if isinstance(value, tuple) and value else "none"


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case tuple():
            return ", ".join(str(item) for item in value) or "none"
        case dict():
            return msgspec.json.encode(value).decode()
        case _:
            return str(value) or "none"
