"""Saves a conversation's cells to a file, and puts them back into the prefix cache.

Decides what a file must be of; the folder and the name are the caller's. Disk and checksums are beside the loop,
the engine is asked between two steps.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor, Future
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ocak.core.errors import ContextLengthExceeded, Overloaded, StateFileError
from ocak.engine.engine import Engine
from ocak.engine.runner import RunFailed
from ocak.llama import library
from ocak.worker.engine_loop import EngineLoop
from ocak.worker.loading import LoadedModel
from ocak.worker.messages import LoadOptions, RestoreState, SaveState
from ocak.worker.model_file import read_once
from ocak.worker.state_file import Head, fingerprint, pack_tokens, read_state, write_state

T = TypeVar("T")

SWITCHED_OFF = "the prefix cache, in which conversations are kept, is off; load the model with prefix_cache"
WRITES_NOTHING = "this model writes no text and keeps no conversations; save those of one that generates"
CHANGED = "the model's file has changed since it was loaded; load it again"


class States:
    def __init__(self, options: LoadOptions, loaded: LoadedModel, engine: EngineLoop, disk: Executor) -> None:
        self._options = options
        self._loaded = loaded
        self._engine = engine
        self._disk = disk
        self._files = read_once(Path(options.path)).paths
        self._stamps = _stamps(self._files)

    async def save(self, call: SaveState) -> int:
        """Write what is cached of the prompt; return its tokens. Raises `StateFileError`, `InvalidRequest`."""
        engine = self._keeper()
        tokens = await self._beside(lambda: self._loaded.prompts.read(call.prompt))
        root = prefix_root(call.tenant, call.cache_salt)
        try:
            length, cells = await self._in_engine(lambda: engine.export(root, tokens))
        except (RunFailed, MemoryError) as error:
            raise StateFileError(f"the cells could not be copied: {error}") from error
        if not length:
            raise StateFileError("nothing of this conversation is in the prefix cache: generate first, then save")
        await self._beside(lambda: write_state(Path(call.path), self._head(call, tokens[:length]), cells))
        return length

    async def restore(self, call: RestoreState) -> int:
        """Cache a file's conversation; return its tokens. Raises `StateFileError`, `Overloaded`."""
        engine = self._keeper()
        state = await self._beside(lambda: read_state(Path(call.path), self._head(call, [])))
        tokens, root = state.head.token_ids, prefix_root(call.tenant, call.cache_salt)
        if len(tokens) >= self._loaded.info.context:
            raise ContextLengthExceeded(
                f"{Path(call.path).name} has {len(tokens)} tokens and must leave room for an answer in a context "
                f"of {self._loaded.info.context}; load the model with a larger context",
                param="path",
            )
        try:
            has_room = await self._in_engine(lambda: engine.adopt(root, tokens, state.cells))
        except RunFailed as error:
            raise StateFileError(f"{Path(call.path).name} was saved with another flash_attn: {error}") from error
        if not has_room:
            raise Overloaded("every slot is in use; restore it again when an answer has ended", retry_after_s=1.0)
        return len(tokens)

    @cached_property
    def _fingerprint(self) -> str:
        """Of the model's files as they were loaded; seconds for each GB, the first time."""
        try:
            found = fingerprint(self._files)
            is_same = _stamps(self._files) == self._stamps
        except OSError as error:
            raise StateFileError(CHANGED) from error
        if not is_same:
            raise StateFileError(CHANGED)
        return found

    def _keeper(self) -> Engine:
        """Return the engine, if it keeps prefixes."""
        if not isinstance(self._loaded.engine, Engine):
            raise StateFileError(WRITES_NOTHING)
        if not self._options.prefix_cache:
            raise StateFileError(SWITCHED_OFF)
        return self._loaded.engine

    def _head(self, call: SaveState | RestoreState, tokens: list[int]) -> Head:
        return Head(
            library=library.VERSION,
            model=self._fingerprint,
            kv_type=self._options.kv_type,
            rope=self._options.rope,
            tenant=call.tenant,
            cache_salt=call.cache_salt,
            tokens=pack_tokens(tokens),
        )

    async def _beside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    async def _in_engine(self, work: Callable[[], T]) -> T:
        """Return what `work` returns in the engine's thread."""
        future: Future[T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - who asked is told
                future.set_exception(error)

        self._engine.call(do)
        return await asyncio.wrap_future(future)


def prefix_root(tenant: str, cache_salt: str, lora: str = "") -> Hashable:
    """What two prompts must have in common to share a prefix; what is saved was computed by the model alone."""
    return (tenant, cache_salt, lora)


def _stamps(paths: Sequence[Path]) -> list[tuple[int, int, int]]:
    """What tells that files are still the same."""
    return [(status.st_ino, status.st_size, status.st_mtime_ns) for status in map(os.stat, paths)]
