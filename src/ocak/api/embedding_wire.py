"""The bodies of `/v1/embeddings` (OpenAI's) and `/v1/rerank` (Jina's and Cohere's), as they travel. Types only."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ocak.api.openai_wire import ModelName
from ocak.api.prompt_shapes import SHAPES
from ocak.api.samplers_wire import Int

VECTOR_SCHEMA = {
    "description": "Of length 1; a text where base64 was asked for.",
    "oneOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}],
}
Priority = Annotated[Int, Meta(description="Lower ones go first, among the key's own requests.")]


class EmbeddingBody(msgspec.Struct, frozen=True, kw_only=True):
    model: ModelName | None = None
    input: Annotated[msgspec.Raw, Meta(extra_json_schema=SHAPES)]
    encoding_format: (
        Annotated[Literal["float", "base64"], Meta(description="base64: of little-endian float32.")] | None
    ) = None
    dimensions: (
        Annotated[Int, Meta(description="The first so many numbers, normalised anew: for Matryoshka models.")]
        | None
    ) = None
    priority: Priority | None = None


class EmbeddingUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingItem(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Annotated[msgspec.Raw, Meta(extra_json_schema=VECTOR_SCHEMA)]


class EmbeddingAnswer(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingUsage


class DocumentBody(msgspec.Struct, frozen=True):
    text: str


class RerankBody(msgspec.Struct, frozen=True, kw_only=True):
    model: ModelName | None = None
    query: str
    documents: list[str | DocumentBody]
    top_n: Annotated[Int, Meta(description="The best so many alone; all when silent.")] | None = None
    return_documents: Annotated[bool, Meta(description="Repeat each text in its result.")] | None = None
    priority: Priority | None = None


class RerankResult(msgspec.Struct, frozen=True, omit_defaults=True):
    index: int
    relevance_score: Annotated[float, Meta(description="From 0 to 1.")]
    document: DocumentBody | None = None


class RerankAnswer(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    model: str
    results: Annotated[list[RerankResult], Meta(description="Best first.")]
    usage: EmbeddingUsage
