"""`ocak plan` on real files: what it says is what a load takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from ocak.core.errors import LoadFailed
from ocak.fleet.prober import Prober
from ocak.worker.loading import load
from ocak.worker.messages import LoadOptions
from ocak.worker.stopwatch import Stopwatch
from tests.cli.processes import ocak
from tests.models import TinyModel, write_model


def planned(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    result = ocak("plan", *arguments, "--json")
    assert result.returncode == status, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_plan_names_what_fits_and_exits_with_3_if_what_was_asked_for_does_not(tiny_model: Path) -> None:
    fits = planned(tiny_model, "--parallel", "2")
    assert fits["fits"] is True and fits["asked"]["verdict"] == "very safe"
    assert fits["asked"]["resident_bytes"] <= fits["asked"]["total_bytes"]
    (cpu,) = fits["asked"]["devices"]
    assert (cpu["name"], cpu["weights_bytes"]) == ("CPU", fits["asked"]["weights_bytes"])
    tight = planned(tiny_model, "--parallel", "2", "--memory", "1MB", status=3)
    assert tight["fits"] is False and tight["asked"]["verdict"] == "does not fit"
    assert tight["budget_bytes"] == 1_000_000 and tight["largest_context"] is None


def test_the_table_marks_what_was_asked_for(tiny_model: Path) -> None:
    result = ocak("plan", tiny_model, "--parallel", "3", "--memory", "4GB")
    assert result.returncode == 0, result.stderr
    marked = [line for line in result.stdout.splitlines() if line.startswith(">")]
    assert len(marked) == 1 and "very safe" in marked[0]
    assert "--memory" in result.stdout and "most sequences at context" in result.stdout


@pytest.mark.parametrize("arguments", [("--memory", "much"), ("--context", "100000000")])
def test_what_cannot_be_planned_is_one_line_that_names_the_setting(
    tiny_model: Path, arguments: tuple[str, str]
) -> None:
    result = ocak("plan", tiny_model, *arguments)
    assert result.returncode in (1, 2)
    assert arguments[0].removeprefix("--") in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_dry_run_that_dies_of_a_model_is_an_error_and_no_more(tiny_model: Path) -> None:
    with Prober() as prober:
        prober.measure(LoadOptions(path=str(tiny_model)))
        prober._process.kill()
        with pytest.raises(LoadFailed, match="llama.cpp ended"):
            prober.measure(LoadOptions(path=str(tiny_model)))


def test_what_cannot_be_loaded_is_refused_and_the_next_question_answered(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(tiny_model.read_bytes()[:5000])
    with Prober() as prober:
        with pytest.raises(LoadFailed, match=r"broken\.gguf"):
            prober.measure(LoadOptions(path=str(broken)))
        assert prober.measure(LoadOptions(path=str(tiny_model))).weights_bytes > 0


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba"])
@pytest.mark.parametrize("settings", [{}, {"parallel": 8, "kv_cells": 512, "kv_type": "q8_0"}])
def test_a_dry_run_tells_the_sizes_of_the_real_load(
    architecture: Literal["llama", "gemma2", "mamba"], settings: dict[str, Any], tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.gguf", TinyModel(architecture=architecture))
    options = LoadOptions(path=str(path), context=256, **settings)
    with Prober() as prober:
        needs = prober.measure(options)
        again = prober.measure(options)
    assert needs == again
    loaded = load(options, lambda _progress: None, Stopwatch())
    try:
        assert needs.weights_bytes == loaded.info.weights_bytes
        assert (needs.context, needs.parallel, needs.kv_cells) == (256, loaded.info.parallel, loaded.info.kv_cells)
        if architecture == "llama":
            assert needs.kv_bytes == pytest.approx(loaded.info.kv_bytes, abs=2**14)
        assert needs.compute_bytes > 0 and needs.process_bytes > 20 * 2**20
        assert needs.vocabulary_bytes > 0 and needs.resident_bytes <= needs.total_bytes
    finally:
        loaded.close()
