"""`ocak run`: one answer, piped, in a chat, here or on a server."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path

import pytest

from ocak.cli.answers import AnswerOptions
from ocak.cli.conversation import Conversation
from ocak.core.errors import GenerationFailed
from ocak.core.events import Delta, Finished, Usage
from ocak.core.request import Message
from tests.cli.processes import RunningServer, Terminal, environ, ocak, serving

GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with serving(tiny_model, "--api-key", "long-enough") as running:
        yield running


def test_one_question_gets_one_answer(tiny_model: Path) -> None:
    result = ocak("run", "hello", "-m", tiny_model, *GREEDY)
    assert (result.returncode, result.stderr) == (0, " [stopped: the limit of tokens is reached]")
    assert len(result.stdout) > 1


def test_the_question_may_come_through_a_pipe(tiny_model: Path) -> None:
    typed = ocak("run", "hello", "-m", tiny_model, *GREEDY)
    piped = ocak("run", "-m", tiny_model, *GREEDY, stdin="hello")
    assert piped.stdout == typed.stdout


def test_a_server_answers_as_the_worker_does(tiny_model: Path, server: RunningServer) -> None:
    here = ocak("run", "hello", "-m", tiny_model, *GREEDY)
    there = ocak("run", "hello", "--url", server.url, *GREEDY, extra={"OCAK_API_KEY": "long-enough"})
    assert (there.returncode, there.stdout) == (0, here.stdout)


def test_a_server_refuses_a_wrong_key(server: RunningServer) -> None:
    result = ocak("run", "hello", "--url", server.url, "--api-key", "another-key")
    assert result.returncode == 1
    assert "401" in result.stderr


def test_a_server_names_the_models_it_has(server: RunningServer) -> None:
    result = ocak("run", "hi", "--url", server.url, "--api-key", "long-enough", "-m", "tinny")
    assert result.returncode == 1
    assert "did you mean 'tiny'" in result.stderr


def test_a_chat_goes_on_after_ctrl_c_and_ends_with_ctrl_d(talkative: tuple[Path | str, ...]) -> None:
    with Terminal("run", "-m", *talkative, "--temperature", "0") as terminal:
        terminal.read_until(r">>> ")
        terminal.type("tell me everything\n")
        terminal.read_until(r"everything\r\n.{20}")
        terminal.type("\x03")
        terminal.read_until(r"\[stopped\]\r\n>>> ")
        terminal.type("/nonsense\n")
        terminal.read_until(r"there is no command /nonsense(.|\n)*>>> ")
        terminal.type("/help\n")
        terminal.read_until(r"forget the conversation(.|\n)*>>> ")
        terminal.type("\x04")
        assert terminal.wait() == 0


def test_ctrl_c_at_the_prompt_leaves_the_chat(tiny_model: Path) -> None:
    with Terminal("run", "-m", tiny_model) as terminal:
        terminal.read_until(r">>> ")
        assert terminal.interrupt() == 0


class Recorded:
    """Answers with what it is given, and remembers what it was asked."""

    def __init__(self, *texts: str, fails: bool = False) -> None:
        self._texts = texts
        self._fails = fails
        self.asked: list[list[Message]] = []
        self.is_closed = False

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def stream(
        self, messages: Sequence[Message], options: AnswerOptions
    ) -> AsyncGenerator[Delta | Finished, None]:
        self.asked.append(list(messages))
        try:
            for text in self._texts:
                yield Delta(text, 1)
            if self._fails:
                raise GenerationFailed("broken")
            yield Finished("stop", Usage())
        finally:
            self.is_closed = True


async def test_a_conversation_remembers_what_was_said() -> None:
    answers = Recorded("one ", "two")
    conversation = Conversation(answers, AnswerOptions(system="be short"), io.StringIO())
    await conversation.ask("first")
    await conversation.ask("second")
    assert answers.asked[1] == [
        Message("system", "be short"),
        Message("user", "first"),
        Message("assistant", "one two"),
        Message("user", "second"),
    ]
    conversation.clear()
    assert conversation.messages == [Message("system", "be short")]


async def test_the_seen_part_of_a_stopped_answer_is_remembered() -> None:
    class Endless(Recorded):
        async def stream(
            self, messages: Sequence[Message], options: AnswerOptions
        ) -> AsyncGenerator[Delta | Finished, None]:
            yield Delta("seen", 1)
            seen.set()
            await asyncio.Event().wait()

    seen = asyncio.Event()
    conversation = Conversation(Endless(), AnswerOptions(), io.StringIO())
    asking = asyncio.create_task(conversation.ask("go"))
    await seen.wait()
    asking.cancel()
    await asyncio.wait([asking])
    assert conversation.messages == [Message("user", "go"), Message("assistant", "seen")]


async def test_a_question_that_failed_is_not_remembered() -> None:
    conversation = Conversation(Recorded(fails=True), AnswerOptions(), io.StringIO())
    with pytest.raises(GenerationFailed):
        await conversation.ask("go")
    assert conversation.messages == []


async def test_an_answer_cannot_steer_the_terminal() -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    await Conversation(Recorded("a\x1b]0;title\x07b\n\tc"), AnswerOptions(), screen).ask("go")
    assert screen.getvalue() == "a]0;titleb\n\tc\n"


@pytest.mark.parametrize(("is_screen", "shown"), [(True, "\x1b[2mhm\x07\x1b[22m\n\nyes\n"), (False, "yes\n")])
async def test_reasoning_is_shown_to_people_alone_and_not_remembered(is_screen: bool, shown: str) -> None:
    class Thinking(Recorded):
        async def stream(
            self, messages: Sequence[Message], options: AnswerOptions
        ) -> AsyncGenerator[Delta | Finished, None]:
            yield Delta("", 1, reasoning="hm\x07")
            yield Delta("yes", 1)
            yield Finished("stop", Usage())

    class Out(io.StringIO):
        def isatty(self) -> bool:
            return is_screen

    out = Out()
    conversation = Conversation(Thinking(), AnswerOptions(), out)
    await conversation.ask("go")
    assert out.getvalue() == shown.replace("\x07", "")
    assert conversation.messages == [Message("user", "go"), Message("assistant", "yes")]


INTERRUPTED = """
import asyncio, os, signal
from ocak.cli.background import Background

async def endless():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0.05)
        print("has let go")

with Background() as background:
    try:
        background.run(endless())
    except KeyboardInterrupt:
        print(background.run(asyncio.sleep(0, "goes on")))
"""


def test_ctrl_c_cancels_what_runs_and_waits_until_it_has_let_go() -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, env=environ(), timeout=30, check=True
    )
    assert result.stdout.splitlines() == ["has let go", "goes on"]
