"""Knows where the model that ships in the package is. `docs/embedded-model.md` says what it can do."""

from pathlib import Path

_FILE = Path(__file__).with_name("ocak-embedded.gguf")


def embedded_model_path() -> Path:
    """The GGUF of the package; it needs no download."""
    return _FILE
