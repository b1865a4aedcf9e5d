"""Turns any prompt into the token ids that the engine reads, and back. Knows no slot and no sampling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ocak.core.errors import InvalidRequest
from ocak.core.limits import MAX_CONSTRAINT_BYTES, check_text
from ocak.core.request import (
    ChatPrompt,
    Constraint,
    GenerateRequest,
    InfillPrompt,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from ocak.llama.vocabulary import InfillTokens
from ocak.worker.chat import Chat
from ocak.worker.formats.answer import AnswerReader


class Tokens(Protocol):
    """A vocabulary, as far as prompts need it."""

    size: int
    infill: InfillTokens | None

    @property
    def bos_text(self) -> str: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def text(self, tokens: tuple[int, ...]) -> str: ...


@dataclass(frozen=True, slots=True)
class Opening:
    """A prompt's token ids; for some chats, what reads the answer, and the tokens that are its marks."""

    tokens: list[int]
    reader: AnswerReader | None = None
    marks: Mapping[int, bytes] = field(default_factory=dict)


class PromptReader:
    def __init__(self, vocabulary: Tokens, chat: Chat | None) -> None:
        self._vocabulary = vocabulary
        self._chat = chat

    def open(self, request: GenerateRequest) -> Opening:
        """Read a request's prompt, and see how its answer is to be read. Raises `InvalidRequest`."""
        if not isinstance(request.prompt, ChatPrompt):
            return Opening(self.read(request.prompt))
        chat = self._checked_chat(request.prompt)
        if request.constraint is not None and not request.prompt.forced:
            return Opening(self._tokens(chat.constrained_text(request.prompt)))
        opened = chat.open(request.prompt, include_reasoning=request.include_reasoning)
        return Opening(self._tokens(opened.text), opened.reader, self._marks(opened.marks))

    def constrained(self, request: GenerateRequest) -> GenerateRequest:
        """Return the request with the grammar of the call that must come, if one must. Raises `InvalidRequest`."""
        prompt = request.prompt
        if not isinstance(prompt, ChatPrompt) or not prompt.forced or self._chat is None:
            return request
        if request.constraint is not None:
            raise InvalidRequest(
                f"tool_choice asks for a call, {request.constraint.param} for another answer; send one of the two",
                param="tool_choice",
            )
        grammar = self._chat.forced_grammar(prompt)
        if grammar is None:
            return request
        if len(grammar.encode()) > MAX_CONSTRAINT_BYTES:
            raise InvalidRequest(
                f"a call that must come takes tools of about {MAX_CONSTRAINT_BYTES} bytes together at most; offer "
                "fewer or smaller ones, or send tool_choice auto",
                param="tool_choice",
            )
        constraint = Constraint("grammar", grammar, "tools")
        return msgspec.structs.replace(request, constraint=constraint)

    def read(self, prompt: Prompt, *, add_special: bool = True) -> list[int]:
        """Return the prompt's token ids. Raises `InvalidRequest`."""
        match prompt:
            case TokenPrompt(tokens):
                return self._checked(tokens)
            case TextPrompt(text):
                check_text(text, "prompt")
                return self._vocabulary.tokenize(text, add_special=add_special, parse_special=True)
            case ChatPrompt():
                return self._tokens(self._checked_chat(prompt).open(prompt).text)
            case InfillPrompt(prefix, suffix):
                return self._read_infill(prefix, suffix)

    def write(self, tokens: tuple[int, ...]) -> str:
        """Return the text of token ids. Raises `InvalidRequest` for an id that the model does not have."""
        return self._vocabulary.text(tuple(self._checked(tokens)))

    def _checked(self, tokens: tuple[int, ...]) -> list[int]:
        for token in tokens:
            if not 0 <= token < self._vocabulary.size:
                raise InvalidRequest(
                    f"token id {token} is not one of the model's 0 to {self._vocabulary.size - 1}", param="prompt"
                )
        return list(tokens)

    def _checked_chat(self, prompt: ChatPrompt) -> Chat:
        if self._chat is None:
            raise InvalidRequest(
                "this model has no chat template: use /v1/completions, or serve it with --chat-template FILE",
                param="messages",
            )
        for message in prompt.messages:
            check_text(message.content, "messages")
        return self._chat

    def _tokens(self, text: str) -> list[int]:
        bos = self._vocabulary.bos_text
        has_bos = bool(bos) and text.startswith(bos)
        return self._vocabulary.tokenize(text, add_special=not has_bos, parse_special=True)

    def _marks(self, marks: Iterable[str]) -> dict[int, bytes]:
        """Return the marks that are one token, whose text the vocabulary may leave out."""
        ids = {m: self._vocabulary.tokenize(m, add_special=False, parse_special=True) for m in marks}
        return {found[0]: mark.encode() for mark, found in ids.items() if len(found) == 1}

    def _read_infill(self, prefix: str, suffix: str) -> list[int]:
        marks = self._vocabulary.infill
        if marks is None:
            raise InvalidRequest("this model has no fill-in-the-middle tokens: leave suffix out", param="suffix")
        check_text(prefix, "prompt")
        check_text(suffix, "suffix")

        def plain(text: str) -> list[int]:
            return self._vocabulary.tokenize(text, add_special=False, parse_special=False)

        return [marks.prefix, *plain(prefix), marks.suffix, *plain(suffix), marks.middle]
