"""Prepares inputs for the embedder and finishes what it makes of them: cut to dimensions, normalised, or scored.

Refuses what this model cannot do, and says what would.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ocak.core.embedding import Embedded, EmbedRequest, Pair
from ocak.core.errors import ContextLengthExceeded, InvalidRequest
from ocak.core.events import Usage
from ocak.core.limits import check_text
from ocak.core.request import Sampling, TextPrompt, TokenPrompt
from ocak.core.status import ModelInfo
from ocak.engine.embedding_runner import Vector
from ocak.engine.sequence import Sequence
from ocak.worker.prompt import PromptReader

NO_SAMPLING = Sampling()
NOT_A_WRITER = (
    "this model makes {made} and writes no text: send {path} requests to it, or ask a model that generates; one "
    "that could do both does so when served with --pooling none"
)
NOT_AN_EMBEDDER = (
    "this model writes text and makes no embeddings or scores: ask an embedding model or a cross-encoder, or "
    "serve this one with --embedding"
)
NOT_A_RANKER = (
    "this model embeds texts and does not rank them: ask a cross-encoder, whose GGUF says pooling rank (such as "
    "bge-reranker-v2-m3 or Qwen3-Reranker), or compare the vectors of /v1/embeddings"
)
NO_VECTORS = (
    "this model ranks documents and makes no embeddings: send query and documents to /v1/rerank, or ask an "
    "embedding model"
)


class Pairs(Protocol):
    def read(self, query: str, document: str) -> list[int]: ...


class EmbeddingWork:
    """What a worker needs beside its engine to embed; any thread may prepare."""

    def __init__(self, prompts: PromptReader, pairs: Pairs, info: ModelInfo, *, has_probabilities: bool) -> None:
        self._prompts = prompts
        self._pairs = pairs
        self._info = info
        self._has_probabilities = has_probabilities  # the model's scores are some already

    def sequence(self, handle: int, request: EmbedRequest) -> Sequence:
        """Read the input. Raises `InvalidRequest`."""
        self._check(request)
        tokens = self._read(request)
        if not tokens:
            raise InvalidRequest("the input has no tokens: send some text", param="input")
        if len(tokens) > self._info.context:
            raise self._too_long(len(tokens), request)
        return Sequence(
            id=handle,
            tokens=tokens,
            sampling=NO_SAMPLING,
            max_tokens=1,
            end_tokens=frozenset(),
            tenant=request.tenant,
            priority=request.priority,
        )

    def refuse_text(self) -> InvalidRequest:
        """Why a request to generate is turned away."""
        is_ranker = self._info.kind == "rerank"
        made, path = ("scores", "/v1/rerank") if is_ranker else ("embeddings", "/v1/embeddings")
        return InvalidRequest(NOT_A_WRITER.format(made=made, path=path), param="model")

    def finish(self, sequence: Sequence, vector: Vector, dimensions: int | None) -> Embedded | None:
        """Return the end of the request; None if the model made no numbers of it."""
        if not np.isfinite(vector).all():
            return None
        made = self._score(vector) if self._info.kind == "rerank" else normalised(vector[:dimensions])
        return Embedded(made.astype("<f4").tobytes(), Usage(prompt_tokens=sequence.num_prompt))

    def _check(self, request: EmbedRequest) -> None:
        is_pair = isinstance(request.input, Pair)
        if is_pair != (self._info.kind == "rerank"):
            raise InvalidRequest(NOT_A_RANKER if is_pair else NO_VECTORS, param="model")
        length = self._info.embedding_length
        if request.dimensions is not None and request.dimensions > length:
            raise InvalidRequest(
                f"dimensions is {request.dimensions} and this model's vectors have {length}; "
                f"send {length} or less, or leave it out",
                param="dimensions",
            )

    def _read(self, request: EmbedRequest) -> list[int]:
        if not isinstance(request.input, Pair):
            return self._read_prompt(request.input)
        check_text(request.input.query, "query")
        check_text(request.input.document, "documents")
        return self._pairs.read(request.input.query, request.input.document)

    def _read_prompt(self, prompt: TextPrompt | TokenPrompt) -> list[int]:
        """As for a text to go on with, but the field has another name."""
        try:
            return self._prompts.read(prompt)
        except InvalidRequest as error:
            raise InvalidRequest(error.message, param="input") from error

    def _too_long(self, num_tokens: int, request: EmbedRequest) -> ContextLengthExceeded:
        is_pair = isinstance(request.input, Pair)
        what = "query and document together have" if is_pair else "the input has"
        trained = self._info.trained_context
        wider = f", or serve it with a larger --context, up to {trained}" if trained > self._info.context else ""
        return ContextLengthExceeded(
            f"{what} {num_tokens} tokens and this model takes {self._info.context} at once; send less, in pieces "
            f"if need be{wider}",
            param="documents" if is_pair else "input",
        )

    def _score(self, vector: Vector) -> Vector:
        """From 0 to 1, as rerankers are read: a single logit goes through the logistic function."""
        score = vector[:1].astype(np.float64)
        if not self._has_probabilities:
            score = 1.0 / (1.0 + np.exp(-np.clip(score, -80.0, 80.0)))
        return score.astype(np.float32)


def normalised(vector: Vector) -> Vector:
    """Scale to length 1; a vector of zeros stays one."""
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    scaled: Vector = (wide / length if length else wide).astype(np.float32)
    return scaled
