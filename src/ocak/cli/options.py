"""Turns settings into the options of a typer command, so that each is declared in one place only.

Options carry no default of their own: one that was not typed must not hide what another source says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from ocak.cli.schema import Setting, settings_of

Command = TypeVar("Command", bound=Callable[..., None])


def with_settings(*structs: type[msgspec.Struct]) -> Callable[[Command], Command]:
    """Give a command that ends in `**flags` one option for each setting of `structs`."""

    def add_options(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [_parameter(setting) for setting in _settings(structs) if not setting.is_file_only]
        command.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return command

    return add_options


def typed(flags: dict[str, Any]) -> dict[str, Any]:
    """Keep the options that were typed."""
    return {name: value for name, value in flags.items() if value is not None and value != []}


def _settings(structs: Iterable[type[msgspec.Struct]]) -> Iterable[Setting]:
    return (setting for struct in structs for setting in settings_of(struct).values())


def _parameter(setting: Setting) -> inspect.Parameter:
    option = typer.Option(
        *_spellings(setting),
        help=_help(setting),
        metavar=setting.metavar or _metavar(setting),
        show_default=False,
    )
    kinds: dict[str, Any] = {"bool": bool | None, "texts": list[str] | None, "pairs": list[str] | None}
    annotation: Any = Annotated[Any, option]
    annotation.__origin__ = kinds.get(setting.kind, str | None)
    return inspect.Parameter(setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _spellings(setting: Setting) -> list[str]:
    if setting.kind == "bool" and not setting.name.startswith("no_"):
        return [f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"]
    return [setting.flag, *setting.further_flags]


def _help(setting: Setting) -> str:
    if setting.default in (False, "", ()) or setting.kind == "pairs":
        return setting.help
    default = "on" if setting.default is True else setting.default
    return f"{setting.help} [{default}]"


def _metavar(setting: Setting) -> str | None:
    match setting.kind:
        case "int":
            return "N"
        case "float":
            return "X"
        case "choice":
            return "|".join(setting.choices)
        case "bool":
            return None
        case _:
            return "TEXT"
