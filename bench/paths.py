"""Where the peers, the benchmark model and the results are."""

import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "benchmarks.md"


def peers() -> Path:
    """The folder that ``python -m bench.prepare`` fills."""
    return Path(os.environ.get("OCAK_PEERS", ROOT / ".peers"))


def llama_cpp() -> Path:
    """The llama.cpp sources of the installed llama-cpp-python."""
    return peers() / f"llama_cpp_python-{version('llama-cpp-python')}" / "vendor" / "llama.cpp"


def tool(name: str) -> Path:
    """One of llama.cpp's own programs."""
    return llama_cpp() / "build" / "bin" / name


def lcp_python() -> Path:
    """The interpreter that runs llama-cpp-python's server script."""
    return peers() / "lcp" / "bin" / "python"


def transformers_python() -> Path:
    """The interpreter that has torch and transformers."""
    return peers() / "transformers" / "bin" / "python"


def model() -> Path:
    """Shape of Qwen2.5-0.5B, random weights, Q4_0."""
    return peers() / "models" / "q05-q4_0.gguf"


def cycle_model() -> Path:
    """The same shape with a head of its own; what it says is one long cycle."""
    return peers() / "models" / "cycle-q4_0.gguf"


def draft_model() -> Path:
    """A tenth as large; it says the same in 4 of 5 places."""
    return peers() / "models" / "cycle-draft-q4_0.gguf"


def good_draft() -> Path:
    """As large as the draft; it says the same in 19 of 20 places."""
    return peers() / "models" / "cycle-good-q4_0.gguf"


def wrong_draft() -> Path:
    """As large as the draft, and never of the model's opinion."""
    return peers() / "models" / "cycle-wrong-q4_0.gguf"


def samples() -> Path:
    """The folder of the raw samples, one JSON file a benchmark and run."""
    return peers() / "samples"


def embedded_model() -> Path:
    """The model that ships with ocak."""
    return ROOT / "src" / "ocak" / "embedded" / "ocak-embedded.gguf"
