"""How a cross-encoder reads a question and a text at once, as its vocabulary says. Thread-safe.

A model that brings a template named `rerank` has both put into it; others have the marks of their tokenizer
around each: `[CLS] query [SEP] document [SEP]`, or `<s> query </s></s> document </s>`.
"""

from __future__ import annotations

import re

from llama_cpp import llama_cpp as c

from ocak.llama.model import LlamaModel
from ocak.llama.vocabulary import NO_TOKEN

PLACE = re.compile(r"\{(query|document)\}")


class PairReader:
    def __init__(self, model: LlamaModel) -> None:
        self._vocabulary = model.vocabulary
        template: bytes | None = c.llama_model_chat_template(model.pointer, b"rerank")
        self._template = template.decode("utf-8", "replace") if template else None
        vocab = model.vocabulary.pointer
        bos, sep = c.llama_vocab_bos(vocab), c.llama_vocab_sep(vocab)
        eos = c.llama_vocab_eos(vocab)
        ends = [sep if eos == NO_TOKEN else eos] if c.llama_vocab_get_add_eos(vocab) else []
        separators = [sep] if c.llama_vocab_get_add_sep(vocab) else []
        self._start = _known([bos] if c.llama_vocab_get_add_bos(vocab) else [])
        self._middle = _known([*ends, *separators])
        self._end = _known(ends or separators)

    def read(self, query: str, document: str) -> list[int]:
        if self._template is not None:
            return self._read_template(self._template, query, document)
        return [*self._start, *self._plain(query), *self._middle, *self._plain(document), *self._end]

    def _read_template(self, template: str, query: str, document: str) -> list[int]:
        """Put both in at once, so that a query that holds `{document}` stays what it is."""
        values = {"query": query, "document": document}
        text = PLACE.sub(lambda place: values[place[1]], template)
        return self._vocabulary.tokenize(text, add_special=False, parse_special=True)

    def _plain(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)


def _known(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token != NO_TOKEN]
