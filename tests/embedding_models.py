"""Writes tiny models that embed or rank, with random weights that llama.cpp really loads. Knows no test.

`bert` reads both ways and keeps no KV cache; `qwen2` and `qwen3` read left to right, as language models do.
Their weights are float32, so that rounding hides no mistake.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, digits

import gguf
import numpy as np
from gguf import GGUFWriter, PoolingType

from tests import models
from tests.models import Array, TinyModel

WIDTH, HEADS, HIDDEN, LAYERS = 64, 2, 96, 2
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLS, SEP = MARKS.index("[CLS]"), MARKS.index("[SEP]")


@dataclass(frozen=True, slots=True)
class TinyEncoder:
    """A bert; `pooling` None leaves the key out; one that `is_broken` makes NaN of everything."""

    seed: int = 0
    context_length: int = 512
    pooling: int | None = PoolingType.MEAN
    has_head: bool = False
    is_broken: bool = False


def write_encoder(path: Path, model: TinyEncoder | None = None) -> Path:
    model = model or TinyEncoder()
    writer = GGUFWriter(path, "bert")
    writer.add_name("tiny bert")
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_causal_attention(False)
    if model.pooling is not None:
        writer.add_uint32("bert.pooling_type", model.pooling)
    _add_word_pieces(writer)
    _add_tensors(writer, _encoder_tensors(model))
    models._finish(writer)
    return path


def write_cross_encoder(path: Path, **changes: int) -> Path:
    """A bert that ranks."""
    return write_encoder(path, TinyEncoder(pooling=PoolingType.RANK, has_head=True, **changes))


def write_causal_embedder(path: Path, *, pooling: int = PoolingType.LAST, seed: int = 0) -> Path:
    """A qwen2 whose last token's state is the text's vector, as Qwen3-Embedding's is."""
    writer = GGUFWriter(path, "qwen2")
    writer.add_uint32("qwen2.pooling_type", pooling)
    model = TinyModel(seed=seed, architecture="qwen2")
    models._add_metadata(writer, model)
    _add_tensors(writer, models._tensors(model))
    models._finish(writer)
    return path


def write_causal_ranker(path: Path, template: str | None = None) -> Path:
    """A qwen3 with a head of two classes, as Qwen3-Reranker: the first one's probability is the score."""
    model = TinyModel(architecture="qwen2")
    writer = GGUFWriter(path, "qwen3")
    writer.add_uint32("qwen3.pooling_type", PoolingType.RANK)
    writer.add_array("qwen3.classifier.output_labels", ["yes", "no"])
    if template is not None:
        writer.add_string("tokenizer.chat_template.rerank", template)
    models._add_metadata(writer, model)
    tensors = {name: tensor for name, tensor in models._tensors(model).items() if not name.endswith(".bias")}
    head_width = model.embedding_length // model.num_heads
    for layer in range(model.num_layers):
        for part in ("q", "k"):
            tensors[f"blk.{layer}.attn_{part}_norm.weight"] = np.ones(head_width, np.float32)
    tensors["cls.output.weight"] = np.random.default_rng(1).standard_normal((2, WIDTH), dtype=np.float32) / 8
    _add_tensors(writer, tensors)
    models._finish(writer)
    return path


def pieces() -> list[str]:
    """Every word piece by id: letters alone, at a word's beginning (`▁`) and within it."""
    letters = ascii_lowercase + digits
    return [*MARKS, *(f"▁{letter}" for letter in letters), *letters, "▁?", "▁.", "▁ocak", "▁fire"]


def _add_word_pieces(writer: GGUFWriter) -> None:
    tokens = pieces()
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    controls = [gguf.TokenType.CONTROL] * len(MARKS)
    writer.add_token_types([*controls, *[gguf.TokenType.NORMAL] * (len(tokens) - len(MARKS))])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_mask_token_id(4)


def _add_tensors(writer: GGUFWriter, tensors: dict[str, Array]) -> None:
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)


def _encoder_tensors(model: TinyEncoder) -> dict[str, Array]:
    random = np.random.default_rng(model.seed)

    def values(*shape: int) -> Array:
        return random.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)

    def norm(name: str) -> dict[str, Array]:
        return {f"{name}.weight": np.ones(WIDTH, np.float32), f"{name}.bias": values(WIDTH)}

    def linear(name: str, rows: int, columns: int) -> dict[str, Array]:
        return {f"{name}.weight": values(rows, columns), f"{name}.bias": values(rows)}

    tensors = {
        "token_embd.weight": values(len(pieces()), WIDTH) * np.float32(WIDTH**0.5),
        "token_types.weight": values(2, WIDTH),
        "position_embd.weight": values(model.context_length, WIDTH) * np.float32(4),
        **norm("token_embd_norm"),
    }
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensors |= linear(f"{block}.{part}", WIDTH, WIDTH)
        tensors |= linear(f"{block}.ffn_up", HIDDEN, WIDTH) | linear(f"{block}.ffn_down", WIDTH, HIDDEN)
        tensors |= norm(f"{block}.attn_output_norm") | norm(f"{block}.layer_output_norm")
    if model.has_head:
        tensors |= linear("cls", WIDTH, WIDTH) | linear("cls.output", 1, WIDTH)
        tensors["cls.output.weight"] *= np.float32(4)  # so that scores differ
    if model.is_broken:
        tensors["token_embd_norm.bias"][:] = np.nan
    return tensors
