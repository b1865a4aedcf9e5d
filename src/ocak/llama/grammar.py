"""Grammars over the model's own tokens, by llguidance: compiled once, followed by any number of answers.

A token's bytes are what it adds to the text; those that add nothing, and those that end an answer, match no text.
The end tokens may come where the grammar's text may end.
Masks are computed beside the engine: `accept` only starts that, so it goes on while the next batch runs, and
`forbidden` waits for what is left of it.
Invariant: llguidance never decides alone that an answer is at its end: a grammar that failed is an error.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, partial
from threading import Lock

import numpy as np
from llama_cpp import llama_cpp as c
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from ocak.engine.runner import NoToken
from ocak.llama.affinity import run_anywhere
from ocak.llama.grammar_limits import limits
from ocak.llama.vocabulary import Vocabulary

logger = logging.getLogger("ocak.worker")

MASK_THREADS = 2
GRACE_S = 0.5  # of masks, for the whole answer
TOKEN_S = 0.005  # and for each of its tokens
MAX_RENEWALS = 3  # of one answer's grammar
STRING = r'[^"\\\x00-\x1F\x7F]'
# Sets of tokens that are looked at as one where all of them fit. The short ones halve the time of a mask inside a
# string of bounded length.
SLICES = (r"[\x20\x0A\x0D\x09]+", *(f"{STRING}{{1,{n}}}" for n in (2, 4, 6, 8, 10, 12, 16, 24)), f"{STRING}+")
SPECIAL = b"\xff"  # by which llguidance knows tokens that are no text


class GrammarError(Exception):
    """llguidance's word about a grammar that it cannot follow."""


class LlamaGrammar:
    """A compiled grammar. `first` is what it forbids at the beginning of an answer.

    Its matchers share what they have learnt of its lexer. That grows, and at its limit all of them fail; so the
    grammar can be made anew.
    """

    def __init__(self, make: Callable[[], LLMatcher], num_vocab: int, pool: ThreadPoolExecutor) -> None:
        self.num_vocab = num_vocab
        self.pool = pool
        self._make = make
        self._prototype = make()
        self.first = _forbidden(self._prototype, num_vocab)

    def may_begin(self, token: int) -> bool:
        """Whether the token may be an answer's first."""
        return not self.first[token]

    def matcher(self) -> LLMatcher:
        """Return a matcher at the beginning."""
        return self._prototype.deep_copy()

    def renew(self) -> None:
        """Forget what the matchers have learnt, for those to come."""
        self._prototype = self._make()


class GrammarState:
    """Where one answer is in its grammar. Used by one thread; the masks are computed by another."""

    def __init__(self, grammar: LlamaGrammar) -> None:
        self._grammar = grammar
        self._matcher: LLMatcher | None = None  # None: at the beginning
        self._tokens: list[int] = []
        self._num_renewals = 0
        self._spent_s = 0.0  # by the thread that computes
        self._next: Future[NDArray[np.bool_]] | None = None

    def forbidden(self) -> NDArray[np.bool_]:
        """Return what must not come next, waiting for it if need be. Raises `NoToken`."""
        if self._next is None:
            return self._grammar.first
        error = self._next.exception()  # of any kind: it is this answer's, not the engine's
        if error is not None:
            raise NoToken(f"the grammar could not be followed any further: {error}")
        return self._next.result()

    def accept(self, token: int) -> None:
        """Take the token that came, and have the next mask computed."""
        self._next = self._grammar.pool.submit(self._compute, token)

    def _compute(self, token: int) -> NDArray[np.bool_]:
        """Take the token and return the next mask, unless this answer's have taken too long."""
        started = time.thread_time()
        mask = self._advance(token)
        self._spent_s += time.thread_time() - started
        if self._spent_s > GRACE_S + TOKEN_S * len(self._tokens):
            raise GrammarError(f"it takes more than {TOKEN_S * 1e3:g} ms for each token; send a simpler one")
        return mask

    def _advance(self, token: int) -> NDArray[np.bool_]:
        self._tokens.append(token)
        if self._matcher is None:
            self._matcher = self._grammar.matcher()
        self._matcher.consume_token(token)
        try:
            return _forbidden(self._matcher, self._grammar.num_vocab)
        except GrammarError:
            if self._num_renewals == MAX_RENEWALS:
                raise
        return self._begin_anew()

    def _begin_anew(self) -> NDArray[np.bool_]:
        self._num_renewals += 1
        self._grammar.renew()
        self._matcher = self._grammar.matcher()
        self._matcher.consume_tokens(self._tokens)
        return _forbidden(self._matcher, self._grammar.num_vocab)


class GrammarCompiler:
    """Compiles grammars for one model; from any thread.

    llguidance holds up the whole process while it reads a vocabulary, half a second for 150,000 tokens: `prepare`
    is for a moment when nobody is answered. Without it the first grammar has it read.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._num_vocab = vocabulary.size
        self._pool = ThreadPoolExecutor(MASK_THREADS, thread_name_prefix="mask", initializer=run_anywhere)
        self._vocabulary = vocabulary
        self._preparing = Lock()

    def prepare(self) -> None:
        """Read the vocabulary, once."""
        with self._preparing:
            _ = self._tokenizer

    @property
    def can_compile(self) -> bool:
        """Whether the model has a token that ends an answer, and a vocabulary that llguidance reads."""
        self.prepare()
        return self._tokenizer is not None

    @cached_property
    def _tokenizer(self) -> LLTokenizer | None:
        return _tokenizer(self._vocabulary)

    def close(self) -> None:
        """End the threads; no answer in a form may be under way."""
        self._pool.shutdown(cancel_futures=True)

    def compile(self, source: str) -> LlamaGrammar:
        """Compile what llguidance reads: Lark, or its JSON form. Raises `GrammarError`."""
        self.prepare()
        assert self._tokenizer is not None, "there is none to compile for"
        make = partial(LLMatcher, self._tokenizer, source, log_level=0, limits=limits(source))
        try:
            return LlamaGrammar(make, self._num_vocab, self._pool)
        except GrammarError:
            raise
        except BaseException as error:  # a panic in Rust is no `Exception`, and must not end the worker
            raise GrammarError(f"{type(error).__name__}: {error}") from error


def _tokenizer(vocabulary: Vocabulary) -> LLTokenizer | None:
    """Read the vocabulary; None for one without an end, and for a strange one, which must not end the load."""
    if not vocabulary.end_tokens:
        return None
    try:
        return _read(vocabulary)
    except BaseException as error:  # noqa: BLE001 - a panic in Rust is no `Exception`
        logger.warning("no structured output: llguidance cannot read the vocabulary: %s", error)
        return None


def _read(vocabulary: Vocabulary) -> LLTokenizer:
    tokenize = ctypes.cast(c._lib.llama_tokenize, ctypes.c_void_p).value
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]
        tokens=[_bytes(vocabulary, token) for token in range(vocabulary.size)],
        vocab_ptr=vocabulary.pointer,
        tokenize_fptr=tokenize,
        eos_token=sorted(vocabulary.end_tokens),
        slices=list(SLICES),
    )


def _bytes(vocabulary: Vocabulary, token: int) -> bytes:
    piece = b"" if token in vocabulary.end_tokens else vocabulary.read_piece(token, is_special=False)
    return piece or SPECIAL + vocabulary.read_piece(token, is_special=True)


def _forbidden(matcher: LLMatcher, num_vocab: int) -> NDArray[np.bool_]:
    """Compute the mask. A matcher that failed would allow the end: raises `GrammarError` instead."""
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    if matcher.is_stopped() and matcher.is_error():
        raise GrammarError(matcher.get_error().removesuffix("<non-verbose/>").strip())
    return np.unpackbits(~bits, count=num_vocab, bitorder="little").view(np.bool_)
