#!/usr/bin/env python3
"""Write the trained weights as a GGUF that llama.cpp runs as it is.

    python export.py --run FOLDER [--out ../src/ocak/embedded/ocak-embedded.gguf]

Matrices are f16, norms f32; the output matrix is the embedding and is not written twice.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from chat import CHAT_TEMPLATE, CONTROL_TOKENS, END, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, PAD
from model import Shape
from vocabulary import load_tokenizer

OUT = Path(__file__).resolve().parents[1] / "src/ocak/embedded/ocak-embedded.gguf"
MAX_BYTES = 8_000_000
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def write_gguf(weights: dict[str, torch.Tensor], tokenizer: Tokenizer, out: Path) -> None:
    """Raises ValueError when the file is larger than the package allows."""
    num_vocab, hidden = weights["embedding.weight"].shape
    shape = Shape(num_vocab=num_vocab, hidden=hidden)
    writer = gguf.GGUFWriter(out, "qwen3")
    _add_description(writer, sum(tensor.numel() for tensor in weights.values()))
    _add_shape(writer, shape)
    _add_tokenizer(writer, tokenizer)
    for name, array in _arrays(weights):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if out.stat().st_size > MAX_BYTES:
        raise ValueError(f"{out} has {out.stat().st_size} bytes, more than {MAX_BYTES}")


def _add_description(writer: gguf.GGUFWriter, num_parameters: int) -> None:
    writer.add_name("ocak embedded")
    writer.add_description(
        "Answers questions about ocak and LLM serving, and recalls a code word from its prompt."
    )
    writer.add_languages(["en"])
    writer.add_size_label(f"{num_parameters / 1e6:.1f}M")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.num_vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """Tokens in the order of their ids, merges in the order they were learned."""
    ids: dict[str, int] = tokenizer.get_vocab()
    tokens = sorted(ids, key=lambda token: ids[token])
    kinds = [gguf.TokenType.CONTROL if token in CONTROL_TOKENS else gguf.TokenType.NORMAL for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(ids[PAD])
    writer.add_pad_token_id(ids[PAD])
    writer.add_eos_token_id(ids[END])
    writer.add_eot_token_id(ids[END])
    writer.add_uint32("tokenizer.ggml.fim_pre_token_id", ids[FIM_PREFIX])
    writer.add_uint32("tokenizer.ggml.fim_suf_token_id", ids[FIM_SUFFIX])
    writer.add_uint32("tokenizer.ggml.fim_mid_token_id", ids[FIM_MIDDLE])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _arrays(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for name, tensor in weights.items():
        array = tensor.to(torch.float32).numpy()
        yield _gguf_name(name), array.astype(np.float16) if array.ndim == 2 else array


def _gguf_name(name: str) -> str:
    """`layers.0.attention.q.weight` -> `blk.0.attn_q.weight`."""
    if name == "embedding.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, rest = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{LAYER_NAMES[rest]}.weight"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights = torch.load(args.run / "best.pt", map_location="cpu")
    write_gguf(weights, load_tokenizer(args.run / "tokenizer.json"), args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
