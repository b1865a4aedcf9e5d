"""Says what is served, where, in how much memory, and how to ask. Pure: text out of snapshots."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from ocak import __version__
from ocak.cli.progress import bytes_text
from ocak.core.status import ModelInfo, ModelStatus

QUESTION = "What is ocak?"


def banner(url: str, models: Sequence[ModelStatus], *, needs_key: bool) -> str:
    """The text shown once every model is ready, or has failed."""
    address = typer.style(url, bold=True)
    parts = [
        f"{typer.style('ocak', bold=True)} {__version__} at {address}  (docs: {url}/docs)",
        *(model_text(model) for model in models),
        *gpu_hints(models),
        *_example(url, models, needs_key),
    ]
    return "\n\n".join(parts) + "\n"


def model_text(model: ModelStatus) -> str:
    """Two lines about a model: what it is, and its memory."""
    name = typer.style(model.key, bold=True)
    info = model.info
    if model.state == "unloaded" and not model.error:
        return f"  {name}  is loaded when it is asked for"
    if info is None:
        return f"  {name}  {model.state}: {model.error or 'no answer from its worker'}"
    size = f"{_count_text(info.num_parameters)} parameters"
    draft = f" + {bytes_text(info.draft_bytes)} draft" if info.draft else ""
    total = bytes_text(info.weights_bytes + info.kv_bytes + info.draft_bytes)
    return (
        f"  {name}  {info.name} ({info.architecture}, {size}) on {info.gpu or 'CPU'}\n"
        f"    context {info.context} tokens, {info.parallel} sequences, {info.kv_cells} KV cells"
        f", loaded in {info.load_s:.1f} s\n"
        f"    memory {bytes_text(info.weights_bytes)} weights + {bytes_text(info.kv_bytes)} KV{draft} = "
        f"{total}, {bytes_text(model.memory.resident)} resident"
        + (f"; up to {bytes_text(info.cache_ram_bytes)} more for saved prompts" if info.cache_ram_bytes else "")
    )


def gpu_hints(models: Sequence[ModelStatus]) -> list[str]:
    """A line for each GPU that this build of llama.cpp leaves idle."""
    idle = sorted({model.info.idle_gpu for model in models if model.info and model.info.idle_gpu})
    return [
        typer.style(f"  {gpu} is there, but this build of llama.cpp cannot use it. ", fg="yellow")
        + f"Build for it with: make serve GPU={_backend(gpu)}"
        for gpu in idle
    ]


def _backend(gpu: str) -> str:
    return {"AMD GPU": "vulkan", "Apple GPU": "metal"}.get(gpu, "cuda")


def _example(url: str, models: Sequence[ModelStatus], needs_key: bool) -> list[str]:
    ready = next((model for model in models if model.info), None)
    if ready is None or ready.info is None:
        return ["  no model is served"]
    path, fields = _question(ready.info)
    body = f'{{"model": "{ready.key}", {fields}}}'
    key = ' -H "Authorization: Bearer $OCAK_API_KEY"' if needs_key else ""
    return [f"Ask it:\n  curl {url}{path} -H 'Content-Type: application/json'{key} \\\n    -d '{body}'"]


def _question(info: ModelInfo) -> tuple[str, str]:
    """The path that suits the model, and what to send there."""
    match info.kind:
        case "embedding":
            return "/v1/embeddings", f'"input": "{QUESTION}"'
        case "rerank":
            return "/v1/rerank", f'"query": "{QUESTION}", "documents": ["A hearth does.", "Rain falls."]'
    if info.has_chat_template:
        return "/v1/chat/completions", f'"messages": [{{"role": "user", "content": "{QUESTION}"}}]'
    return "/v1/completions", f'"prompt": "{QUESTION}"'


def _count_text(count: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)
