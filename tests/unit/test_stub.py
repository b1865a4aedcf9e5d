"""A stub has all of a model's header that sizes come from, and no tokens."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from bench.architectures import NAMES, Size, write
from tests.models import TinyModel, vocabulary, write_model, write_split_model

from ocak.core.errors import ModelFileError
from ocak.memory.gguf_header import GgufHeader, read_header, read_model
from ocak.memory.stub import make_stub

ALL_TOKENS = 5000  # more than a header's reader keeps of an array


def stub_of(path: Path) -> GgufHeader:
    """The header of the stub of the model at `path`, as it is read from a file."""
    stub = make_stub(read_model(path))
    sparse = path.with_name("stub.gguf")
    with sparse.open("wb") as file:
        file.write(stub.header)
        file.truncate(stub.file_bytes)
    return read_header(sparse)


def names_shapes_types(header: GgufHeader) -> list[tuple[object, ...]]:
    return [(tensor.name, tensor.shape, tensor.ggml_type) for tensor in header.tensors]


def add_tokens(writer: gguf.GGUFWriter) -> int:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{n}" for n in range(ALL_TOKENS)])
    writer.add_token_types([gguf.TokenType.NORMAL] * ALL_TOKENS)
    writer.add_uint32("tokenizer.ggml.token_type_count", 2)
    writer.add_array("toy.long", list(range(ALL_TOKENS)))
    return ALL_TOKENS


@pytest.mark.parametrize("architecture", NAMES)
def test_a_stub_has_the_same_sizes_and_tensors_without_the_tokens(architecture: str, tmp_path: Path) -> None:
    whole = read_header(write(tmp_path / "model.gguf", architecture, Size(), add_tokens))
    stub = stub_of(whole.path)
    assert names_shapes_types(stub) == names_shapes_types(whole)
    kept = {key: value for key, value in whole.metadata.items() if not key.startswith("tokenizer.")}
    assert stub.metadata == kept | {
        "tokenizer.ggml.token_type_count": 2,  # bert's tensors have it as a dimension
        "tokenizer.ggml.model": "none",
        f"{architecture}.vocab_size": ALL_TOKENS,
    }


def test_a_long_array_is_carried_byte_for_byte(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", "llama", Size(), add_tokens)
    start, end = read_header(path).spans["toy.long"]
    assert end - start > 4 * ALL_TOKENS
    assert path.read_bytes()[start:end] in make_stub(read_model(path)).header


def test_a_split_model_has_one_stub(tmp_path: Path) -> None:
    whole = read_header(write_model(tmp_path / "whole.gguf", TinyModel()))
    parts = write_split_model(tmp_path / "tiny.gguf")
    stub = stub_of(parts[-1])
    assert sorted(names_shapes_types(stub)) == sorted(names_shapes_types(whole))
    assert not [key for key in stub.metadata if key.startswith("split.")]
    assert stub.metadata["llama.vocab_size"] == len(vocabulary(TinyModel()))


def test_a_stub_takes_no_room(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "llama", Size(), add_tokens)
    stub_of(tmp_path / "model.gguf")
    written = (tmp_path / "stub.gguf").stat()
    assert written.st_size > 2**22 and written.st_blocks * 512 < 2**18


def test_a_model_whose_tokens_cannot_be_counted_has_none(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tensor("blk.0.w", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"token_embd\.weight"):
        make_stub(read_model(tmp_path / "odd.gguf"))
