"""What a model is, from its header and the owner's wish."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import PoolingType
from tests.embedding_models import (
    TinyEncoder,
    write_causal_embedder,
    write_causal_ranker,
    write_cross_encoder,
    write_encoder,
)
from tests.models import write_tiny_model

from ocak.core.embedding import POOLINGS, Pooling
from ocak.core.errors import ConfigError, ModelFileError
from ocak.memory.gguf_header import GgufHeader, read_header
from ocak.memory.model_kind import can_split, kind_of, pooling_of


@pytest.fixture
def encoder(tmp_path: Path) -> GgufHeader:
    return read_header(write_encoder(tmp_path / "bert.gguf"))


@pytest.fixture
def writer(tmp_path: Path) -> GgufHeader:
    return read_header(write_tiny_model(tmp_path / "tiny.gguf"))


def test_a_model_is_what_its_file_says(encoder: GgufHeader, writer: GgufHeader, tmp_path: Path) -> None:
    ranker = read_header(write_cross_encoder(tmp_path / "rank.gguf"))
    causal = read_header(write_causal_embedder(tmp_path / "causal.gguf"))
    poolings = [pooling_of(header) for header in (writer, encoder, causal, ranker)]
    assert poolings == [None, "mean", "last", "rank"]
    assert [kind_of(pooling) for pooling in poolings] == ["text", "embedding", "embedding", "rerank"]


@pytest.mark.parametrize("said", [None, PoolingType.NONE])
def test_an_encoder_that_says_nothing_pools_the_mean(tmp_path: Path, said: int | None) -> None:
    assert pooling_of(read_header(write_encoder(tmp_path / "bert.gguf", TinyEncoder(pooling=said)))) == "mean"


def test_a_writer_embeds_when_asked_to(writer: GgufHeader) -> None:
    assert pooling_of(writer, embedding=True) == "last"
    assert pooling_of(writer, pooling="mean") == "mean"
    assert pooling_of(writer, embedding=True, pooling="cls") == "cls"


def test_an_embedding_model_that_could_write_does_so_when_asked_to(tmp_path: Path) -> None:
    causal = read_header(write_causal_embedder(tmp_path / "causal.gguf"))
    assert pooling_of(causal, pooling="none") is None


def test_the_owner_goes_before_the_file(encoder: GgufHeader) -> None:
    assert pooling_of(encoder, pooling="cls") == "cls"


def test_an_encoder_cannot_write(encoder: GgufHeader) -> None:
    with pytest.raises(ConfigError, match="cannot write text"):
        pooling_of(encoder, pooling="none")


def test_wishes_that_exclude_each_other_are_refused(writer: GgufHeader) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        pooling_of(writer, embedding=True, pooling="none")


def test_ranking_needs_a_head(encoder: GgufHeader, writer: GgufHeader, tmp_path: Path) -> None:
    for header in (encoder, writer):
        with pytest.raises(ConfigError, match="classification head"):
            pooling_of(header, pooling="rank")
    headless = read_header(write_encoder(tmp_path / "lies.gguf", TinyEncoder(pooling=PoolingType.RANK)))
    with pytest.raises(ConfigError, match="classification head"):
        pooling_of(headless)


def test_a_pooling_that_llama_cpp_would_abort_at_is_refused(tmp_path: Path) -> None:
    header = read_header(write_encoder(tmp_path / "bert.gguf", TinyEncoder(pooling=7)))
    with pytest.raises(ModelFileError, match="pooling_type is 7"):
        pooling_of(header)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_text_goes_in_parts_only_where_the_last_token_tells_all(
    pooling: Pooling, encoder: GgufHeader, tmp_path: Path
) -> None:
    causal = read_header(write_causal_ranker(tmp_path / "rank.gguf"))
    assert can_split(causal, pooling) == (pooling in ("last", "rank"))
    assert not can_split(encoder, pooling)
