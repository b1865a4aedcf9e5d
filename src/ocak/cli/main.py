"""The command line: which verbs there are, and how an error ends them. Each verb's work is in its own module.

Imports nothing that a verb alone needs, so that every verb starts fast.
Invariant: what the user can put right is one line on stderr and a non-zero status, never a traceback.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from ocak import __version__
from ocak.cli.options import typed, with_settings
from ocak.cli.settings import ModelSettings, ServerSettings
from ocak.cli.spellings import hint
from ocak.core.errors import ConfigError, OcakError
from ocak.core.shown import one_line

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
LONGEST_ERROR = 4000  # characters
SETTINGS = {"max_content_width": 110, "help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="ocak",
    help="Serves large language models on your own machine, with an OpenAI-compatible API.",
    context_settings=SETTINGS,
    add_completion=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Explain the configuration.", rich_markup_mode=None)
app.add_typer(config_app, name="config")

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="embedded, a path to a GGUF, or hf:owner/repo[:file-or-quant] [embedded]",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="MODEL as an option", show_default=False)
]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="ocak.toml with [server] and [models.KEY]", show_default=False),
]
Key = Annotated[str, typer.Argument(metavar="MODEL", help="the name that it answers to")]
Url = Annotated[
    str | None, typer.Option(metavar="URL", help="the server [http://127.0.0.1:8080]", show_default=False)
]
ApiKey = Annotated[str | None, typer.Option(metavar="KEY", help="the server's key [OCAK_API_KEY]")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Batching = Annotated[bool, typer.Option("--cont-batching/--no-cont-batching", "-cb", hidden=True)]


@app.command()
@with_settings(ServerSettings, ModelSettings)
def serve(
    model: Model = None,
    model_option: ModelOption = None,
    config: Config = None,
    cont_batching: Batching = True,
    **flags: Any,
) -> None:
    """Serve a model, or those of ocak.toml, over HTTP."""
    from ocak.cli.serve import serve

    _check_batching(cont_batching)
    serve(_load(_only_one(model, model_option), config, flags))


@app.command()
@with_settings(ModelSettings)
def run(
    question: Annotated[str | None, typer.Argument(help="what to ask; without it, a chat")] = None,
    model_option: ModelOption = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="ask this server instead")] = None,
    api_key: ApiKey = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="system message")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="longest answer")] = None,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0: always the likeliest")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="makes an answer repeatable")] = None,
    **flags: Any,
) -> None:
    """Ask one question in the terminal, or chat."""
    from ocak.cli.answers import AnswerOptions
    from ocak.cli.run import run_local, run_remote

    options = AnswerOptions(system=system, max_tokens=max_tokens, temperature=temperature, seed=seed)
    if url is None:
        flags["parallel"] = flags["parallel"] or "1"  # one conversation
        run_local(question, options, _load(model_option, None, flags))
    else:
        run_remote(question, options, url, api_key or os.environ.get("OCAK_API_KEY"), model_option)


@app.command()
@with_settings(ModelSettings)
def plan(
    model: Model = None,
    model_option: ModelOption = None,
    config: Config = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="plan for so much, as 6GB; else what is free here"),
    ] = None,
    as_json: AsJson = False,
    **flags: Any,
) -> None:
    """Tell what a model would take, without loading it. Exits with 3 if it does not fit."""
    from ocak.cli.plan import tell_plan

    tell_plan(_load(_only_one(model, model_option), config, flags), memory, as_json=as_json)


@app.command()
def ps(
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="again every second, until Ctrl-C")] = False,
) -> None:
    """Show the models of a running server: state, memory, use."""
    from ocak.cli.residence import show_models

    show_models(_server(url, api_key), as_json=as_json, watches=watch)


@app.command()
def load(model: Key, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Have a running server load a model, and wait for it."""
    _change("load", model, _server(url, api_key), as_json)


@app.command()
def unload(model: Key, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Have it unload one, once its answers are finished."""
    _change("unload", model, _server(url, api_key), as_json)


@app.command()
def pin(model: Key, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Keep a model loaded: it makes no room for others, and does not expire."""
    _change("pin", model, _server(url, api_key), as_json)


@app.command()
def unpin(model: Key, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Let a model go when its turn comes."""
    _change("unpin", model, _server(url, api_key), as_json)


@app.command()
def pull(
    reference: Annotated[str, typer.Argument(metavar="MODEL", help="hf:owner/repo[:file-or-quant]")],
) -> None:
    """Download a model and print where it lies."""
    from ocak.cli.model_source import locate

    typer.echo(locate(reference))


@config_app.command("check")
@with_settings(ServerSettings, ModelSettings)
def config_check(
    model: Model = None, model_option: ModelOption = None, config: Config = None, **flags: Any
) -> None:
    """Print every setting, its value and where it came from."""
    from ocak.cli.config_check import print_settings

    print_settings(_load(_only_one(model, model_option), config, flags))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"ocak {__version__}")


def main() -> None:
    _open_standard_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # no terminal's encoding may end us
    sys.exit(run_command(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Put the null device where a standard stream was closed, or a socket would get its number."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number, inheritable=True)
            if null != number:
                os.close(null)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the process's life


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    command = typer.main.get_command(app)
    try:
        return command.main(arguments or ["--help"], prog_name="ocak", standalone_mode=False) or 0
    except typer.TyperException as error:
        return _fail(error.format_message() + hint(getattr(error, "option_name", "")), EXIT_USAGE)
    except ConfigError as error:
        return _fail(error.message, EXIT_USAGE)
    except OcakError as error:
        return _fail(error.message, EXIT_FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), EXIT_FAILED)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED


def _fail(message: str, status: int) -> int:
    print(f"ocak: error: {one_line(' '.join(message.split()), LONGEST_ERROR)}", file=sys.stderr)  # noqa: T201
    return status


def _load(model: str | None, config: str | None, flags: dict[str, Any]) -> Any:
    from ocak.cli.config import Sources, load

    return load(Sources(flags=typed(flags), environ=os.environ, config=config, model=model))


def _server(url: str | None, api_key: str | None) -> Any:
    from ocak.cli.remote_server import DEFAULT_URL, RemoteServer

    return RemoteServer.at(url or DEFAULT_URL, api_key or os.environ.get("OCAK_API_KEY"))


def _change(verb: str, key: str, server: Any, as_json: bool) -> None:
    from ocak.cli.residence import change

    change(server, verb, key, as_json=as_json)


def _only_one(model: str | None, option: str | None) -> str | None:
    if model and option:
        raise ConfigError(f"MODEL {model} and --model {option} are both given; leave one out", param="model")
    return model or option


def _check_batching(cont_batching: bool) -> None:
    if not cont_batching:
        raise ConfigError(
            "--no-cont-batching: batching is always continuous; --parallel 1 serves one request at a time",
            param="cont_batching",
        )
