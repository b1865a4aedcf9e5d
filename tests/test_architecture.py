"""What the layers promise, seen in processes and in the import graph."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cli.processes import environ

FRONT = ("ocak.cli", "ocak.api", "ocak.gateway", "ocak.providers", "ocak.fleet")
SHARED_WITH_WORKERS = {"ocak.worker.messages", "ocak.worker.channel"}
MODULES_OF_SERVE = (
    "import ocak.cli.main, ocak.cli.serve, ocak.cli.run, ocak.cli.local_answers, ocak.cli.remote_answers"
)
HEAVY = ("llama_cpp", "torch", "transformers", "numpy", "pandas", "pydantic", "huggingface_hub", "rich", "aiohttp")
MAX_LINES = 300


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("ocak", include_external_packages=True)


def loaded_modules(statement: str) -> set[str]:
    """The top-level packages in memory after `statement` ran in a fresh interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        env=environ(),
        check=True,
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


def test_the_front_process_loads_no_engine() -> None:
    assert not loaded_modules(MODULES_OF_SERVE) & {"llama_cpp", "llguidance", "torch", "transformers", "numpy"}


def test_the_command_line_starts_with_little() -> None:
    assert not loaded_modules("import ocak.cli.main") & {*HEAVY, "uvicorn", "starlette", "prometheus_client"}
    assert not loaded_modules("import ocak.cli.serve") & set(HEAVY)


def test_the_front_knows_only_the_words_of_a_worker(graph: grimp.ImportGraph) -> None:
    known = {
        imported
        for importer in graph.modules
        if importer.startswith(FRONT)
        for imported in graph.find_modules_directly_imported_by(importer)
        if imported.startswith("ocak.worker")
    }
    assert known <= SHARED_WITH_WORKERS


@pytest.mark.parametrize("library", ["llama_cpp"])
def test_one_package_alone_knows_llama_cpp(graph: grimp.ImportGraph, library: str) -> None:
    importers = graph.find_modules_that_directly_import(library)
    assert importers
    assert all(importer.startswith("ocak.llama.") for importer in importers)


def test_files_stay_short() -> None:
    source = Path(__file__).parents[1] / "src"
    long = {path.name: n for path in source.rglob("*.py") if (n := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long


def test_every_module_says_what_it_is_for() -> None:
    source = Path(__file__).parents[1] / "src"
    silent = [
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if path.name != "__init__.py" and not path.read_text().startswith('"""')
    ]
    assert not silent


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_locks_hold_what_the_project_asks_for(lock: str) -> None:
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + (project["optional-dependencies"]["dev"] if "dev" in lock else [])
    pinned = [Requirement(line) for line in (root / lock).read_text().splitlines()]
    versions: dict[str, list[str]] = {}
    for pin in pinned:
        versions.setdefault(canonicalize_name(pin.name), []).append(str(pin.specifier).removeprefix("=="))
    for requirement in map(Requirement, asked):
        found = versions.get(canonicalize_name(requirement.name), [])
        assert found and all(requirement.specifier.contains(version) for version in found), (
            f"{requirement}: make lock"
        )
