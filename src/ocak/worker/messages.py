"""What the front and a worker say to each other, as length-prefixed MessagePack.

The front speaks first: a `Plan`, if it wants to know what the model takes, and one `Load`; then `Submit`,
`Embed`, `Cancel` and calls (`Tokenize`, `Detokenize`, `SaveState`, `RestoreState`) in any order. The worker
answers `Planned`, `Loading` (progress) and `Loaded` or `Rejected`; then `Events` (all that one engine step
produced, for every request, in one frame), `Reply` to each call, `Refused` for what cannot be served, and a
`Heartbeat` twice a second. The end of the socket ends the worker; the end of the worker ends the socket.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from ocak.core.embedding import Embedded, EmbedRequest
from ocak.core.errors import WireError
from ocak.core.events import Delta, Finished, PromptScored, Started
from ocak.core.limits import MOST_GUESSES
from ocak.core.lora import LoraAdapter
from ocak.core.placement import TensorOverride
from ocak.core.request import ContextPolicy, GenerateRequest, Prompt
from ocak.core.rope import RopeOptions
from ocak.core.status import EngineStats, ModelInfo
from ocak.memory.needs import Needs
from ocak.worker.formats.styles import ReasoningFormat, ToolFormat


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a GGUF model is loaded; `context` is tokens per sequence, 0 what the model was trained for (capped)."""

    path: str
    context: int = 0
    parallel: int = 4
    kv_cells: int = 0  # 0: context x parallel; fewer are shared by all sequences
    context_policy: ContextPolicy = "error"  # where a request names none
    n_keep: int = -1  # tokens at the beginning that are never dropped; -1: a quarter of the context
    batch_tokens: int = 512
    prefix_cache: bool = True
    cache_ram_bytes: int = 0  # for prefixes that are saved when their slots are needed
    step_target_s: float = 0.2  # the gap between two tokens should not be longer while prompts are computed
    speculation: str = "lookup"  # guesses ahead while one sequence decodes alone; or "off"
    draft_path: str | None = None  # of a smaller model that guesses too
    draft_tokens: int = MOST_GUESSES  # that it guesses at most for a step
    device_sampling: Literal["auto", "on", "off"] = "auto"  # tokens are picked inside the graph
    deterministic: bool = False  # an answer's tokens do not depend on what else runs, or is cached
    threads: int = 0  # 0: every core
    holds_cores: bool = True  # threads may be held to a core each: the process has no others that work
    gpu_layers: int = -1  # -1: all, if a GPU is there
    kv_offload: bool = True
    kv_type: str = "f16"
    flash_attn: str = "auto"
    mmap: bool = True
    mlock: bool = False
    lora: tuple[LoraAdapter, ...] = ()
    rope: RopeOptions = RopeOptions()
    tensor_overrides: tuple[TensorOverride, ...] = ()
    chat_template: str | None = None  # None: the model's own
    chat_template_kwargs: dict[str, str | int | float | bool] = {}
    embedding: bool = False  # embed with a model that could write text too
    pooling: str = "auto"  # what the model file says; mean, cls, last, rank; none: write text
    tool_format: ToolFormat | None = None  # how the model writes calls; None: as its template shows
    reasoning_format: ReasoningFormat | None = None  # how it writes what it thinks; None: as its template shows


# front to worker


class Plan(msgspec.Struct, frozen=True, tag=True):
    """Measure what loading so would take; nothing is loaded."""

    options: LoadOptions


class Load(msgspec.Struct, frozen=True, tag=True):
    options: LoadOptions
    is_awaited: bool = False  # by somebody who has asked the model something


class Submit(msgspec.Struct, frozen=True, tag=True):
    handle: int  # the front's name for this request on this worker
    request: GenerateRequest


class Embed(msgspec.Struct, frozen=True, tag=True):
    handle: int
    request: EmbedRequest


class Cancel(msgspec.Struct, frozen=True, tag=True):
    handle: int


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    handle: int
    prompt: Prompt
    add_special: bool = True


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    handle: int
    tokens: tuple[int, ...]


class SaveState(msgspec.Struct, frozen=True, tag=True):
    """Write what is cached of a prompt to a file; the answer is a `Reply` with the number of its tokens."""

    handle: int
    path: str
    prompt: Prompt
    tenant: str
    cache_salt: str = ""


class RestoreState(msgspec.Struct, frozen=True, tag=True):
    """Cache what is in a file; the answer is a `Reply` with the number of its tokens."""

    handle: int
    path: str
    tenant: str
    cache_salt: str = ""


# worker to front


class Planned(msgspec.Struct, frozen=True, tag=True):
    needs: Needs


class Loading(msgspec.Struct, frozen=True, tag=True):
    progress: float  # 0 to 1


class Loaded(msgspec.Struct, frozen=True, tag=True):
    info: ModelInfo


class Rejected(msgspec.Struct, frozen=True, tag=True):
    error: WireError


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    error: WireError


RequestEvent = Started | PromptScored | Delta | Finished | Embedded | Failed


class Events(msgspec.Struct, frozen=True, tag=True):
    """Pairs of a handle and its next event, in the order they came; `stats`, if any, as they stood after them."""

    events: list[tuple[int, RequestEvent]]
    stats: EngineStats | None = None


class Reply(msgspec.Struct, frozen=True, tag=True):
    """The answer to one `Tokenize` (tokens), `Detokenize` (text), `SaveState` or `RestoreState` (count)."""

    handle: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    count: int = 0


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A request or a call that never reached the engine, and why."""

    handle: int
    error: WireError


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The worker's loop turns; how long the engine's step and the chat template that run now have been running."""

    step_s: float
    template_s: float
    rss_bytes: int


ToWorker = Plan | Load | Submit | Embed | Cancel | Tokenize | Detokenize | SaveState | RestoreState
FromWorker = Planned | Loading | Loaded | Rejected | Events | Reply | Refused | Heartbeat


class Front(Protocol):
    """A worker's way to the front."""

    def send(self, message: msgspec.Struct) -> None:
        """Queue one message, from any thread; it is dropped once the front has gone."""
        ...

    async def receive(self) -> ToWorker:
        """Return the next message, or raise `ChannelClosed`."""
        ...
