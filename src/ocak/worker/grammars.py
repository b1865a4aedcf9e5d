"""Compiled grammars, kept by what they were made of. Compiling has a thread of its own: a grammar that takes long
delays other new grammars by a second, and nobody else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor

from ocak.core.errors import InvalidRequest
from ocak.core.request import Constraint
from ocak.llama.grammar import GrammarCompiler, GrammarError, LlamaGrammar
from ocak.worker.grammar_check import GrammarChecker

MAX_KEPT = 32  # each may learn some 40 MB
Key = tuple[str, Constraint]  # tenants share none: how long one took would tell what others ask for


class Grammars:
    """Belongs to the loop; compiles beside it, for each tenant one at a time."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._checker = GrammarChecker()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._kept: OrderedDict[Key, asyncio.Task[LlamaGrammar]] = OrderedDict()  # the latest last
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def __len__(self) -> int:
        return len(self._kept)

    async def compiled(self, constraint: Constraint, tenant: str) -> LlamaGrammar:
        """Return the grammar of a constraint. Raises `InvalidRequest` for one that has none."""
        key = (tenant, constraint)
        if key not in self._kept:
            self._begin(key)
        self._kept.move_to_end(key)
        return await asyncio.shield(self._kept[key])  # others may wait for it too

    def close(self) -> None:
        """End the thread and its process."""
        self._thread.shutdown()
        self._checker.close()

    def _begin(self, key: Key) -> None:
        compiling = asyncio.get_running_loop().create_task(self._in_turn(*key))
        compiling.add_done_callback(lambda done: self._forget_if_failed(key, done))
        self._kept[key] = compiling
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    async def _in_turn(self, tenant: str, constraint: Constraint) -> LlamaGrammar:
        """Compile it after the tenant's others, so that many slow ones of one tenant delay that one alone."""
        async with self._turns[tenant]:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compile, constraint)

    def _forget_if_failed(self, key: Key, done: asyncio.Task[LlamaGrammar]) -> None:
        has_failed = done.cancelled() or done.exception() is not None
        if has_failed and self._kept.get(key) is done:
            del self._kept[key]

    def _compile(self, constraint: Constraint) -> LlamaGrammar:
        if not self._compiler.can_compile:
            raise InvalidRequest(
                f"{constraint.param}: this model has no token that ends an answer, or a strange vocabulary, "
                "so its answers can take no form; ask another",
                param=constraint.param,
            )
        try:
            return self._compiler.compile(self._checker.check(constraint))
        except GrammarError as error:
            raise InvalidRequest(f"{constraint.param}: {error}", param=constraint.param) from error
