"""What every test may use: tiny real models, written once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight model of 200 KB with a chat template and fill-in-the-middle tokens."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny.gguf")
