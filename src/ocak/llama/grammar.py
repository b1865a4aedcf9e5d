"""Grammars over the model's own tokens, by llguidance: compiled once, followed by any number of answers.

A token's bytes are what it adds to the text; those that add nothing, and those that end an answer, match no text.
The end tokens may come where the grammar's text may end.
Masks are computed beside the engine: `accept` only starts that, so it goes on while the next batch runs, and
`forbidden` waits for what is left of it.
Invariant: llguidance never decides alone that an answer is at its end: a grammar that failed is an error.
"""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np
from llama_cpp import llama_cpp as c
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from ocak.engine.runner import NoToken
from ocak.llama.vocabulary import Vocabulary

MASK_THREADS = 2
SPECIAL = b"\xff"  # by which llguidance knows tokens that are no text
LIMITS = LLParserLimits(
    max_items_in_row=1000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,  # some 7 ms for a mask
    step_max_items=50_000,
    max_lexer_states=50_000,  # 1 to 2 KB each
    max_grammar_size=200_000,
    verbose_errors=False,
)


class GrammarError(Exception):
    """llguidance's word about a grammar that it cannot follow."""


class LlamaGrammar:
    """A compiled grammar. `first` is what it forbids at the beginning of an answer."""

    def __init__(self, prototype: LLMatcher, num_vocab: int, pool: ThreadPoolExecutor) -> None:
        self.num_vocab = num_vocab
        self.pool = pool
        self._prototype = prototype
        self.first = _forbidden(prototype, num_vocab)

    def may_begin(self, token: int) -> bool:
        """Whether the token may be an answer's first."""
        return not self.first[token]

    def copy_matcher(self) -> LLMatcher:
        """Return a matcher at the beginning."""
        return self._prototype.deep_copy()


class GrammarState:
    """Where one answer is in its grammar. Used by one thread; the mask is computed by another."""

    def __init__(self, grammar: LlamaGrammar) -> None:
        self._grammar = grammar
        self._matcher: LLMatcher | None = None  # None: at the beginning
        self._next: Future[NDArray[np.bool_]] | None = None

    def forbidden(self) -> NDArray[np.bool_]:
        """Return what must not come next, waiting for it if need be. Raises `NoToken`."""
        if self._next is None:
            return self._grammar.first
        try:
            return self._next.result()
        except GrammarError as error:
            raise NoToken(f"the grammar could not be followed any further: {error}") from error

    def accept(self, token: int) -> None:
        """Take the token that came, and have the next mask computed."""
        self._next = self._grammar.pool.submit(self._advance, token)

    def _advance(self, token: int) -> NDArray[np.bool_]:
        if self._matcher is None:
            self._matcher = self._grammar.copy_matcher()
        self._matcher.consume_token(token)
        return _forbidden(self._matcher, self._grammar.num_vocab)


class GrammarCompiler:
    """Compiles grammars for one model; from any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()  # for the tokenizer, which is made once
        self._pool = ThreadPoolExecutor(MASK_THREADS, thread_name_prefix="mask")

    @property
    def can_end(self) -> bool:
        """Whether the model has a token that ends an answer; without one no grammar is ever complete."""
        return bool(self._vocabulary.end_tokens)

    def compile(self, source: str) -> LlamaGrammar:
        """Compile what llguidance reads: Lark, or its JSON form. Raises `GrammarError`."""
        with self._lock:
            tokenizer = self._tokenizer
        matcher = LLMatcher(tokenizer, source, log_level=0, limits=LIMITS)
        return LlamaGrammar(matcher, self._vocabulary.size, self._pool)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        """Made when the first grammar comes: it takes the time of reading every token."""
        vocabulary = self._vocabulary
        tokenize = ctypes.cast(c._lib.llama_tokenize, ctypes.c_void_p).value
        return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]
            tokens=[_bytes(vocabulary, token) for token in range(vocabulary.size)],
            vocab_ptr=vocabulary.pointer,
            tokenize_fptr=tokenize,
            eos_token=sorted(vocabulary.end_tokens),
        )


def error_in(source: str) -> str:
    """Return what llguidance has against a grammar, whatever the model; empty if nothing."""
    return LLMatcher.validate_grammar(source, limits=LIMITS)


def _bytes(vocabulary: Vocabulary, token: int) -> bytes:
    piece = b"" if token in vocabulary.end_tokens else vocabulary.read_piece(token, is_special=False)
    return piece or SPECIAL + vocabulary.read_piece(token, is_special=True)


def _forbidden(matcher: LLMatcher, num_vocab: int) -> NDArray[np.bool_]:
    """Compute the mask. A matcher that failed would allow the end: raises `GrammarError` instead."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    if matcher.is_stopped() and matcher.is_error():
        raise GrammarError(matcher.get_error())
    return np.unpackbits(~bits, count=num_vocab, bitorder="little").view(np.bool_)
