"""How one model converses: its template, and the styles of its calls and its reasoning. Knows no tokens.

Decides what goes behind the rendered prompt when a call must come, and what reads the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ocak.core.request import ChatPrompt
from ocak.worker.formats.answer import AnswerReader, InTurn, Splitter, mistral_id, openai_id
from ocak.worker.formats.calls import CallSplitter
from ocak.worker.formats.forced import forced_call, parameter_types
from ocak.worker.formats.harmony import FINAL, HarmonySplitter
from ocak.worker.formats.reasoning import ReasoningMarks, ReasoningSplitter
from ocak.worker.formats.styles import (
    REASONING_MARKS,
    ReasoningFormat,
    ToolFormat,
    reasoning_format,
    tool_format,
    tool_style,
)
from ocak.worker.template import ChatTemplate


@dataclass(frozen=True, slots=True)
class OpenedChat:
    """A rendered prompt, what reads its answer if anything has to, and the marks that the answer must show."""

    text: str
    reader: AnswerReader | None
    marks: Sequence[str] = ()


class Chat:
    """`tools` and `reasoning` name the styles; None: what the template shows."""

    def __init__(
        self, template: ChatTemplate, tools: ToolFormat | None = None, reasoning: ReasoningFormat | None = None
    ) -> None:
        self._template = template
        self.tool_format: ToolFormat = tools or tool_format(template.source)
        self.reasoning_format: ReasoningFormat = reasoning or reasoning_format(template.source)
        self._style = tool_style(self.tool_format, template.source)
        self._marks = REASONING_MARKS[self.reasoning_format]

    def open(self, prompt: ChatPrompt, *, include_reasoning: bool = True) -> OpenedChat:
        """Render the prompt and make the reader of its answer. Raises `InvalidRequest`."""
        text = self._template.render(prompt.messages, prompt.offered)
        if prompt.forced:
            return self._open_forced(prompt, text)
        splitter, marks = self._splitter(prompt, text)
        if splitter is None:
            return OpenedChat(text, None)
        return OpenedChat(text, AnswerReader(splitter, self._new_id, is_reasoning_told=include_reasoning), marks)

    def constrained_text(self, prompt: ChatPrompt) -> str:
        """Render a prompt whose answer keeps to a form, which has room for neither reasoning nor calls."""
        text = self._without_reasoning(self._template.render(prompt.messages, prompt.offered))
        return text + (FINAL if self._style.marks is None else "")

    def forced_grammar(self, prompt: ChatPrompt) -> str | None:
        """Return a Lark grammar of all that may follow what `open` begins of a call; None: there is none."""
        return forced_call(self._style, prompt.forced).rest if prompt.forced else None

    def _open_forced(self, prompt: ChatPrompt, text: str) -> OpenedChat:
        """A call that must come leaves no room for reasoning: what the template opened of it is closed."""
        text = self._without_reasoning(text)
        beginning = forced_call(self._style, prompt.forced).beginning
        reader = AnswerReader(self._calls(prompt), self._new_id, pushed=beginning)
        return OpenedChat(text + beginning, reader, self._style.special)

    def _without_reasoning(self, text: str) -> str:
        if self._marks is None or not _ends_inside(text, self._marks):
            return text
        return f"{text.rstrip()}\n\n{self._marks.closer}\n\n"

    def _splitter(self, prompt: ChatPrompt, text: str) -> tuple[Splitter | None, Sequence[str]]:
        """Return what splits the answer, if anything has to, and the marks that it must see."""
        if self._style.marks is None:
            return self._calls(prompt), self._style.special
        reasoning = None
        marks: tuple[str, ...] = ()
        if self._marks is not None:
            reasoning = ReasoningSplitter(self._marks, is_inside=_ends_inside(text, self._marks))
            marks = (self._marks.opener, self._marks.closer)
        if prompt.offered:
            return InTurn(reasoning, self._calls(prompt)), (*marks, *self._style.special)
        return (None if reasoning is None else InTurn(reasoning, None)), marks

    def _calls(self, prompt: ChatPrompt) -> Splitter:
        types = {tool.name: parameter_types(tool) for tool in prompt.forced or prompt.offered}
        is_single = not prompt.parallel_calls
        if self._style.marks is None:
            return HarmonySplitter(types, is_single=is_single)
        return CallSplitter(self._style.marks, types, is_single=is_single)

    def _new_id(self) -> str:
        return mistral_id() if self.tool_format == "mistral" else openai_id()


def _ends_inside(text: str, marks: ReasoningMarks) -> bool:
    """Whether the template has opened the reasoning for the model."""
    return text.rstrip().endswith(marks.opener)
