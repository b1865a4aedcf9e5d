"""Compiled grammars, kept by what they were made of. Compiling has a thread of its own: a grammar that takes long
delays other new grammars, and nobody else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from ocak.core.errors import InvalidRequest
from ocak.core.request import Constraint
from ocak.llama.grammar import GrammarCompiler, GrammarError, LlamaGrammar
from ocak.worker.grammar_check import GrammarChecker

MAX_KEPT = 64


class Grammars:
    """Belongs to the loop; compiles beside it."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._checker = GrammarChecker()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._kept: OrderedDict[Constraint, asyncio.Future[LlamaGrammar]] = OrderedDict()  # the latest last

    def __len__(self) -> int:
        return len(self._kept)

    async def compiled(self, constraint: Constraint) -> LlamaGrammar:
        """Return the grammar of a constraint. Raises `InvalidRequest` for one that has none."""
        if constraint not in self._kept:
            self._begin(constraint)
        self._kept.move_to_end(constraint)
        return await asyncio.shield(self._kept[constraint])  # others may wait for it too

    def close(self) -> None:
        """End the thread and its process."""
        self._thread.shutdown()
        self._checker.close()

    def _begin(self, constraint: Constraint) -> None:
        loop = asyncio.get_running_loop()
        compiling = loop.run_in_executor(self._thread, self._compile, constraint)
        compiling.add_done_callback(lambda done: self._forget_if_failed(constraint, done))
        self._kept[constraint] = compiling
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)

    def _forget_if_failed(self, constraint: Constraint, done: asyncio.Future[LlamaGrammar]) -> None:
        if done.exception() is not None and self._kept.get(constraint) is done:
            del self._kept[constraint]

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
