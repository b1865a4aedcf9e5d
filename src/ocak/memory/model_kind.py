"""Decides from a header and the owner's wish whether a model writes text, embeds, or ranks. Pure.

The GGUF says it by its `pooling_type`, or by an architecture that keeps no KV cache and can do nothing else.
Invariant: a pooling that is returned is one that llama.cpp can compute with these tensors.
"""

from __future__ import annotations

from typing import Final

from ocak.core.embedding import ModelKind, Pooling
from ocak.core.errors import ConfigError
from ocak.memory.gguf_cursor import refuse
from ocak.memory.gguf_header import GgufHeader

AUTO: Final = "auto"
NO_POOLING: Final = "none"
ENCODERS: Final = frozenset(  # architectures without a KV cache (llama.cpp's `create_memory`), and T5's encoder
    (
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    )
)
_BY_NUMBER: Final[tuple[Pooling | None, ...]] = (None, "mean", "cls", "last", "rank")  # llama_pooling_type
_HEADS: Final = ("cls.weight", "cls.output.weight")


def pooling_of(header: GgufHeader, *, embedding: bool = False, pooling: str = AUTO) -> Pooling | None:
    """Return how the model's vectors are pooled; None for a model that writes text.

    Raises `ConfigError` for a wish that the model cannot fulfil, `ModelFileError` for a header that lies.
    """
    if pooling == NO_POOLING:
        _check_can_write(header, embedding)
        return None
    chosen = _pooling(header, embedding=embedding, pooling=pooling)
    if chosen == "rank" and not any(tensor.name in _HEADS for tensor in header.tensors):
        raise ConfigError(
            f"{header.path}: pooling rank needs a classification head, and this model has none; "
            "take a cross-encoder (bge-reranker, Qwen3-Reranker), or set --pooling mean, cls or last",
            param="pooling",
        )
    return chosen


def kind_of(pooling: Pooling | None) -> ModelKind:
    if pooling is None:
        return "text"
    return "rerank" if pooling == "rank" else "embedding"


def is_encoder(header: GgufHeader) -> bool:
    """Whether the model can only embed or rank."""
    return header.architecture in ENCODERS


def can_split(header: GgufHeader, pooling: Pooling) -> bool:
    """Whether a text's vector is that of its last token, and no token looks at those behind it."""
    return pooling in ("last", "rank") and not is_encoder(header) and _is_causal(header)


def _is_causal(header: GgufHeader) -> bool:
    return header.metadata.get(f"{header.architecture}.attention.causal", True) is not False


def _pooling(header: GgufHeader, *, embedding: bool, pooling: str) -> Pooling | None:
    wished = next((name for name in _BY_NUMBER if name == pooling), None)
    if wished is not None:
        return wished
    told = _told(header)
    if told is None and is_encoder(header):
        return "mean"  # what sentence-transformers does where nothing is said
    if told is None and embedding:
        return "last" if _is_causal(header) else "mean"
    return told


def _told(header: GgufHeader) -> Pooling | None:
    """What the GGUF says; nothing is as good as none."""
    number = header.architecture_integer("pooling_type") or 0
    if number >= len(_BY_NUMBER):
        raise refuse(header.path, f"{header.architecture}.pooling_type is {number}; llama.cpp knows 0 to 4")
    return _BY_NUMBER[number]


def _check_can_write(header: GgufHeader, embedding: bool) -> None:
    if embedding:
        raise ConfigError(
            "--embedding and --pooling none exclude each other; leave one of them out", param="pooling"
        )
    if is_encoder(header):
        raise ConfigError(
            f"{header.path}: a {header.architecture} model cannot write text, so --pooling none leaves it nothing "
            "to do; leave the setting out",
            param="pooling",
        )
