"""Conversations saved to files: they come back for the same model, and for nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ocak
from ocak.core.errors import ContextLengthExceeded, StateFileError
from ocak.worker import state_file
from tests.models import TinyModel, write_model

SIZES = {"context": 512, "parallel": 2, "threads": 1}
GREEDY = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
LONG = [i * 7 % 200 + 1 for i in range(300)]


@pytest.fixture
def saved(tiny_model: Path, tmp_path: Path) -> Path:
    with ocak.load(tiny_model, **SIZES) as model:
        model.generate(LONG, **GREEDY)
        model.save(tmp_path / "talk", LONG)
    return tmp_path / "talk"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[ocak.Model]:
    with ocak.load(tiny_model, **SIZES) as loaded:
        yield loaded


@pytest.mark.parametrize("kv_cells", [0, 600], ids=["split", "unified"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba"])
def test_a_conversation_goes_on_where_it_was_saved(
    tmp_path: Path, architecture: Literal["llama", "gemma2", "mamba"], kv_cells: int
) -> None:
    file = write_model(tmp_path / "model.gguf", TinyModel(architecture=architecture))
    sizes = {**SIZES, "kv_cells": kv_cells}
    with ocak.load(file, **sizes) as first:
        first.generate(LONG, **GREEDY, logit_bias={50: 100})
        conversation = [*LONG, *[50] * 8]
        assert first.save(tmp_path / "talk", conversation) == len(conversation) - 1
    with ocak.load(file, **sizes) as second:
        assert second.restore(tmp_path / "talk") == len(conversation) - 1
        again = second.generate([*conversation, 7, 8, 9], **GREEDY)
        assert again.usage.cached_tokens == len(conversation) - 1
    with ocak.load(file, **sizes, prefix_cache=False) as third:
        assert again.text == third.generate([*conversation, 7, 8, 9], **GREEDY).text
    assert os.stat(tmp_path / "talk").st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".gguf"] == ["talk"]


def test_what_was_saved_in_host_memory_goes_to_a_file_too(tiny_model: Path, tmp_path: Path) -> None:
    with ocak.load(tiny_model, **{**SIZES, "parallel": 1}) as alone:
        alone.generate(LONG, **GREEDY)
        alone.generate([9, *LONG], **GREEDY)
        assert alone.stats.saved_tokens > 0
        assert alone.save(tmp_path / "talk", LONG) == len(LONG)
        assert alone.restore(tmp_path / "talk") == len(LONG)
        assert alone.generate(LONG, **GREEDY).usage.cached_tokens == len(LONG) - 1


def test_what_was_never_computed_cannot_be_saved(model: ocak.Model, tmp_path: Path) -> None:
    with pytest.raises(StateFileError, match="nothing of this conversation"):
        model.save(tmp_path / "talk", [250, 251])
    assert not list(tmp_path.iterdir())


def test_without_a_prefix_cache_there_is_nothing_to_save(tiny_model: Path, saved: Path) -> None:
    with ocak.load(tiny_model, **SIZES, prefix_cache=False) as without:
        for use in (lambda: without.save(saved, LONG), lambda: without.restore(saved)):
            with pytest.raises(StateFileError, match="prefix cache"):
                use()


def test_another_models_file_is_refused(saved: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.gguf", TinyModel(seed=1))
    with ocak.load(other, **SIZES) as loaded, pytest.raises(StateFileError, match="another model file"):
        loaded.restore(saved)


def test_another_type_of_cells_is_refused(tiny_model: Path, saved: Path) -> None:
    with ocak.load(tiny_model, **SIZES, kv_type="f32") as loaded, pytest.raises(StateFileError, match="kv_type"):
        loaded.restore(saved)


def test_other_positions_are_refused(tiny_model: Path, saved: Path) -> None:
    other = ocak.load(tiny_model, **SIZES, rope_freq_base=5000.0)
    with other, pytest.raises(StateFileError, match="another RoPE scaling"):
        other.restore(saved)


def test_the_same_model_under_another_name_is_the_same(tiny_model: Path, saved: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_model.read_bytes())
    with ocak.load(copy, **SIZES) as loaded:
        assert loaded.restore(saved) == len(LONG)


def test_a_model_file_that_changed_after_the_load_saves_nothing(tmp_path: Path) -> None:
    file = write_model(tmp_path / "model.gguf", TinyModel())
    with ocak.load(file, **SIZES) as loaded:
        loaded.generate(LONG, **GREEDY)
        write_model(tmp_path / "new.gguf", TinyModel(seed=1)).replace(file)
        with pytest.raises(StateFileError, match="has changed"):
            loaded.save(tmp_path / "talk", LONG)


def test_another_version_is_refused(model: ocak.Model, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocak.llama.library.VERSION", "0.0.1")
    with pytest.raises(StateFileError, match="version of llama-cpp-python"):
        model.restore(saved)


def test_a_conversation_longer_than_the_context_is_refused(tiny_model: Path, saved: Path) -> None:
    small = {**SIZES, "context": 256}
    with ocak.load(tiny_model, **small) as model, pytest.raises(ContextLengthExceeded, match="300 tokens"):
        model.restore(saved)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damaged_file_reaches_c(model: ocak.Model, saved: Path, data: st.DataObject) -> None:
    whole = saved.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 400))
    damaged = data.draw(st.sampled_from([whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]]))
    broken = saved.with_name("broken")
    broken.write_bytes(damaged)
    broken.chmod(0o600)
    with pytest.raises(StateFileError):
        model.restore(broken)


def test_files_that_others_may_write_and_links_are_refused(model: ocak.Model, saved: Path) -> None:
    saved.chmod(0o622)
    with pytest.raises(StateFileError, match="nobody else may write"):
        model.restore(saved)
    saved.chmod(0o600)
    link = saved.with_name("link")
    link.symlink_to(saved)
    with pytest.raises(StateFileError, match="could not be read"):
        model.restore(link)
    os.mkfifo(saved.with_name("fifo"))
    with pytest.raises(StateFileError, match="must be a file"):
        model.restore(saved.with_name("fifo"))
    with pytest.raises(StateFileError, match="No such file"):
        model.restore(saved.with_name("missing"))


def test_a_disk_that_is_full_is_told_and_leaves_the_old_file(
    model: ocak.Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = saved.read_bytes()
    model.generate(LONG, **GREEDY)
    monkeypatch.setattr(state_file.os, "fsync", fail)
    with pytest.raises(StateFileError, match="No space left on device"):
        model.save(saved, LONG)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["talk"]


def test_a_folder_that_is_not_there_is_told(model: ocak.Model, tmp_path: Path) -> None:
    model.generate(LONG, **GREEDY)
    with pytest.raises(StateFileError, match="No such file"):
        model.save(tmp_path / "nowhere" / "talk", LONG)


def test_running_answers_are_not_disturbed_by_saving_and_restoring(model: ocak.Model, saved: Path) -> None:
    expected = model.generate("the fire", temperature=0, max_tokens=200, ignore_eos=True).text
    stream = model.stream("the fire", temperature=0, max_tokens=200, ignore_eos=True)
    first = next(stream)
    for _ in range(3):
        model.restore(saved)
        model.save(saved, LONG)
    assert first + "".join(stream) == expected
