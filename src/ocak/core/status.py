"""What a model's state looks like from outside. Snapshots: to act on a model, ask its owner."""

from __future__ import annotations

import msgspec

from ocak.core.embedding import ModelKind, Pooling
from ocak.core.request import ContextPolicy
from ocak.core.residence import ModelState, Priority


class MemoryStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes: expected before the load, reserved by the loaded model, resident in the worker now."""

    estimated: int = 0
    reserved: int = 0
    resident: int = 0


class LoadStatus(msgspec.Struct, frozen=True, kw_only=True):
    count: int = 0
    progress: float = 0.0  # 0 to 1, of the load under way
    last_seconds: float | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an engine; the counters grow from its worker's start."""

    slots: int = 0
    slots_used: int = 0
    kv_cells: int = 0
    kv_cells_used: int = 0  # by running sequences
    kv_cells_cached: int = 0  # by prefixes that are kept for others
    saved_tokens: int = 0  # of such prefixes in host memory
    running: int = 0
    waiting: int = 0
    preemptions: int = 0
    steps: int = 0
    busy_s: float = 0.0  # wall time of the engine's thread while it had work
    decode_s: float = 0.0  # of it, inside the model's forward passes
    prompt_tokens: int = 0
    generation_tokens: int = 0
    guessed_tokens: int = 0
    right_guesses: int = 0
    drafted_tokens: int = 0  # of the guessed, those of the draft model
    right_drafts: int = 0
    draft_s: float = 0.0  # inside the draft model's forward passes


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of the model it has loaded."""

    architecture: str
    name: str
    num_parameters: int
    weights_bytes: int
    kv_bytes: int
    cache_ram_bytes: int  # the most that saved prefixes may take
    vocabulary: int
    context: int  # tokens per sequence
    trained_context: int
    parallel: int
    kv_cells: int
    context_policy: ContextPolicy = "error"  # where a request names none
    n_keep: int = 0  # likewise
    can_shift: bool = False
    has_chat_template: bool
    has_infill: bool
    gpu: str | None  # the device in use; None on the CPU
    draft: str | None = None  # the name of the model that guesses
    draft_bytes: int = 0  # its weights and cells
    idle_gpu: str | None  # a GPU that this build of llama.cpp cannot use
    load_s: float
    lora: tuple[str, ...] = ()  # the adapters that requests may name
    kind: ModelKind = "text"
    pooling: Pooling | None = None  # of an embedding model or a cross-encoder
    embedding_length: int = 0  # numbers of its vectors
    tool_format: str | None = None  # how it writes calls of tools; None without a chat template
    reasoning_format: str | None = None
    samples_on_device: bool = False  # tokens are picked inside the graph


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model as `/models/status` shows it; times are Unix seconds."""

    key: str
    provider: str
    kind: str
    state: ModelState
    error: str | None = None  # why it failed, is restarting, or was not loaded
    loaded_at: float | None = None
    last_request: float | None = None
    requests: int = 0
    errors: int = 0
    tokens: int = 0
    memory: MemoryStatus = MemoryStatus()
    device: str = "cpu"
    priority: Priority = "normal"
    expires_at: float | None = None  # when it is unloaded if nobody asks; null: never
    is_expected: bool = True  # it was to be loaded from the start, and nobody unloaded it
    worker_pid: int | None = None
    restarts: int = 0
    load: LoadStatus = LoadStatus()
    engine: EngineStats = EngineStats()
    info: ModelInfo | None = None
