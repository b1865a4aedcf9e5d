"""A worker's main loop: reads what the front wants, prepares prompts beside the loop, and sends what happens.

Knows the socket and the threads; the tokens belong to the engine's thread. The end of the socket is the end of
the process: nothing outlives the front. Where both live in one process, `close` gives everything back instead.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NoReturn

import psutil

from ocak.core.embedding import EmbedRequest
from ocak.core.errors import (
    GenerationFailed,
    InvalidRequest,
    LoadFailed,
    OcakError,
    to_wire,
)
from ocak.core.request import ChatPrompt, GenerateRequest, TokenPrompt
from ocak.llama import library
from ocak.llama.grammar import LlamaGrammar
from ocak.worker.answering import Answering
from ocak.worker.channel import ChannelClosed
from ocak.worker.dry_run import measure
from ocak.worker.embedding import NOT_AN_EMBEDDER
from ocak.worker.engine_loop import Answer, EngineLoop
from ocak.worker.engine_thread import EngineThread
from ocak.worker.grammars import Grammars
from ocak.worker.loading import LoadedModel, load
from ocak.worker.messages import (
    Cancel,
    Detokenize,
    Embed,
    Front,
    Heartbeat,
    Load,
    Loaded,
    Loading,
    LoadOptions,
    Plan,
    Planned,
    Refused,
    Rejected,
    Reply,
    RestoreState,
    SaveState,
    Submit,
    Tokenize,
    ToWorker,
)
from ocak.worker.states import States
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.text import AnswerText

logger = logging.getLogger("ocak.worker")

HEARTBEAT_S = 0.5
QUIET_S = 2.0
PROGRESS_STEP = 0.02
QUICK_TOKENS = 4096  # a token prompt of this length is read at once


def _end_process() -> NoReturn:
    os._exit(70)  # the fleet starts another


class Worker:
    """One model, one engine, one way to the front; `on_broken` is called when the engine can serve nobody."""

    def __init__(self, channel: Front, on_broken: Callable[[], None] = _end_process) -> None:
        self._channel = channel
        self._on_broken = on_broken
        self._is_closing = self._is_serving = False
        self._loop = asyncio.get_running_loop()
        # One thread loads and runs the model: two were a fifth slower with 16 clients, most likely because OpenMP
        # counts the threads of each caller and spins less at barriers once they are more than the cores.
        self._engine_thread = EngineThread()
        self._prompts = ThreadPoolExecutor(2, thread_name_prefix="prompt")
        self._calls = ThreadPoolExecutor(1, thread_name_prefix="call")  # tokenising for its own sake waits apart
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")  # and checksums of whole model files
        self._template_watch = Stopwatch()
        self._step_watch = Stopwatch()
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._progress = 0.0
        self._tasks: asyncio.TaskGroup
        self._loaded: LoadedModel  # from the end of the load
        self._engine_loop: EngineLoop
        self._grammars: Grammars | None = None
        self._answering: Answering
        self._states: States

    async def run(self) -> None:
        """Serve until the front closes the socket, which is noticed while loading too."""
        try:
            self._engine_thread.submit(library.initialise)  # a worker may stand by for long before it has a model
            first = await self._channel.receive()
            async with asyncio.TaskGroup() as self._tasks:
                self._tasks.create_task(self._beat())
                self._handle(first)
                self._tasks.create_task(self._listen())
        except* ChannelClosed:
            logger.info("the front has gone")

    def close(self) -> None:
        """Stop the engine and free the model, once `run` has returned; a load under way is given up."""
        self._is_closing = True
        for task in self._preparing.values():
            task.cancel()
        for pool in (self._prompts, self._calls, self._disk):
            pool.shutdown(cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()
        if self._is_serving:
            self._engine_loop.stop()
        self._engine_thread.submit(self._free)
        self._engine_thread.shutdown()

    async def _listen(self) -> None:
        while True:
            self._handle(await self._channel.receive())

    async def _plan(self, options: LoadOptions) -> None:
        with self._rejecting("the model could not be measured"):
            needs = await self._loop.run_in_executor(self._engine_thread, measure, options)
            self._channel.send(Planned(needs))

    async def _load(self, options: LoadOptions, *, is_awaited: bool) -> None:
        with self._rejecting("the model could not be loaded"):
            await self._loop.run_in_executor(self._engine_thread, self._load_here, options, is_awaited)
            self._serve(options)
        if self._is_serving and is_awaited and self._loaded.grammars is not None:
            await self._idle()
            await self._loop.run_in_executor(self._prompts, self._loaded.grammars.prepare)

    @contextmanager
    def _rejecting(self, summary: str) -> Iterator[None]:
        """Whatever goes wrong is told to the front, which must hear why, not only that the worker ended."""
        try:
            yield
        except OcakError as error:
            self._channel.send(Rejected(to_wire(error)))
        except Exception as error:
            # The boundary of the load.
            logger.exception(summary)
            self._channel.send(Rejected(to_wire(LoadFailed(f"{type(error).__name__}: {error}"))))

    def _serve(self, options: LoadOptions) -> None:
        """Begin to answer with the model that has been loaded."""
        piece = self._loaded.model.vocabulary.piece
        self._answering = Answering(self._loaded)
        self._grammars = None if self._loaded.grammars is None else Grammars(self._loaded.grammars)
        self._engine_loop = EngineLoop(self._loaded.engine, piece, self._channel.send, self._step_watch)
        self._states = States(options, self._loaded, self._engine_loop, self._disk)
        self._is_serving = True
        self._engine_thread.submit(self._drive)
        self._channel.send(Loaded(self._loaded.info))

    def _load_here(self, options: LoadOptions, is_awaited: bool) -> None:
        self._loaded = load(options, self._on_progress, self._template_watch, is_awaited=is_awaited)

    async def _idle(self) -> None:
        """Wait until nobody has been answered for a moment."""
        quiet_s = 0.0
        while quiet_s < QUIET_S:
            await asyncio.sleep(HEARTBEAT_S)
            is_busy = self._preparing or self._engine_loop.num_answers
            quiet_s = 0.0 if is_busy else quiet_s + HEARTBEAT_S

    def _drive(self) -> None:
        try:
            self._engine_loop.run()
        except Exception:
            # The boundary of the thread: without it the worker is of no use.
            logger.exception("the engine stopped")
            self._on_broken()

    def _free(self) -> None:
        if hasattr(self, "_loaded"):
            self._loaded.close()

    def _on_progress(self, progress: float) -> bool:
        """Tell the front; return whether to go on."""
        if progress - self._progress >= PROGRESS_STEP:
            self._progress = progress
            self._channel.send(Loading(progress))
        return not self._is_closing

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Submit(handle, request):
                self._prepare(handle, self._submit(handle, request))
            case Embed(handle, request):
                self._prepare(handle, self._embed(handle, request))
            case Cancel(handle):
                self._cancel(handle)
            case Tokenize() | Detokenize():
                self._prepare(message.handle, self._reply(message))
            case SaveState() | RestoreState():
                self._prepare(message.handle, self._reply_state(message))
            case Plan(options):
                self._tasks.create_task(self._plan(options))
            case Load(options, is_awaited):
                assert not self._is_serving, "this worker has a model already"
                self._tasks.create_task(self._load(options, is_awaited=is_awaited))

    def _prepare(self, handle: int, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._preparing[handle] = task
        task.add_done_callback(lambda _task: self._preparing.pop(handle, None))

    def _cancel(self, handle: int) -> None:
        task = self._preparing.get(handle)
        if task is None or not task.cancel():  # it may have handed over already
            self._engine_loop.cancel(handle)

    async def _submit(self, handle: int, request: GenerateRequest) -> None:
        with self._refusing(handle):
            if isinstance(request.prompt, ChatPrompt) and request.prompt.forced:
                constrain = self._loaded.prompts.constrained
                request = await self._loop.run_in_executor(self._prompts, constrain, request)
            grammar = await self._grammar(request)
            answer = (
                self._answering.answer(handle, request, grammar)
                if _is_quick(request)
                else await self._loop.run_in_executor(
                    self._prompts, self._answering.answer, handle, request, grammar
                )
            )
            self._engine_loop.start_answer(answer)

    async def _embed(self, handle: int, request: EmbedRequest) -> None:
        with self._refusing(handle):
            work = self._loaded.embedding
            if work is None:
                raise InvalidRequest(NOT_AN_EMBEDDER, param="model")
            sequence = await self._loop.run_in_executor(self._prompts, work.sequence, handle, request)
            answer = Answer(sequence, AnswerText(), embedding=work, dimensions=request.dimensions)
            self._engine_loop.start_answer(answer)

    async def _grammar(self, request: GenerateRequest) -> LlamaGrammar | None:
        if request.constraint is None or self._grammars is None:
            return None
        return await self._grammars.compiled(request.constraint, request.tenant)

    async def _reply(self, call: Tokenize | Detokenize) -> None:
        with self._refusing(call.handle):
            self._channel.send(await self._loop.run_in_executor(self._calls, self._convert, call))

    async def _reply_state(self, call: SaveState | RestoreState) -> None:
        with self._refusing(call.handle):
            work = self._states.save(call) if isinstance(call, SaveState) else self._states.restore(call)
            self._channel.send(Reply(call.handle, count=await work))

    @contextmanager
    def _refusing(self, handle: int) -> Iterator[None]:
        """Whatever goes wrong before the engine is told to the one who asked."""
        try:
            yield
        except OcakError as error:
            self._channel.send(Refused(handle, to_wire(error)))
        except Exception as error:
            # The boundary of the request: one that breaks the code must not be left waiting.
            logger.exception("a request could not be prepared")
            self._channel.send(Refused(handle, to_wire(GenerationFailed(f"{type(error).__name__}: {error}"))))

    def _convert(self, call: Tokenize | Detokenize) -> Reply:
        prompts = self._loaded.prompts
        if isinstance(call, Tokenize):
            return Reply(call.handle, tokens=tuple(prompts.read(call.prompt, add_special=call.add_special)))
        return Reply(call.handle, text=prompts.write(call.tokens))

    async def _beat(self) -> None:
        process = psutil.Process()
        while True:
            self._channel.send(
                Heartbeat(self._step_watch.age_s, self._template_watch.age_s, process.memory_info().rss)
            )
            await asyncio.sleep(HEARTBEAT_S)


def _is_quick(request: GenerateRequest) -> bool:
    """Whether preparing it holds nobody up: no text to tokenise, no breakers to look for, no long lists."""
    is_short = isinstance(request.prompt, TokenPrompt) and len(request.prompt.tokens) <= QUICK_TOKENS
    sampling = request.sampling
    return is_short and not (sampling.has_dry or sampling.bad_words or sampling.allowed_token_ids)
