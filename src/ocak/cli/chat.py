"""The chat in the terminal: reads lines and obeys commands; Ctrl-C stops an answer but not the chat."""

from __future__ import annotations

import contextlib
import sys

import typer

from ocak.cli.background import Background
from ocak.cli.conversation import Conversation
from ocak.core.errors import ContextLengthExceeded, OcakError

PROMPT = ">>> "
HELP = """/clear  forget the conversation
/exit   leave (also Ctrl-D)
/help   this text
Ctrl-C  stop the answer; at the prompt, leave"""


def chat(conversation: Conversation, background: Background) -> None:
    """Ask and answer until the user leaves; an error ends one answer, not the chat."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() its editing and history)
    typer.echo("Ask, or /help. Ctrl-C stops an answer, Ctrl-D leaves.", err=True)
    while (line := _read_line()) is not None:
        if line.startswith("/"):
            if not _obey(line, conversation):
                return
        elif line:
            _answer(line, conversation, background)


def _read_line() -> str | None:
    """Return what was typed, None when the user leaves."""
    try:
        return input(PROMPT).strip()
    except (EOFError, KeyboardInterrupt):
        typer.echo()
        return None


def _obey(command: str, conversation: Conversation) -> bool:
    """Do what the command says; return whether the chat goes on."""
    match command:
        case "/exit" | "/quit" | "/bye":
            return False
        case "/clear":
            conversation.clear()
        case "/help" | "/?":
            typer.echo(HELP)
        case _:
            typer.echo(f"there is no command {command}; /help lists them", err=True)
    return True


def _answer(question: str, conversation: Conversation, background: Background) -> None:
    try:
        background.run(conversation.ask(question))
    except KeyboardInterrupt:
        typer.echo(" [stopped]")
    except OcakError as error:
        sys.stdout.flush()
        way_out = "; /clear forgets the conversation" if isinstance(error, ContextLengthExceeded) else ""
        typer.echo(f"error: {error.message}{way_out}", err=True)
