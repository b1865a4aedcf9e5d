"""Damaged headers by the thousand: a result or one clear line, and soon; and the finds of a million."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from bench.header_sources import write_files
from bench.headers import Examiner, Tally
from tests.header_bytes import ARRAY, STRING, U32, entry, file_bytes, tensor, text

from ocak.core.errors import ModelFileError
from ocak.memory.estimate import KvSettings, estimate, kv_bytes
from ocak.memory.gguf_header import GgufModel, read_header

NUM_MUTANTS = 3000


@pytest.fixture(scope="module")
def examiner(tmp_path_factory: pytest.TempPathFactory) -> Examiner:
    return Examiner(write_files(tmp_path_factory.mktemp("sources"), large_vocabulary=1000))


def test_a_damaged_header_has_a_result_or_is_refused_in_one_clear_line(examiner: Examiner) -> None:
    tally = Tally()
    for seed in range(NUM_MUTANTS):
        examiner.examine(seed, tally)
    assert tally.crashes == []
    assert tally.slowest[0] < 1
    reached = {use: count / NUM_MUTANTS for use, count in tally.num_with.items()}
    assert 0.05 < reached["read"] < 0.5, "most damage is to be refused, and some is to come through"
    assert min(reached[use] for use in ("kind", "model", "estimate", "plan", "base", "adapter")) > 0


def test_a_mutant_is_the_same_every_time(examiner: Examiner) -> None:
    said = [[examiner.examine(seed, Tally()) for seed in range(50)] for _ in range(2)]
    assert said[0] == said[1]


def header_file(folder: Path, *entries: bytes, architecture: str = "llama") -> Path:
    path = folder / "made.gguf"
    first = entry("general.architecture", STRING, text(architecture))
    path.write_bytes(file_bytes((first, *entries), tensors=(tensor(),), data=b"x" * 32))
    return path


def number(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


FORGED = "\n\x1b[2Jocak: all is well\u202e"


@pytest.mark.parametrize(
    "entries",
    [
        (entry(FORGED, 99, b""),),
        (entry("general.alignment", STRING, text(FORGED)),),
        (entry("llama.block_count", STRING, text(FORGED * 1000)),),
    ],
    ids=["key", "alignment", "value"],
)
def test_what_is_quoted_from_a_file_is_part_of_one_short_line(tmp_path: Path, entries: tuple[bytes, ...]) -> None:
    path = header_file(tmp_path, *entries)
    with pytest.raises(ModelFileError) as caught:
        _ = read_header(path).block_count
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500 + len(str(path))


@pytest.mark.parametrize("architecture", ["x" * 65, "x" * (8 << 20), "llama\n", "\x1b[2J"])
def test_an_architecture_that_is_no_name_is_refused(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(ModelFileError, match=r"general.architecture is .* no name of at most 64 characters"):
        read_header(header_file(tmp_path, architecture=architecture))


def test_a_long_architecture_does_not_make_every_key_costly(tmp_path: Path) -> None:
    keys = tuple(number(f"k{n}", n) for n in range(5000))
    path = header_file(tmp_path, *keys, architecture="x" * (1 << 20))
    start = time.process_time()
    with pytest.raises(ModelFileError):
        header = read_header(path)
        estimate(GgufModel((header,)), KvSettings(1))
    assert time.process_time() - start < 1


def test_a_cache_beyond_all_memory_is_refused_instead_of_told(tmp_path: Path) -> None:
    keys = ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
    sizes = (512, 1 << 24, 1 << 24, 1 << 24)
    path = header_file(tmp_path, *(number(f"llama.{key}", size) for key, size in zip(keys, sizes, strict=True)))
    with pytest.raises(ModelFileError, match="1024 KV cells of this model would take"):
        kv_bytes(read_header(path), KvSettings(1024))


def test_an_array_of_long_texts_is_quoted_in_part(tmp_path: Path) -> None:
    words = struct.pack("<IQ", STRING, 250) + text("ğ" * 20_000) * 250
    path = header_file(tmp_path, entry("llama.block_count", ARRAY, words))
    with pytest.raises(ModelFileError, match="block_count is .*must be a whole number") as caught:
        _ = read_header(path).block_count
    assert len(caught.value.message) < 500 + len(str(path))
