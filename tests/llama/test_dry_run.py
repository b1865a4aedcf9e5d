"""A dry run on a stub says what one on the file says, and both what a real load takes: buffer for buffer."""

from __future__ import annotations

import gc
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from bench.architectures import NAMES, Size, write
from gguf import GGUFWriter
from tests import models
from tests.embedding_models import write_causal_embedder, write_encoder
from tests.models import TinyModel, write_split_model

from ocak.core.errors import LoadFailed
from ocak.llama import library
from ocak.llama.buffer_log import cache_bytes, listening, pass_bytes
from ocak.llama.context import LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.memory.needs import CPU, Needs
from ocak.memory.stub import make_stub
from ocak.worker import dry_run
from ocak.worker.dry_run import dry_runs
from ocak.worker.loading import load
from ocak.worker.messages import LoadOptions
from ocak.worker.sizes import context_options
from ocak.worker.stopwatch import Stopwatch

SETTINGS: tuple[dict[str, Any], ...] = (
    {"context": 512, "parallel": 1},
    {"context": 2048, "parallel": 4, "flash_attn": "off"},
    {"context": 2048, "parallel": 4, "flash_attn": "on", "kv_type": "q8_0"},
    {"context": 1024, "parallel": 8, "kv_cells": 2048, "batch_tokens": 256},
)


def add_vocabulary(writer: GGUFWriter) -> int:
    models._add_vocabulary(writer, TinyModel())
    return len(models.vocabulary(TinyModel()))


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / f"{request.param}.gguf"
    return write(path, request.param, Size(), add_vocabulary)


def measured(options: LoadOptions) -> Needs:
    with dry_runs() as runs:
        return msgspec.structs.replace(runs.measure(options), process_bytes=0)


def without_stub(options: LoadOptions, monkeypatch: pytest.MonkeyPatch) -> Needs:
    with monkeypatch.context() as patched:
        patched.setattr(dry_run, "_load_stub", lambda *_arguments: None)
        return measured(options)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_stub_the_file_and_a_real_load_have_the_same_buffers(
    model: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LoadOptions(path=str(model), **settings)
    needs = measured(options)
    assert needs == without_stub(options, monkeypatch)
    (cpu,) = needs.devices
    real = LlamaModel(options.path, WeightOptions(mmap=False), lambda _progress: None)
    sizes = context_options(options, real.trained_context)
    with listening() as log:
        LlamaContext(real, sizes).close()
    assert needs.weights_bytes == cpu.weights_bytes == real.weights_bytes
    assert needs.kv_bytes == cpu.kv_bytes == cache_bytes(log.lines)[CPU] > 0
    assert needs.compute_bytes == cpu.compute_bytes == pass_bytes(log.lines)[CPU]
    assert 0 < needs.touched_bytes <= needs.compute_bytes + needs.work_bytes
    real.close()


def test_a_split_model_takes_what_it_takes_as_one_file(tmp_path: Path) -> None:
    whole = models.write_model(tmp_path / "whole.gguf", TinyModel())
    parts = write_split_model(tmp_path / "tiny.gguf")
    assert measured(LoadOptions(path=str(parts[0]))) == measured(LoadOptions(path=str(whole)))


@pytest.mark.parametrize("write_embedder", [write_encoder, write_causal_embedder])
def test_a_model_that_embeds_is_measured_from_a_stub_too(
    write_embedder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LoadOptions(path=str(write_embedder(tmp_path / "model.gguf")))
    needs = measured(options)
    assert needs == without_stub(options, monkeypatch) and needs.compute_bytes > 0


def test_where_llama_cpp_refuses_the_stub_the_file_itself_is_read(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = LoadOptions(path=str(tiny_model))
    expected = measured(options)
    monkeypatch.setattr(dry_run, "make_stub", lambda model: replace(make_stub(model), file_bytes=100))
    assert measured(options) == expected
    assert library.recent_errors() == ""  # a later load's error must not quote the stub's


def test_a_worker_measures_before_it_loads_and_nothing_is_left_behind(tiny_model: Path) -> None:
    options = LoadOptions(path=str(tiny_model), context=256)
    handlers, level = list(library.logger.handlers), library.logger.level
    files = set(Path(tempfile.gettempdir()).glob("*.gguf"))
    with dry_runs() as runs:
        needs = runs.measure(options)
        with pytest.raises(LoadFailed, match="context"):
            runs.measure(msgspec.structs.replace(options, context=10**6))
        assert runs.measure(options) == needs
    assert (list(library.logger.handlers), library.logger.level) == (handlers, level)
    assert set(Path(tempfile.gettempdir()).glob("*.gguf")) == files
    loaded = load(options, lambda _progress: None, Stopwatch())
    assert loaded.info.weights_bytes == needs.weights_bytes
    loaded.close()


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux tells it")
def test_measuring_over_and_over_takes_no_memory(tiny_model: Path) -> None:
    options = LoadOptions(path=str(tiny_model), context=2048)

    def rss_after(times: int) -> int:
        for _ in range(times):
            measured(options)
        gc.collect()
        return int(psutil.Process().memory_info().rss)

    before = rss_after(20)
    assert rss_after(60) - before < 2 * 2**20
