"""Build the peers and the benchmark model, once: what exists already is kept.

    python -m bench.prepare

Everything lands in the folder ``OCAK_PEERS`` (default ``.peers``): the sources that
the installed llama-cpp-python was built from, llama.cpp's own tools built from them
(so that both sides run the same kernels), and a model of the shape of Qwen2.5-0.5B
with random weights, quantised to Q4_0. Needs cmake, a C++ compiler and about ten
minutes on two cores.
"""

import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bench import paths
from bench.cycle_model import DRAFT, write_cycle
from bench.report import say
from bench.shape_model import QWEN, write_model

TOOLS = ("llama-server", "llama-bench", "llama-batched-bench", "llama-quantize")
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)


def prepare() -> None:
    """Make sure the peers and the model exist."""
    paths.peers().mkdir(parents=True, exist_ok=True)
    unpack_sources()
    _build_tools()
    _make_quantised(paths.model(), write_model)
    say(f"peers and model are ready in {paths.peers()}")


def unpack_sources() -> None:
    """Have llama.cpp's sources, and the vocabularies in them."""
    if paths.llama_cpp().is_dir():
        return
    wanted = f"llama-cpp-python=={version('llama-cpp-python')}"
    say(f"fetching the sources of {wanted}")
    folder = paths.peers() / "sdist"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:")
    _run(*pip, "--dest", str(folder), wanted)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(paths.peers(), filter="data")


def _build_tools() -> None:
    if all(paths.tool(name).is_file() for name in TOOLS):
        return
    say("building llama.cpp's tools (about ten minutes on two cores)")
    source, build = str(paths.llama_cpp()), str(paths.llama_cpp() / "build")
    _run("cmake", "-S", source, "-B", build, *CMAKE_OPTIONS)
    _run("nice", "-n", "5", "cmake", "--build", build, "-j", "2", "--target", *TOOLS)


def prepare_lcp() -> None:
    """Make the environment of llama-cpp-python's server script."""
    needed = ("fastapi", "jinja2", "openai", "safetensors", "uvicorn", "websockets")
    _make_environment(paths.lcp_python(), f"llama-cpp-python=={version('llama-cpp-python')}", *needed)


def prepare_transformers() -> None:
    """Make the environment of transformers on CPU torch."""
    _make_environment(paths.transformers_python(), "torch==2.13.0", "transformers")


def _make_environment(python: Path, *packages: str) -> None:
    if (python.parent / "ready").is_file():
        return
    say(f"installing {', '.join(packages)}")
    _run(sys.executable, "-m", "venv", str(python.parent.parent))
    _run(str(python), "-m", "pip", "install", "--quiet", *packages)
    (python.parent / "ready").touch()


def prepare_cycles() -> None:
    """Make the model whose text is one long cycle, and the drafts that know it and do not."""
    _make_quantised(paths.cycle_model(), lambda vocab, path: write_cycle(vocab, path, QWEN, agreement=1.0))
    _make_quantised(paths.draft_model(), lambda vocab, path: write_cycle(vocab, path, DRAFT, agreement=0.8))
    _make_quantised(paths.good_draft(), lambda vocab, path: write_cycle(vocab, path, DRAFT, agreement=0.95))
    _make_quantised(paths.wrong_draft(), lambda vocab, path: write_cycle(vocab, path, DRAFT, agreement=0.0))


def _make_quantised(model: Path, write: Callable[[Path, Path], None]) -> None:
    if model.is_file():
        return
    say(f"writing {model.stem} and quantising it to Q4_0")
    model.parent.mkdir(parents=True, exist_ok=True)
    full, unfinished = model.with_suffix(".f16"), model.with_suffix(".part")
    write(paths.llama_cpp() / "models" / "ggml-vocab-qwen2.gguf", full)
    _run(str(paths.tool("llama-quantize")), str(full), str(unfinished), "Q4_0", "2")
    unfinished.rename(model)
    full.unlink()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=Path.cwd())


if __name__ == "__main__":
    prepare()
