"""Makes an answer of a request: its prompt read and fitted into the context, its sequence, what its text needs.

Runs beside the worker's loop, for a long prompt delays nobody else. Knows no socket and no step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import msgspec

from ocak.core.request import GenerateRequest, Sampling, TokenPrompt
from ocak.engine.sequence import Sequence
from ocak.llama.grammar import LlamaGrammar
from ocak.worker.engine_loop import Answer
from ocak.worker.fitting import check_context, check_length, fit
from ocak.worker.loading import LoadedModel
from ocak.worker.logprobs import HeldLogprobs
from ocak.worker.prompt import Opening
from ocak.worker.prompt_logprobs import PromptReport, check_size
from ocak.worker.rules import end_tokens, token_rules
from ocak.worker.states import prefix_root
from ocak.worker.text import AnswerText


@dataclass(frozen=True, slots=True)
class Answering:
    """Of one model."""

    loaded: LoadedModel

    def answer(self, handle: int, request: GenerateRequest, grammar: LlamaGrammar | None) -> Answer:
        """Return the answer, which has not begun. Raises `InvalidRequest`."""
        if self.loaded.embedding is not None:
            raise self.loaded.embedding.refuse_text()
        opening = self._open(request)
        vocabulary = self.loaded.model.vocabulary
        echo = vocabulary.text(opening.tokens) if request.echo else ""
        names = vocabulary.piece, vocabulary.special_text
        return Answer(
            sequence=self._sequence(handle, request, opening.tokens, grammar),
            text=AnswerText(request.stopping.stop, request.stopping.min_tokens),
            echo=echo,
            logprobs=None if request.logprobs is None else HeldLogprobs(*names, len(echo)),
            prompt=None if request.prompt_logprobs is None else PromptReport(*names, opening.tokens),
            reader=opening.reader,
            marks=opening.marks,
        )

    def _open(self, request: GenerateRequest) -> Opening:
        """Read the prompt, as far as it is not too long to be answered."""
        rules = self.loaded.rules
        check_context(request, rules)
        if isinstance(request.prompt, TokenPrompt):
            check_length(len(request.prompt.tokens), request, rules)
        opening = self.loaded.prompts.open(request)
        check_length(len(opening.tokens), request, rules)
        if request.prompt_logprobs is not None:
            check_size(len(opening.tokens), request.prompt_logprobs)
        return opening

    def _sequence(
        self, handle: int, request: GenerateRequest, tokens: list[int], grammar: LlamaGrammar | None
    ) -> Sequence:
        vocabulary, fitted = self.loaded.model.vocabulary, fit(tokens, request, self.loaded.rules)
        return Sequence(
            id=handle,
            tokens=fitted.tokens,
            sampling=self._sampling(request),
            max_tokens=request.stopping.max_tokens or self.loaded.info.context,
            end_tokens=end_tokens(request, vocabulary),
            tenant=request.tenant,
            priority=request.priority,
            adapter=request.lora,
            root=prefix_root(request.tenant, request.cache_salt, request.lora),
            family=request.family,
            num_logprobs=request.logprobs,
            rules=token_rules(request, vocabulary, grammar),
            num_prompt_logprobs=request.prompt_logprobs,
            window=fitted.window,
            num_dropped=fitted.num_dropped,
        )

    def _sampling(self, request: GenerateRequest) -> Sampling:
        sampling = request.sampling
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=random.getrandbits(32))
        self.loaded.samplers.prepare(sampling)
        return sampling
