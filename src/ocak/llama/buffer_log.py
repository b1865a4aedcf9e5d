"""Reads out of llama.cpp's log how large its buffers are and which device each is on.

A dry run allocates neither weights nor cells, and says a size of 0 for the buffers of both. So the cells' come
from the sum that each cache tells, in equal parts to the layers that it names, and the weights' from the header's
tensors by the layers they belong to. Sizes are as exact as the log: 0.01 MiB a line.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ocak.llama import library
from ocak.memory.gguf_tensors import TensorInfo
from ocak.memory.needs import CPU, DeviceBytes

MIB = 2**20
BUFFER = re.compile(r": +(\S+) +(KV|RS|compute|output|model) buffer size = +([\d.]+) MiB")
CACHE_LAYER = re.compile(r"^llama_kv_cache: layer +\d+: dev = (\S+)")
CACHE = re.compile(r"^llama_kv_cache: size = +([\d.]+) MiB")
LAYER = re.compile(r"^load_tensors: layer +(\d+) assigned to device (\S+?),")
OVERRIDE = re.compile(r"^tensor (\S+) \(.*\) buffer type overridden to (\S+)")
BLOCK = re.compile(r"^blk\.(\d+)\.")
NO_FLASH_ATTENTION = "Flash Attention not supported, set to disabled"
HOST = ("CPU", "AMX", "BLAS")  # whose buffers are plain memory
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"

Bytes = Counter[str]  # by device


class BufferLog(logging.Handler):
    """What llama.cpp says in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._thread = threading.get_ident()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.lines.append(record.getMessage())


@contextmanager
def listening() -> Iterator[BufferLog]:
    """Hear all that llama.cpp says in this thread, and keep it from everybody else, until the block ends."""
    log, logger = BufferLog(), library.logger
    level, propagates = logger.level, logger.propagate
    logger.addHandler(log)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield log
    finally:
        logger.removeHandler(log)
        logger.setLevel(level)
        logger.propagate = propagates


def cache_bytes(lines: Sequence[str]) -> Bytes:
    """Cells and recurrent states, of a real context or a dry one."""
    allocated = buffer_bytes(lines, ("KV",))
    cells = allocated if allocated.total() else _dry_cell_bytes(lines)
    return cells + buffer_bytes(lines, ("RS",))  # which even a dry run allocates


def pass_bytes(lines: Sequence[str]) -> Bytes:
    """What is reserved for a pass and for its logits."""
    return buffer_bytes(lines, ("compute", "output"))


def buffer_bytes(lines: Iterable[str], kinds: Sequence[str]) -> Bytes:
    """The buffers of these kinds: KV, RS, compute, output, model."""
    found = Bytes()
    for line in lines:
        if (match := BUFFER.search(line)) and match[2] in kinds:
            found[device_of(match[1])] += _bytes(match[3])
    return found


def refuses_flash_attention(lines: Iterable[str]) -> bool:
    """Whether it was left to llama.cpp, and its kernels do not know it for this model."""
    return any(NO_FLASH_ATTENTION in line for line in lines)


def weight_bytes(lines: Iterable[str], tensors: Sequence[TensorInfo]) -> Bytes:
    """Where a dry model's tensors would be: an output that is the embedding is there twice if a GPU has it."""
    layers: dict[int, str] = {}
    overridden: dict[str, str] = {}
    for line in lines:
        if match := LAYER.match(line):
            layers[int(match[1])] = device_of(match[2])
        elif match := OVERRIDE.match(line):
            overridden[match[1]] = device_of(match[2])
    last = layers[max(layers)] if layers else CPU
    found = Bytes()
    for tensor in tensors:
        found[overridden.get(tensor.name) or _device(tensor.name, layers, last)] += tensor.num_bytes
    sizes = {tensor.name: tensor.num_bytes for tensor in tensors}
    if last != CPU and OUTPUT not in sizes:
        found[last] += sizes.get(EMBEDDING, 0)
    return found


def by_device(weights: Bytes, cache: Bytes, passes: Bytes) -> tuple[DeviceBytes, ...]:
    """All three for each device, the CPU first."""
    names = sorted({CPU, *weights, *cache, *passes}, key=lambda name: (name != CPU, name))
    return tuple(
        DeviceBytes(name=name, weights_bytes=weights[name], kv_bytes=cache[name], compute_bytes=passes[name])
        for name in names
    )


def device_of(buffer: str) -> str:
    """The device of a buffer by its name: `CUDA0`; `CUDA_Host`, `CPU_Mapped` and `CPU_REPACK` are host memory."""
    base, _, kind = buffer.partition("_")
    return CPU if base in HOST or kind == "Host" else base


def _dry_cell_bytes(lines: Iterable[str]) -> Bytes:
    found, layers = Bytes(), Bytes()
    for line in lines:
        if match := CACHE_LAYER.match(line):
            layers[match[1]] += 1
        elif match := CACHE.match(line):
            found.update(_parts(layers, _bytes(match[1])))
            layers.clear()
    return found


def _device(tensor: str, layers: dict[int, str], last: str) -> str:
    if match := BLOCK.match(tensor):
        return layers.get(int(match[1]), CPU)
    return last if tensor.startswith(("output", "cls")) else CPU


def _parts(layers: Bytes, num_bytes: int) -> Bytes:
    """As many bytes, in equal parts to the layers; no byte is lost."""
    if not layers:
        return Bytes({CPU: num_bytes})
    total, found = layers.total(), Bytes()
    for name, count in layers.items():
        found[device_of(name)] += num_bytes * count // total
    found[device_of(next(iter(layers)))] += num_bytes - found.total()
    return found


def _bytes(mebibytes: str) -> int:
    return round(float(mebibytes) * MIB)
