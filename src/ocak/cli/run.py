"""`ocak run`: one answer, or a chat, in the terminal. Knows not whether the model is here or on a server."""

from __future__ import annotations

import sys

from ocak.cli.answers import AnswerOptions, Answers
from ocak.cli.background import Background
from ocak.cli.chat import chat
from ocak.cli.conversation import Conversation
from ocak.cli.settings import Settings
from ocak.core.errors import ConfigError
from ocak.core.limits import check_text
from ocak.telemetry import logs


def run_local(question: str | None, options: AnswerOptions, settings: Settings) -> None:
    """Answer with a worker of this command's own."""
    from ocak.cli.compose import plan_models
    from ocak.cli.local_answers import LocalAnswers

    logs.set_up("critical")  # what matters here is raised
    question = _question(question)
    [plan] = plan_models(settings)
    _run(question, options, LocalAnswers(plan))


def run_remote(
    question: str | None, options: AnswerOptions, url: str, api_key: str | None, model: str | None
) -> None:
    """Answer with the model of a running server."""
    from ocak.cli.remote_answers import RemoteAnswers

    _run(_question(question), options, RemoteAnswers(url, api_key, model))


def _question(question: str | None) -> str | None:
    """The question; without one and without a terminal, what comes in on stdin. None: a chat."""
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise ConfigError('there is no question; write ocak run "…", or pipe one in', param="question")
    if question is not None:
        check_text(question, "question")
    return question


def _run(question: str | None, options: AnswerOptions, answers: Answers) -> None:
    conversation = Conversation(answers, options)
    with Background() as background:
        try:
            background.run(answers.open())
            if question is None:
                chat(conversation, background)
            else:
                background.run(conversation.ask(question))
        finally:
            background.run(answers.close())
