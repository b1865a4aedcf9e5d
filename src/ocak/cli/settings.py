"""Declares every setting once: its type, limits, default and help. Reads nothing.

From these two structs come the flags of the command line, the keys of `ocak.toml`, the `OCAK_*` variables,
the table of `ocak config check` and the documentation; the names are the same in all of them.
In `Meta.extra`: `flags` and `env` are further spellings, `secret` is never shown, `file_only` has no flag,
`metavar` is how --help calls the value, `path` is relative to the file it is written in, `implied` is a prefix of
variables and the value that the setting has where one of them is set and nothing else is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta, Struct

from ocak.cli.adaptation_settings import AdaptationSettings
from ocak.core.limits import INT32_MAX, MOST_GUESSES
from ocak.core.request import ContextPolicy
from ocak.core.residence import Priority

Count = Annotated[int, Meta(ge=0, le=INT32_MAX)]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
LEGACY = "LLM_LLAMA_SERVICE_"  # the settings of the service that ocak replaces


class ServerSettings(Struct, frozen=True, kw_only=True):
    """`[server]`: the front process."""

    host: Annotated[
        str,
        Meta(description="address to listen on; beyond loopback it needs a key", extra={"metavar": "ADDRESS"}),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on; 0 takes a free one")] = 8080
    api_key: Annotated[
        tuple[str, ...],
        Meta(
            description="key that callers must send: literal, env:NAME or file:PATH; may be repeated",
            extra={"secret": True, "metavar": "KEY"},
        ),
    ] = ()
    no_auth: Annotated[bool, Meta(description="listen beyond loopback without a key")] = False
    no_models: Annotated[bool, Meta(description="serve no model: the front alone, for measuring")] = False
    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Host name that requests to a loopback address may use; * for any; may be repeated",
            extra={"metavar": "NAME"},
        ),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="web page that may call, as https://chat.example.com; may be repeated",
            extra={"metavar": "ORIGIN"},
        ),
    ] = ()
    max_body_bytes: Annotated[int, Meta(ge=1024, le=2**31, description="largest request")] = 8 * 1024 * 1024
    drain_seconds: Annotated[
        int, Meta(ge=0, le=86400, description="how long running answers may take to finish at the end")
    ] = 30
    state_dir: Annotated[
        str,
        Meta(
            description="folder for conversations that callers save; none: they cannot",
            extra={"metavar": "FOLDER", "path": True},
        ),
    ] = ""
    memory_fraction: Annotated[
        float, Meta(ge=0.01, le=1, description="share of this machine's memory that models may take together")
    ] = 0.9
    memory_limit: Annotated[
        str, Meta(description="most that they may take, as 12GB, instead of a share", extra={"metavar": "SIZE"})
    ] = ""
    eviction: Annotated[
        Literal["lru", "cost"],
        Meta(description="who goes for another model: the least recently used, or the cheapest to bring back"),
    ] = "lru"
    standby: Annotated[
        int, Meta(ge=0, le=16, description="most workers that are started ahead, for models that are not loaded")
    ] = 1
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="how much is logged to stderr")
    ] = "info"
    log_format: Annotated[
        Literal["text", "json"], Meta(description="lines for people, or JSON objects for machines")
    ] = "text"


class ModelSettings(AdaptationSettings, frozen=True, kw_only=True):
    """`[models.KEY]`: one model and how it is loaded."""

    provider: Annotated[
        Literal["llama"], Meta(description="what answers: the embedded engine", extra={"file_only": True})
    ] = "llama"
    source: Annotated[
        str,
        Meta(
            description="embedded, a path to a GGUF, or hf:owner/repo[:file-or-quant]",
            extra={"file_only": True, "path": True},
        ),
    ] = "embedded"
    served_name: Annotated[
        tuple[str, ...],
        Meta(
            description="name the model answers to; may be repeated",
            extra={"flags": ["--alias"], "metavar": "NAME"},
        ),
    ] = ()
    priority: Annotated[
        Priority,
        Meta(description="who is unloaded when another model needs room: pinned never, high last, low first"),
    ] = "normal"
    keep_alive: Annotated[
        int,
        Meta(
            ge=-1,
            le=INT32_MAX,
            description="seconds that it stays loaded after its last request; -1: for ever",
        ),
    ] = -1
    preload: Annotated[
        bool, Meta(description="load it at the start, if there is room; else when it is first asked for")
    ] = True
    context: Annotated[
        Count,
        Meta(
            description="tokens per sequence; 0: what the model was trained for, at most 4096",
            extra={"env": [LEGACY + "CONTEXT_SIZE"]},
        ),
    ] = 0
    parallel: Annotated[
        int,
        Meta(
            ge=1,
            le=MAX_SEQUENCES,
            description="sequences served at once",
            extra={"flags": ["-np"], "env": [LEGACY + "THREADS"]},
        ),
    ] = 4
    kv_cells: Annotated[
        Count, Meta(description="tokens that all sequences share; 0: context x parallel, less over-commits")
    ] = 0
    context_policy: Annotated[
        ContextPolicy,
        Meta(
            description="what outgrows the context: refuse it, drop the oldest tokens, or drop a prompt's middle",
            extra={"implied": (LEGACY, "shift")},
        ),
    ] = "error"
    n_keep: Annotated[
        int,
        Meta(
            ge=-1,
            le=INT32_MAX,
            description="tokens at the beginning that are never dropped; -1: a quarter of the context",
        ),
    ] = -1
    batch_tokens: Annotated[int, Meta(ge=1, le=65536, description="most tokens in one forward pass")] = 512
    inter_token_ms: Annotated[
        int,
        Meta(
            ge=20,
            le=60_000,
            description="longest wanted gap between tokens while prompts are computed; longer: more throughput",
        ),
    ] = 200
    speculation: Annotated[
        Literal["lookup", "off"],
        Meta(description="guess a lone answer's next tokens from the text so far, where that pays"),
    ] = "lookup"
    draft_model: Annotated[
        str,
        Meta(
            description="smaller model with the same vocabulary that guesses too: a path, or hf:owner/repo[:file]",
            extra={"flags": ["--model-draft", "-md"], "metavar": "MODEL", "path": True},
        ),
    ] = ""
    draft_tokens: Annotated[
        int, Meta(ge=1, le=MOST_GUESSES, description="most tokens that the draft model guesses for one step")
    ] = MOST_GUESSES
    device_sampling: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="pick tokens where the logits are; auto: if the output layer is on a GPU"),
    ] = "auto"
    deterministic: Annotated[
        bool,
        Meta(
            description="the same tokens for the same request, whatever else runs; slower, see docs/determinism.md"
        ),
    ] = False
    max_queued: Annotated[
        int, Meta(ge=0, le=1_000_000, description="requests that may wait; more are refused at once")
    ] = 128
    prefix_cache: Annotated[bool, Meta(description="keep prompts for others that begin the same")] = True
    cache_ram: Annotated[
        int, Meta(ge=0, le=1_048_576, description="MiB of memory for prompts whose slots are needed; 0: none")
    ] = 512
    gpu_layers: Annotated[
        int,
        Meta(
            ge=-1,
            le=INT32_MAX,
            description="layers on the GPU; -1: all, if there is one",
            extra={"flags": ["--n-gpu-layers", "-ngl"], "env": [LEGACY + "GPU_LAYERS"]},
        ),
    ] = -1
    kv_offload: Annotated[
        bool, Meta(description="keep the KV cache on the GPU", extra={"env": [LEGACY + "KV_OFFLOAD"]})
    ] = True
    kv_type: Annotated[KvType, Meta(description="type of the KV cache's cells")] = "f16"
    flash_attn: Annotated[
        Literal["auto", "on", "off"], Meta(description="flash attention; auto: plain for long contexts on a CPU")
    ] = "auto"
    mmap: Annotated[
        bool, Meta(description="map the file instead of reading it", extra={"env": [LEGACY + "USE_MMAP"]})
    ] = True
    mlock: Annotated[bool, Meta(description="keep the model's pages in memory")] = False
    threads: Annotated[
        int, Meta(ge=0, le=1024, description="CPU threads; 0: every core", extra={"flags": ["-t"]})
    ] = 0
    embedding: Annotated[
        bool, Meta(description="make vectors with a model that could write text; an embedding model needs no flag")
    ] = False
    pooling: Annotated[
        Literal["auto", "mean", "cls", "last", "rank", "none"],
        Meta(description="what becomes a text's vector; auto: as the model file says, none: write text instead"),
    ] = "auto"
    chat_template: Annotated[
        str,
        Meta(
            description="file with a chat template, instead of the model's own",
            extra={"flags": ["--chat-template-file"], "metavar": "FILE", "path": True},
        ),
    ] = ""
    tool_format: Annotated[
        Literal["auto", "hermes", "qwen3_coder", "llama3", "mistral", "harmony", "json"],
        Meta(description="how the model writes calls of tools; auto: as its chat template shows"),
    ] = "auto"
    reasoning_format: Annotated[
        Literal["auto", "think", "mistral", "none"],
        Meta(description="how it writes what it thinks; auto: as its chat template shows, none: all is text"),
    ] = "auto"
    chat_template_kwargs: Annotated[
        dict[str, str | int | float | bool],
        Meta(description="values that the chat template reads", extra={"file_only": True}),
    ] = {}


@dataclass(frozen=True, slots=True)
class Settings:
    """All that was asked for; `origins` says where each value came from: `server.port` -> `OCAK_PORT`."""

    server: ServerSettings
    models: Mapping[str, ModelSettings]
    origins: Mapping[str, str] = field(default_factory=dict)
