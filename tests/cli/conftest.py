from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import TinyModel, write_model, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="session")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path | str, ...]:
    """What makes a server or a chat answer for many seconds: a model with a long context."""
    path = tmp_path_factory.mktemp("models") / "talkative.gguf"
    write_model(path, TinyModel(context_length=65536))
    return (path, "--context", "65536", "--parallel", "1")
