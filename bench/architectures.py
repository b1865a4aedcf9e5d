"""Writes GGUF models of many architectures and any size that llama.cpp loads; their weights mean nothing."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

Shapes = dict[str, tuple[int, ...]]  # as numpy has them: the length of a row comes last
AddVocabulary = Callable[[GGUFWriter], int]  # returns the number of tokens

CONTEXT = 131072
WINDOW = 512
CONV_KERNEL, STATE, TIME_STEP_RANK = 4, 16, 32
NUM_USED = 2  # of the experts
PATTERN = 6  # every so many layers gemma3 has one without a window, and lfm2 one with attention
ROPE, LATENT = 32, 128  # of deepseek2: the part of a key that is rotated, what keys and values are made of
PLAIN = ("ssm_a", "ssm_d", "ssm_conv1d.weight", "shortconv.conv.weight", "ffn_gate_inp.weight")  # in float32
NAMES = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "deepseek2", "mamba", "lfm2", "qwen3moe",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """The sizes of a model; those that an architecture has no use for are left out."""

    layers: int = 6
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 512
    experts: int = 4

    @property
    def head(self) -> int:
        return self.width // self.heads


def write(path: Path, architecture: str, size: Size, add_vocabulary: AddVocabulary) -> Path:
    """Write a model of one of `NAMES`, matrices in float16."""
    writer = GGUFWriter(path, architecture)
    _add_sizes(writer, size)
    writer.add_head_count(0 if architecture == "mamba" else size.heads)
    _add_more(writer, architecture, size)
    shapes = _shapes(architecture, size, add_vocabulary(writer))
    for name, shape in shapes.items():
        dtype = _dtype(name, shape)
        writer.add_tensor_info(name, shape, dtype, math.prod(shape) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32) * np.float32(0.02)
    for name, shape in shapes.items():
        writer.write_tensor_data(_weights(noise, name, shape))
    writer.close()
    return path


def _dtype(name: str, shape: tuple[int, ...]) -> np.dtype[np.floating]:
    return np.dtype(np.float32 if len(shape) == 1 or name.endswith(PLAIN) else np.float16)


def _weights(noise: NDArray[np.float32], name: str, shape: tuple[int, ...]) -> NDArray[np.floating]:
    """Norms and rope factors are one, decays negative, all else noise."""
    if name.endswith("ssm_a"):
        return np.full(shape, -1, np.float32)
    if len(shape) == 1 and not name.endswith(".bias"):
        return np.ones(shape, np.float32)
    return np.resize(noise.astype(_dtype(name, shape)), shape)


def _add_sizes(writer: GGUFWriter, size: Size) -> None:
    writer.add_name("weights that mean nothing")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(size.width)
    writer.add_block_count(size.layers)
    writer.add_feed_forward_length(size.hidden)
    writer.add_layer_norm_rms_eps(1e-5)


def _add_more(writer: GGUFWriter, architecture: str, size: Size) -> None:
    if architecture == "lfm2":
        writer.add_head_count_kv([size.kv_heads if _is_full(layer) else 0 for layer in range(size.layers)])
        writer.add_shortconv_l_cache(CONV_KERNEL)
    elif architecture not in ("deepseek2", "mamba"):
        writer.add_head_count_kv(size.kv_heads)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(WINDOW)
    if architecture == "gemma3":
        writer.add_sliding_window_pattern([not _is_full(layer) for layer in range(size.layers)])
    if architecture == "phi3":
        writer.add_rope_dimension_count(size.head)
        writer.add_rope_scaling_orig_ctx_len(CONTEXT // 32)
    if architecture == "mamba":
        writer.add_ssm_conv_kernel(CONV_KERNEL)
        writer.add_ssm_inner_size(2 * size.width)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_time_step_rank(TIME_STEP_RANK)
    if architecture in ("qwen3moe", "deepseek2"):
        writer.add_expert_count(size.experts)
        writer.add_expert_used_count(NUM_USED)
        writer.add_expert_feed_forward_length(size.hidden)
    if architecture == "deepseek2":
        _add_latent_attention(writer, size)


def _add_latent_attention(writer: GGUFWriter, size: Size) -> None:
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(ROPE)
    writer.add_q_lora_rank(LATENT)
    writer.add_kv_lora_rank(LATENT)
    writer.add_key_length(LATENT + ROPE)
    writer.add_value_length(LATENT)
    writer.add_key_length_mla(size.head + ROPE)
    writer.add_value_length_mla(size.head)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_shared_count(1)


def _is_full(layer: int) -> bool:
    return layer % PATTERN == PATTERN - 1


def _shapes(architecture: str, size: Size, num_vocab: int) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (num_vocab, size.width)}
    shapes["token_embd_norm.weight" if architecture == "lfm2" else "output_norm.weight"] = (size.width,)
    if architecture not in ("gemma2", "gemma3", "lfm2", "qwen2"):
        shapes["output.weight"] = (num_vocab, size.width)
    if architecture == "phi3":
        shapes |= {f"rope_factors_{length}.weight": (size.head // 2,) for length in ("long", "short")}
    for layer in range(size.layers):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _block(architecture, size, layer)}
    return shapes


def _block(architecture: str, size: Size, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_norm.weight", (size.width,)
    if architecture == "mamba":
        yield from _mamba(size)
        return
    if architecture == "deepseek2":
        yield from _latent_attention(size)
    elif architecture == "lfm2" and not _is_full(layer):
        yield from _short_convolution(size)
    else:
        yield from _attention(architecture, size)
    yield "ffn_norm.weight", (size.width,)
    if architecture in ("gemma2", "gemma3"):
        yield from ((f"post_{part}_norm.weight", (size.width,)) for part in ("attention", "ffw"))
    if architecture == "qwen3moe" or (architecture == "deepseek2" and layer > 0):
        yield from _experts(architecture, size)
    else:
        yield from _feed_forward(architecture, size)


def _attention(architecture: str, size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    rows = {"q": size.width, "k": size.head * size.kv_heads, "v": size.head * size.kv_heads}
    if architecture == "phi3":
        yield "attn_qkv.weight", (sum(rows.values()), size.width)
    else:
        yield from ((f"attn_{part}.weight", (count, size.width)) for part, count in rows.items())
    if architecture == "qwen2":
        yield from ((f"attn_{part}.bias", (count,)) for part, count in rows.items())
    if architecture in ("qwen3", "qwen3moe", "gemma3", "lfm2"):
        yield from ((f"attn_{part}_norm.weight", (size.head,)) for part in "qk")
    yield "attn_output.weight", (size.width, size.width)


def _latent_attention(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attn_q_a_norm.weight", (LATENT,)
    yield "attn_kv_a_norm.weight", (LATENT,)
    yield "attn_q_a.weight", (LATENT, size.width)
    yield "attn_q_b.weight", (size.heads * (size.head + ROPE), LATENT)
    yield "attn_kv_a_mqa.weight", (LATENT + ROPE, size.width)
    yield "attn_k_b.weight", (size.heads, LATENT, size.head)
    yield "attn_v_b.weight", (size.heads, size.head, LATENT)
    yield "attn_output.weight", (size.width, size.heads * size.head)


def _short_convolution(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "shortconv.conv.weight", (size.width, CONV_KERNEL)
    yield "shortconv.in_proj.weight", (3 * size.width, size.width)
    yield "shortconv.out_proj.weight", (size.width, size.width)


def _feed_forward(architecture: str, size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    if architecture != "phi3":
        yield "ffn_gate.weight", (size.hidden, size.width)
    yield "ffn_up.weight", (size.hidden * (2 if architecture == "phi3" else 1), size.width)
    yield "ffn_down.weight", (size.width, size.hidden)


def _experts(architecture: str, size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "ffn_gate_inp.weight", (size.experts, size.width)
    for suffix, shape in (("exps", (size.experts,)), ("shexp", ())):
        if suffix == "exps" or architecture == "deepseek2":
            yield f"ffn_gate_{suffix}.weight", (*shape, size.hidden, size.width)
            yield f"ffn_up_{suffix}.weight", (*shape, size.hidden, size.width)
            yield f"ffn_down_{suffix}.weight", (*shape, size.width, size.hidden)


def _mamba(size: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    inner = 2 * size.width
    yield "ssm_in.weight", (2 * inner, size.width)
    yield "ssm_conv1d.weight", (inner, CONV_KERNEL)
    yield "ssm_conv1d.bias", (inner,)
    yield "ssm_x.weight", (TIME_STEP_RANK + 2 * STATE, inner)
    yield "ssm_dt.weight", (inner, TIME_STEP_RANK)
    yield "ssm_dt.bias", (inner,)
    yield "ssm_a", (inner, STATE)
    yield "ssm_d", (inner,)
    yield "ssm_out.weight", (size.width, inner)
