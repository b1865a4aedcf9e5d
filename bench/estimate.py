"""What a load is said to take, from its header, beside what it takes: ten architectures, twelve settings each.

The buffers of a dry run are compared with the log of a real load, the resident total with a worker's after each of
its sequences has read a prompt of one batch and answered. Weights are read, not mapped, so that all are resident;
nothing is guessed, for guesses have more logits than that, whenever they come.
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gguf
import msgspec

from bench import architectures, lone_worker, paths, prepare
from bench.architectures import Size
from bench.report import Report, Row, say
from bench.shape_model import copy_vocabulary
from ocak.fleet.prober import Prober
from ocak.llama import library
from ocak.llama.buffer_log import cache_bytes, listening, pass_bytes
from ocak.llama.context import LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.memory.gguf_header import read_header
from ocak.memory.needs import Needs
from ocak.worker.attention import flash_attention
from ocak.worker.messages import LoadOptions
from ocak.worker.sizes import context_options

MIB = 2**20
LARGE = 512 * MIB  # below, errors are judged in bytes
SMALL_ERROR = 8 * MIB
WIDE, NARROW = Size(6, 1280, 20, 4, 1536), Size(6, 768, 12, 4, 1536)
SIZES = {"qwen2": WIDE, "gemma2": NARROW, "gemma3": NARROW, "lfm2": WIDE, "mamba": Size(24, 1280, 20, 4, 1536)}
SIZES |= {"phi3": Size(12, 1536, 24, 8, 3072)}
DEFAULT_SIZE = Size(6, 1024, 16, 4, 1536)
VOCABULARIES = {
    "gemma2": "gemma-4",
    "gemma3": "gemma-4",
    "llama": "llama-bpe",
    "phi3": "phi-3",
    "mamba": "gpt-neox",
}
VOCABULARIES |= {"deepseek2": "deepseek-llm"}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"context": 512, "parallel": 1},
    {"context": 2048, "parallel": 1},
    {"context": 2048, "parallel": 4},
    {"context": 4096, "parallel": 2, "flash_attn": "on"},
    {"context": 4096, "parallel": 2, "flash_attn": "off"},
    {"context": 8192, "parallel": 4},
    {"context": 32768, "parallel": 1, "flash_attn": "off"},
    {"context": 32768, "parallel": 1, "flash_attn": "on"},
    {"context": 2048, "parallel": 8, "kv_cells": 4096},
    {"context": 2048, "parallel": 4, "kv_type": "q8_0", "flash_attn": "on"},
    {"context": 4096, "parallel": 1, "kv_type": "q4_0", "flash_attn": "on"},
    {"context": 2048, "parallel": 2, "batch_tokens": 256},
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One load: what was planned, what was taken, and how long the plan took."""

    architecture: str
    settings: dict[str, Any]
    planned_bytes: int
    resident_bytes: int
    has_equal_buffers: bool
    seconds: float
    is_first: bool  # of its model: the header was read
    needs: Needs

    @property
    def error(self) -> float:
        return self.planned_bytes / self.resident_bytes - 1


def measure(short: bool = False) -> Report:
    """One architecture after another; its file is removed before the next one's is written."""
    prepare.unpack_sources()
    library.initialise()
    cold: list[float] = []
    samples: list[Sample] = []
    with Prober() as prober, tempfile.TemporaryDirectory(dir=paths.peers()) as folder:
        for name in architectures.NAMES:
            path = _write(Path(folder), name)
            cold.append(_cold_seconds(path))
            samples += _samples(name, path, prober, SETTINGS[:: 4 if short else 1])
            path.unlink()
    return _report(samples, cold)


def _write(folder: Path, name: str) -> Path:
    vocabulary = paths.llama_cpp() / "models" / f"ggml-vocab-{VOCABULARIES.get(name, 'qwen2')}.gguf"
    source = gguf.GGUFReader(vocabulary)

    def add_vocabulary(writer: gguf.GGUFWriter) -> int:
        copy_vocabulary(source, writer)
        return len(source.fields["tokenizer.ggml.tokens"].data)

    path = architectures.write(folder / f"{name}.gguf", name, SIZES.get(name, DEFAULT_SIZE), add_vocabulary)
    say(
        f"{name}: {path.stat().st_size / MIB:.0f} MiB, vocabulary of {vocabulary.stem.removeprefix('ggml-vocab-')}"
    )
    return path


def _cold_seconds(path: Path) -> float:
    started = time.perf_counter()
    with Prober() as prober:
        prober.measure(LoadOptions(path=str(path), context=4096))
        return time.perf_counter() - started


def _samples(name: str, path: Path, prober: Prober, all_settings: tuple[dict[str, Any], ...]) -> Iterator[Sample]:
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    try:
        for number, settings in enumerate(all_settings):
            options = LoadOptions(path=str(path), mmap=False, speculation="off", **settings)
            started = time.perf_counter()
            needs = prober.measure(options)
            seconds = time.perf_counter() - started
            prompt_tokens = min(options.batch_tokens, options.context - 64)
            taken = lone_worker.resident_bytes(options, needs.parallel, prompt_tokens)
            equal = _buffers(model, path, options) == (needs.kv_bytes, needs.compute_bytes)
            sample = Sample(name, settings, needs.resident_bytes, taken, equal, seconds, number == 0, needs)
            say(f"{name} {settings}: {taken / MIB:.0f} MiB, planned {sample.error:+.2%}, {seconds * 1e3:.0f} ms")
            yield sample
    finally:
        model.close()


def _buffers(model: LlamaModel, path: Path, options: LoadOptions) -> tuple[int, int]:
    """What a real context keeps, and what it reserves for passes, as its log says."""
    sizes = context_options(options, model.trained_context)
    sizes = replace(sizes, flash_attn=flash_attention(sizes, read_header(path), is_on_cpu=True))
    with listening() as log:
        LlamaContext(model, sizes).close()
    return cache_bytes(log.lines).total(), pass_bytes(log.lines).total()


def _report(samples: list[Sample], cold: list[float]) -> Report:
    equal = sum(sample.has_equal_buffers for sample in samples)
    first = [sample.seconds for sample in samples if sample.is_first]
    again = [sample.seconds for sample in samples if not sample.is_first]
    rows = [
        Row("buffers: dry run and load", "identical", f"{equal} of {len(samples)}", equal == len(samples)),
        *_large([sample.error for sample in samples if sample.resident_bytes >= LARGE]),
        *_small([s.planned_bytes - s.resident_bytes for s in samples if s.resident_bytes < LARGE]),
        Row("a model's first estimate, from its header", "≤ 150 ms", _ms(first), max(first) <= 0.15),
        Row("one with other settings", "≤ 150 ms", _ms(again), max(again) <= 0.15),
        Row("the first, with the start of the process that makes it", "≤ 600 ms", _ms(cold), max(cold) <= 0.6),
    ]
    return Report("estimate", "Estimates of memory beside real loads", rows, _notes(samples), _raw(samples, cold))


def _large(errors: list[float]) -> list[Row]:
    if not errors:
        return []
    p95, most, least = _p95([abs(error) for error in errors]), max(map(abs, errors)), min(errors)
    return [
        Row(f"resident, {len(errors)} loads ≥ 512 MiB: p95 of the error", "≤ 1 %", f"{p95:.2%}", p95 <= 0.01),
        Row("the largest error of these", "≤ 2 %", f"{most:.2%}", most <= 0.02),
        Row("the largest underestimate", "≤ 1 %", f"{max(0.0, -least):.2%}", least >= -0.01),
    ]


def _small(errors: list[int]) -> list[Row]:
    if not errors:
        return []
    most = max(map(abs, errors))
    what = f"resident, {len(errors)} smaller loads: largest error"
    return [Row(what, "≤ 8 MiB", f"{most / MIB:.1f} MiB", most <= SMALL_ERROR)]


def _notes(samples: list[Sample]) -> list[str]:
    by_name = {name: [s.error for s in samples if s.architecture == name] for name in architectures.NAMES}
    spread = "; ".join(f"{name} {min(errors):+.1%} to {max(errors):+.1%}" for name, errors in by_name.items())
    return [
        f"planned beside resident, by architecture: {spread}",
        "reserved beside resident (what a budget holds and the first answers leave untouched): median "
        f"{median(s.needs.total_bytes / s.resident_bytes - 1 for s in samples):+.1%}, most "
        f"{max(s.needs.total_bytes / s.resident_bytes - 1 for s in samples):+.0%}",
        "random weights in f16, vocabularies of llama.cpp's repository; weights read, not mapped; nothing guessed",
    ]


def _raw(samples: list[Sample], cold: list[float]) -> object:
    loads = [asdict(replace(sample, needs=msgspec.to_builtins(sample.needs))) for sample in samples]
    return {"cold_s": cold, "loads": loads}


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _ms(seconds: list[float]) -> str:
    return f"{median(seconds) * 1e3:.0f} ms (to {max(seconds) * 1e3:.0f})"
