"""What tokens take in memory, beside what a process was seen to grow by when it read them."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
from tests.models import TinyModel, vocabulary, write_vocabulary

from ocak.memory.gguf_header import GgufHeader, LargeArray, read_header
from ocak.memory.vocabulary_bytes import vocabulary_bytes

MIB = 2**20
MEASURED = [  # model, tokens, their bytes, merges, their bytes; MiB in llama.cpp, and in the tables for grammars
    ("llama", 32_000, 210_919, 0, 0, 4.95, 22.36),  # Llama 2
    ("llama", 64_000, 316_144, 0, 0, 9.72, 40.90),  # Baichuan
    ("gpt2", 50_257, 356_735, 50_000, 406_304, 16.59, 34.34),  # GPT-2
    ("gpt2", 102_400, 934_635, 99_757, 1_007_683, 30.54, 70.06),  # DeepSeek
    ("gpt2", 128_256, 1_073_445, 280_147, 2_963_589, 52.11, 90.69),  # Llama 3
    ("gpt2", 151_936, 1_372_708, 151_387, 1_520_452, 46.32, 104.71),  # Qwen2
    ("gpt2", 256_000, 2_764_783, 253_333, 3_001_038, 80.59, 176.63),  # Command R
    ("gemma4", 262_144, 2_316_295, 514_906, 5_132_471, 95.98, 194.00),  # Gemma 4
    ("t5", 250_048, 2_581_851, 0, 0, 126.07, 23.82),  # of an embedder
]


def header(model: str, tokens: int, letters: int, merges: int, merge_letters: int) -> GgufHeader:
    """One that names so many strings in arrays too large to be kept."""
    arrays = {"tokenizer.ggml.tokens": (tokens, letters), "tokenizer.ggml.merges": (merges, merge_letters)}
    spans = {key: (100, 100 + 8 + len(key) + 16 + 8 * n + size) for key, (n, size) in arrays.items()}
    metadata = {key: LargeArray("string", n) for key, (n, _) in arrays.items()}
    values = MappingProxyType({**metadata, "tokenizer.ggml.model": model})
    return GgufHeader(Path("toy.gguf"), 3, "toy", 32, 64, 192, values, (), spans)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: f"{row[0]} {row[1]}")
def test_the_estimate_is_near_what_was_measured(row: tuple[str, int, int, int, int, float, float]) -> None:
    one = header(*row[:5])
    assert vocabulary_bytes(one, has_tables=False) == pytest.approx(row[5] * MIB, rel=0.07)
    if row[0] != "t5":
        assert vocabulary_bytes(one, has_tables=True) == pytest.approx((row[5] + row[6]) * MIB, rel=0.05)


def test_a_real_header_tells_how_many_strings_it_has_and_how_long_they_are(tmp_path: Path) -> None:
    read = read_header(write_vocabulary(tmp_path / "vocabulary.gguf"))
    tokens, merges = vocabulary(TinyModel()), read.metadata["tokenizer.ggml.merges"]
    assert isinstance(merges, tuple)
    letters = sum(len(token.encode()) for token in tokens)
    expected = 4_080_000 + 653 * len(tokens) + 24 * letters + 141 * len(merges)
    assert vocabulary_bytes(read, has_tables=True) == expected


def test_a_model_without_tokens_takes_nothing_for_them() -> None:
    bare = GgufHeader(Path("bare.gguf"), 3, "toy", 32, 64, 192, MappingProxyType({}), ())
    assert vocabulary_bytes(bare, has_tables=True) == 0
