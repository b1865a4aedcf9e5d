"""Writes tiny GGUF models with random weights that llama.cpp really loads. Knows no test.

About 200 KB, a few milliseconds to write, the same bytes for the same `TinyModel`. The vocabulary is
byte-level, so any text survives tokenising and back; some tokens are parts of characters, as in real models.
`gemma2` has a sliding window in every second layer, `mamba` a recurrent state.
Invariant: control tokens (EOS, EOT, FIM, ...) have a logit of 0 while the others spread around it, so greedy
decoding never ends by itself: it ends where a test says (not so with `gemma2`, whose output is its embedding).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np
from gguf import GGUFWriter

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

CHATML_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_suffix|>",
    "<|fim_middle|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_WORDS: Final = (
    "the",
    "and",
    "er",
    "in",
    "on",
    "re",
    " a",
    " the",
    " and",
    " to",
    " of",
    "ocak",
    "ı",
    "ğ",
    "你",
    "🔥",
)
_PARTIAL: Final = (b"\xf0\x9f", b"\xe4\xbd")  # the beginning of a character: half an emoji, two thirds of 你


CONV_KERNEL: Final = 4
TIME_STEP_RANK: Final = 4


@dataclass(frozen=True, slots=True)
class TinyModel:
    """What to write. `chat_template` None leaves it out; `extra_tokens` become words of the vocabulary."""

    seed: int = 0
    context_length: int = 2048
    chat_template: str | None = CHATML_TEMPLATE
    architecture: Literal["llama", "qwen2", "gemma2", "mamba"] = "llama"
    name: str = "tiny"
    num_layers: int = 2
    embedding_length: int = 64
    num_heads: int = 2
    num_kv_heads: int = 1
    feed_forward_length: int = 96
    add_bos: bool = False
    extra_tokens: tuple[str, ...] = ()
    sliding_window: int = 32  # of gemma2
    state_size: int = 8  # of mamba
    is_quantized: bool = False  # Q4_0, which the CPU repacks
    num_experts: int = 0  # of which two are used; llama alone


def write_tiny_model(
    path: Path,
    *,
    seed: int = 0,
    context_length: int = 2048,
    chat_template: str | None = CHATML_TEMPLATE,
    architecture: Literal["llama", "qwen2"] = "llama",
) -> Path:
    """Write a tiny model to `path` and return it; `write_model` takes all the other choices."""
    return write_model(path, TinyModel(seed, context_length, chat_template, architecture))


def write_model(path: Path, model: TinyModel) -> Path:
    """Write `model` as one file."""
    _write(GGUFWriter(path, model.architecture), model)
    return path


def write_split_model(path: Path, model: TinyModel | None = None, *, num_parts: int = 3) -> tuple[Path, ...]:
    """Write `model` as `num_parts` files, named after `path` (`NAME-00001-of-00003.gguf`), in order."""
    model = model or TinyModel()
    per_part = -(-len(_tensors(model)) // num_parts)
    writer = GGUFWriter(path, model.architecture, split_max_tensors=per_part)
    _write(writer, model)
    stem = path.name.removesuffix(".gguf")
    return tuple(path.with_name(f"{stem}-{n:05d}-of-{num_parts:05d}.gguf") for n in range(1, num_parts + 1))


def write_vocabulary(path: Path, model: TinyModel | None = None) -> Path:
    """Write a file that has everything but weights."""
    model = model or TinyModel()
    writer = GGUFWriter(path, model.architecture)
    _add_metadata(writer, model)
    _finish(writer)
    return path


def token_id(text: str, model: TinyModel | None = None) -> int:
    """The id of a token by its text as shown to people: a control token, a byte's character or a word."""
    return vocabulary(model or TinyModel()).index(_spell(text.encode()) if text not in CONTROL_TOKENS else text)


def vocabulary(model: TinyModel) -> list[str]:
    """Every token as GPT-2 spells it (each byte one printable character), by id."""
    words = [left + right for left, right in _merges(model)]
    return [*_BYTE_TO_CHAR, *words, *CONTROL_TOKENS]


def _write(writer: GGUFWriter, model: TinyModel) -> None:
    _add_metadata(writer, model)
    for name, tensor in _tensors(model).items():
        is_plain = tensor.ndim == 1 or name.endswith(("ssm_a", "ssm_conv1d.weight", "ffn_gate_inp.weight"))
        if model.is_quantized and not is_plain:
            q4 = gguf.GGMLQuantizationType.Q4_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, q4), raw_dtype=q4)
        else:
            writer.add_tensor(name, tensor if is_plain else tensor.astype(np.float16))
    _finish(writer)


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: GGUFWriter, model: TinyModel) -> None:
    writer.add_name(model.name)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.embedding_length)
    writer.add_block_count(model.num_layers)
    writer.add_feed_forward_length(model.feed_forward_length)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_rope_dimension_count(model.embedding_length // model.num_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    if model.architecture == "gemma2":
        writer.add_sliding_window(model.sliding_window)
    if model.num_experts:
        writer.add_expert_count(model.num_experts)
        writer.add_expert_used_count(2)
    if model.architecture == "mamba":
        writer.add_ssm_conv_kernel(CONV_KERNEL)
        writer.add_ssm_inner_size(2 * model.embedding_length)
        writer.add_ssm_state_size(model.state_size)
        writer.add_ssm_time_step_rank(TIME_STEP_RANK)
    _add_vocabulary(writer, model)


def _add_vocabulary(writer: GGUFWriter, model: TinyModel) -> None:
    tokens = vocabulary(model)
    num_normal = len(tokens) - len(CONTROL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * num_normal + [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS))
    writer.add_token_merges([" ".join(merge) for merge in _merges(model)])
    ids = {token: num_normal + index for index, token in enumerate(CONTROL_TOKENS)}
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_eos_token_id(ids["<|endoftext|>"])
    writer.add_eot_token_id(ids["<|im_end|>"])
    writer.add_add_bos_token(model.add_bos)
    writer.add_uint32(gguf.Keys.Tokenizer.FIM_PRE_ID, ids["<|fim_prefix|>"])
    writer.add_uint32(gguf.Keys.Tokenizer.FIM_SUF_ID, ids["<|fim_suffix|>"])
    writer.add_uint32(gguf.Keys.Tokenizer.FIM_MID_ID, ids["<|fim_middle|>"])
    writer.add_uint32(gguf.Keys.Tokenizer.FIM_PAD_ID, ids["<|fim_pad|>"])
    writer.add_uint32(gguf.Keys.Tokenizer.FIM_REP_ID, ids["<|repo_name|>"])
    writer.add_uint32(gguf.Keys.Tokenizer.FIM_SEP_ID, ids["<|file_sep|>"])
    if model.chat_template is not None:
        writer.add_chat_template(model.chat_template)


def _tensors(model: TinyModel) -> dict[str, Array]:
    random = np.random.default_rng(model.seed)
    width, num_tokens = model.embedding_length, len(vocabulary(model))

    def matrix(rows: int, columns: int) -> Array:
        return (random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)).astype(
            np.float32
        )

    tensors = {"token_embd.weight": matrix(num_tokens, width) * np.float32(width**0.5)}
    make = _recurrent_layer if model.architecture == "mamba" else _layer
    for layer in range(model.num_layers):
        tensors |= {f"blk.{layer}.{name}": tensor for name, tensor in make(model, matrix).items()}
    tensors["output_norm.weight"] = np.ones(width, dtype=np.float32)
    if model.architecture != "gemma2":
        tensors["output.weight"] = matrix(num_tokens, width) * np.float32(3)
        tensors["output.weight"][-len(CONTROL_TOKENS) :] = 0
    return tensors


def _recurrent_layer(model: TinyModel, matrix: Callable[[int, int], Array]) -> dict[str, Array]:
    width, inner, state = model.embedding_length, 2 * model.embedding_length, model.state_size
    decay = np.tile(-np.arange(1, state + 1, dtype=np.float32), (inner, 1))
    return {
        "attn_norm.weight": np.ones(width, dtype=np.float32),
        "ssm_in.weight": matrix(2 * inner, width),
        "ssm_conv1d.weight": matrix(inner, CONV_KERNEL),
        "ssm_conv1d.bias": np.zeros(inner, dtype=np.float32),
        "ssm_x.weight": matrix(TIME_STEP_RANK + 2 * state, inner),
        "ssm_dt.weight": matrix(inner, TIME_STEP_RANK),
        "ssm_dt.bias": np.zeros(inner, dtype=np.float32),
        "ssm_a": decay,
        "ssm_d": np.ones(inner, dtype=np.float32),
        "ssm_out.weight": matrix(width, inner),
    }


def _layer(model: TinyModel, matrix: Callable[[int, int], Array]) -> dict[str, Array]:
    width, hidden = model.embedding_length, model.feed_forward_length
    kv_width = width // model.num_heads * model.num_kv_heads
    tensors = {
        "attn_norm.weight": np.ones(width, dtype=np.float32),
        "attn_q.weight": matrix(width, width),
        "attn_k.weight": matrix(kv_width, width),
        "attn_v.weight": matrix(kv_width, width),
        "attn_output.weight": matrix(width, width),
        "ffn_norm.weight": np.ones(width, dtype=np.float32),
        "ffn_gate.weight": matrix(hidden, width),
        "ffn_down.weight": matrix(width, hidden),
        "ffn_up.weight": matrix(hidden, width),
    }
    if model.num_experts:
        tensors["ffn_gate_inp.weight"] = matrix(model.num_experts, width)
        for part in ("gate", "down", "up"):
            shape = tensors.pop(f"ffn_{part}.weight").shape
            tensors[f"ffn_{part}_exps.weight"] = np.stack([matrix(*shape) for _ in range(model.num_experts)])
    if model.architecture == "qwen2":
        tensors |= {
            f"attn_{part}.bias": matrix(1, rows)[0]
            for part, rows in (("q", width), ("k", kv_width), ("v", kv_width))
        }
    if model.architecture == "gemma2":
        tensors |= {f"post_{part}_norm.weight": np.ones(width, dtype=np.float32) for part in ("attention", "ffw")}
    return tensors


def _merges(model: TinyModel) -> list[tuple[str, str]]:
    """The merges that build each word byte by byte, left to right, each result once."""
    merges: dict[str, tuple[str, str]] = {}
    for word in (*_PARTIAL, *(word.encode() for word in (*_WORDS, *model.extra_tokens))):
        spelled = _spell(word)
        for end in range(2, len(spelled) + 1):
            merges.setdefault(spelled[:end], (spelled[: end - 1], spelled[end - 1]))
    return list(merges.values())


def _spell(data: bytes) -> str:
    return "".join(_BYTE_TO_CHAR[byte] for byte in data)


def _byte_to_char() -> tuple[str, ...]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


_BYTE_TO_CHAR: Final = _byte_to_char()
