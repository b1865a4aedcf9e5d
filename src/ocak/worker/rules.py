"""Turns what a request says of tokens and words into the engine's rules, in the model's own ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ocak.core.errors import InvalidRequest
from ocak.core.request import GenerateRequest
from ocak.engine.rules import Grammar, TokenRules


class Words(Protocol):
    """A vocabulary, as far as rules need it."""

    size: int

    @property
    def end_tokens(self) -> frozenset[int]: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


def end_tokens(request: GenerateRequest, vocabulary: Words) -> frozenset[int]:
    """Return the tokens that end the answer. Raises `InvalidRequest` for an id that the model does not have.

    Nothing can follow the end of a grammar, so there the model's own always do.
    """
    stop = request.stopping.stop_token_ids
    _check("stop_token_ids", stop, vocabulary.size)
    goes_on = request.stopping.ignore_eos and request.constraint is None
    return frozenset(stop) | (frozenset() if goes_on else vocabulary.end_tokens)


def token_rules(request: GenerateRequest, vocabulary: Words, grammar: Grammar | None = None) -> TokenRules:
    """Return what the request and its compiled constraint rule out.

    Raises `InvalidRequest` for unknown ids, and where nothing is left.
    """
    sampling = request.sampling
    allowed = sampling.allowed_token_ids
    _check("logit_bias", sampling.logit_bias, vocabulary.size)
    _check("allowed_token_ids", allowed or (), vocabulary.size)
    rules = TokenRules(
        allowed=None if allowed is None else frozenset(allowed),
        bad_words=frozenset(run for word in sampling.bad_words for run in _spellings(word, vocabulary)),
        end_tokens=end_tokens(request, vocabulary),
        min_tokens=request.stopping.min_tokens,
        grammar=grammar,
        avoided=vocabulary.end_tokens if grammar is not None and request.stopping.ignore_eos else frozenset(),
    )
    if sampling.fills_in and not rules.is_void:
        raise InvalidRequest(
            "samplers names infill, which ends an answer where it sees fit, so nothing may be forbidden beside "
            "it: leave it out, or the format, the tools, bad_words, allowed_token_ids and min_tokens",
            param="samplers",
        )
    if not rules.leaves_a_token(vocabulary.size):
        raise InvalidRequest(
            "no token is left that may begin the answer: allow more with allowed_token_ids, or forbid less with "
            "bad_words, min_tokens and the grammar",
            param="bad_words" if allowed is None else "allowed_token_ids",
        )
    return rules


def _spellings(word: str, vocabulary: Words) -> list[tuple[int, ...]]:
    """A word has other tokens after a space than at a beginning."""
    texts = (word,) if word[0].isspace() else (word, " " + word)
    runs = [tuple(vocabulary.tokenize(text, add_special=False, parse_special=False)) for text in texts]
    return [run for run in runs if run]


def _check(param: str, tokens: Iterable[int], num_vocab: int) -> None:
    for token in tokens:
        if token >= num_vocab:
            raise InvalidRequest(f"{param} names token {token}; the model has 0 to {num_vocab - 1}", param=param)
