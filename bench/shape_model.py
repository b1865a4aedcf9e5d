"""Write a GGUF with the exact shape of Qwen2.5-0.5B and random weights.

Its speed and memory are the real model's; its text is noise. The vocabulary is
taken from a vocabulary-only GGUF, so that nothing has to be downloaded.

    python -m bench.shape_model VOCAB.gguf OUT.gguf
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CONTEXT, ROPE_BASE, NORM_EPSILON = 32768, 1e6, 1e-6
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Tensor = tuple[str, NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model of the family."""

    layers: int = 24
    hidden: int = 896
    heads: int = 14
    kv_heads: int = 2
    feed_forward: int = 4864


QWEN = Shape()


def write_model(vocab_path: Path, out_path: Path, seed: int = 0) -> None:
    """Write the model: the vocabulary of ``vocab_path``, f16 matrices drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    write(vocab_path, out_path, QWEN, lambda num_vocab: tensors(QWEN, num_vocab, rng))


def write(vocab_path: Path, out_path: Path, shape: Shape, make: Callable[[int], Iterator[Tensor]]) -> None:
    """Write a model of the shape: ``make`` gives its tensors for the size of the vocabulary."""
    vocab = gguf.GGUFReader(vocab_path)
    writer = gguf.GGUFWriter(out_path, "qwen2")
    copy_vocabulary(vocab, writer)
    _write_shape(writer, shape)
    for name, array in make(len(vocab.fields["tokenizer.ggml.tokens"].contents())):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_vocabulary(vocab: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for name, field in vocab.fields.items():
        if not name.startswith("tokenizer."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), field.types[0])
    if "tokenizer.chat_template" not in vocab.fields:
        writer.add_chat_template(CHAT_TEMPLATE)


def _write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    name = "qwen2.5-0.5b shape" if shape == QWEN else f"{shape.layers} layers of {shape.hidden}"
    writer.add_name(f"{name}, random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def tensors(shape: Shape, num_vocab: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield (name, array): matrices f16 ~ N(0, 0.02), norms one, biases f32; the embeddings are tied."""
    ones = np.ones(shape.hidden, np.float32)
    yield "token_embd.weight", _matrix(rng, num_vocab, shape.hidden)
    yield "output_norm.weight", ones
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", ones
        yield block + "ffn_norm.weight", ones
        yield from _attention(shape, block, rng)
        yield block + "ffn_gate.weight", _matrix(rng, shape.feed_forward, shape.hidden)
        yield block + "ffn_up.weight", _matrix(rng, shape.feed_forward, shape.hidden)
        yield block + "ffn_down.weight", _matrix(rng, shape.hidden, shape.feed_forward)


def _attention(shape: Shape, block: str, rng: np.random.Generator) -> Iterator[Tensor]:
    kv_rows = shape.hidden // shape.heads * shape.kv_heads
    for name, rows in (("attn_q", shape.hidden), ("attn_k", kv_rows), ("attn_v", kv_rows)):
        yield f"{block}{name}.weight", _matrix(rng, rows, shape.hidden)
        yield f"{block}{name}.bias", _normal(rng, rows)
    yield block + "attn_output.weight", _matrix(rng, shape.hidden, shape.hidden)


def _matrix(rng: np.random.Generator, *dims: int) -> NDArray[np.float16]:
    return _normal(rng, *dims).astype(np.float16)


def _normal(rng: np.random.Generator, *dims: int) -> NDArray[np.float32]:
    return rng.standard_normal(dims, dtype=np.float32) * np.float32(0.02)


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), Path(sys.argv[2]))
