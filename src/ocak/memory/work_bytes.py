"""Decides what a CPU's kernels hold beside llama.cpp's buffers: rows that they multiply, copied into another type.

Source: `ggml_graph_plan` (ggml-cpu.c): one buffer, as large as the largest operation of a pass wants it; it is
made when it is first needed, and kept. Without flash attention that is the scores of a long context. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from ocak.memory.estimate import score_bytes
from ocak.memory.gguf_header import GgufHeader
from ocak.memory.gguf_tensors import TensorInfo

COPIED_AS: Final = {"F32": 0.0, "F16": 2.0, "BF16": 2.0}  # bytes of an element, by the type of the matrix
QUANTISED: Final = 292 / 256  # q8_K, the widest that quantised matrices are multiplied with
SCORES_SHARE: Final = 0.5  # scores are float32 and copied as float16
PLACE_BYTES: Final = 8  # of a row in an expert's list
EXPERTS: Final = "_exps.weight"


def matrix_work(header: GgufHeader, tensors: Sequence[TensorInfo], rows: int) -> int:
    """Of a pass of so many rows through the layers' matrices."""
    used = header.metadata.get(f"{header.architecture}.expert_used_count")
    num_used = used if isinstance(used, int) else 1  # or one for each layer: an edge of an estimate
    matrices = (tensor for tensor in tensors if tensor.name.startswith("blk.") and len(tensor.shape) > 1)
    return max((_one_matrix(tensor, rows, num_used) for tensor in matrices), default=0)


def score_work(header: GgufHeader, rows: int, cells: int, kv_type: str) -> int:
    """Of plain attention from so many rows to so many cells."""
    has_attention = f"{header.architecture}.attention.head_count" in header.metadata
    return round(score_bytes(header, rows, cells) * SCORES_SHARE) if has_attention and kv_type == "f16" else 0


def _one_matrix(tensor: TensorInfo, rows: int, used: int) -> int:
    each = COPIED_AS.get(tensor.ggml_type, QUANTISED)
    if not tensor.name.endswith(EXPERTS):
        return round(tensor.shape[0] * math.prod(tensor.shape[2:]) * rows * each)
    inputs = used if "ffn_down" in tensor.name else 1  # each expert has its own, or all read the same
    return round(tensor.shape[0] * inputs * rows * each) + tensor.shape[2] * used * rows * PLACE_BYTES
