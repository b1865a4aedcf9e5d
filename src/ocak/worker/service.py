"""A worker's main loop: reads what the front wants, prepares prompts beside the loop, and sends what happens.

Knows the socket and the threads; the tokens belong to the engine's thread. The end of the socket is the end of
the process: nothing outlives the front.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor

import msgspec
import psutil

from ocak.core.errors import ContextLengthExceeded, InvalidRequest, OcakError, to_wire
from ocak.core.request import GenerateRequest, Prompt, Sampling, TokenPrompt
from ocak.engine.sequence import Sequence
from ocak.worker.channel import Channel, ChannelClosed
from ocak.worker.engine_loop import Answer, EngineLoop
from ocak.worker.loading import LoadedModel, load
from ocak.worker.messages import (
    Cancel,
    Detokenize,
    Events,
    Heartbeat,
    Load,
    Loaded,
    Loading,
    LoadOptions,
    Refused,
    Rejected,
    Reply,
    Submit,
    Tokenize,
    ToWorker,
)
from ocak.worker.text import AnswerText

logger = logging.getLogger("ocak.worker")

HEARTBEAT_S = 0.5
PROGRESS_STEP = 0.02


class Worker:
    """One model, one engine, one socket to the front."""

    def __init__(self, channel: Channel[ToWorker]) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="prompt")
        self._read_started: dict[int, float] = {}  # by thread
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self._progress = 0.0
        self._loaded: LoadedModel
        self._engine_loop: EngineLoop  # from the end of the load
        self._step_age_s: Callable[[], float] = float  # 0 until then

    async def run(self) -> None:
        """Serve until the front closes the socket."""
        try:
            first = await self._channel.receive()
            assert isinstance(first, Load), "the front speaks first: Load"
            beat = asyncio.create_task(self._beat())
            if not await self._load(first.options):
                return
            while not beat.done():
                self._handle(await self._channel.receive())
        except ChannelClosed:
            logger.info("the front has gone")

    async def _load(self, options: LoadOptions) -> bool:
        try:
            self._loaded = await self._loop.run_in_executor(None, load, options, self._on_progress)
        except OcakError as error:
            self._channel.send(Rejected(to_wire(error)))
            return False
        piece = self._loaded.model.vocabulary.piece
        self._engine_loop = EngineLoop(self._loaded.engine, piece, self._publish)
        self._step_age_s = self._engine_loop.step_age_s
        self._engine_loop.start()
        self._channel.send(Loaded(self._loaded.info))
        return True

    def _on_progress(self, progress: float) -> None:
        if progress - self._progress >= PROGRESS_STEP:
            self._progress = progress
            self._loop.call_soon_threadsafe(self._channel.send, Loading(progress))

    def _publish(self, events: Events) -> None:
        self._loop.call_soon_threadsafe(self._channel.send, events)

    def _handle(self, message: ToWorker) -> None:
        match message:
            case Submit(handle, request):
                self._prepare(handle, self._submit(handle, request))
            case Cancel(handle):
                self._cancel(handle)
            case Tokenize() | Detokenize():
                self._prepare(message.handle, self._reply(message))
            case Load():
                raise AssertionError("this worker has a model already")

    def _prepare(self, handle: int, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._preparing[handle] = task
        task.add_done_callback(lambda _task: self._preparing.pop(handle, None))

    def _cancel(self, handle: int) -> None:
        task = self._preparing.get(handle)
        if task is not None:
            task.cancel()
        else:
            self._engine_loop.cancel(handle)

    async def _submit(self, handle: int, request: GenerateRequest) -> None:
        try:
            tokens = await self._read(request.prompt)
            self._engine_loop.start_answer(self._answer(handle, request, tokens))
        except OcakError as error:
            self._channel.send(Refused(handle, to_wire(error)))

    async def _reply(self, call: Tokenize | Detokenize) -> None:
        try:
            if isinstance(call, Tokenize):
                tokens = await self._read(call.prompt, add_special=call.add_special)
                reply = Reply(call.handle, tokens=tuple(tokens))
            else:
                reply = Reply(call.handle, text=self._loaded.prompts.write(call.tokens))
            self._channel.send(reply)
        except OcakError as error:
            self._channel.send(Refused(call.handle, to_wire(error)))

    async def _read(self, prompt: Prompt, *, add_special: bool = True) -> list[int]:
        """Tokenise beside the loop, so that a long prompt delays nobody else's tokens."""
        if isinstance(prompt, TokenPrompt):
            return self._loaded.prompts.read(prompt)
        return await self._loop.run_in_executor(self._readers, self._timed_read, prompt, add_special)

    def _timed_read(self, prompt: Prompt, add_special: bool) -> list[int]:
        thread = threading.get_ident()
        self._read_started[thread] = time.monotonic()
        try:
            return self._loaded.prompts.read(prompt, add_special=add_special)
        finally:
            del self._read_started[thread]

    def _answer(self, handle: int, request: GenerateRequest, tokens: list[int]) -> Answer:
        info, vocabulary = self._loaded.info, self._loaded.model.vocabulary
        _check_length(len(tokens), info.context)
        _check_bias(request.sampling, vocabulary.size)
        sampling = request.sampling
        if sampling.seed is None:
            sampling = msgspec.structs.replace(sampling, seed=random.getrandbits(32))
        sequence = Sequence(
            id=handle,
            tokens=tokens,
            sampling=sampling,
            max_tokens=request.stopping.max_tokens or info.context,
            end_tokens=frozenset() if request.stopping.ignore_eos else vocabulary.end_tokens,
        )
        echo = vocabulary.text(tokens) if request.echo else ""
        return Answer(sequence, AnswerText(request.stopping.stop), echo)

    async def _beat(self) -> None:
        process = psutil.Process()
        while True:
            self._channel.send(Heartbeat(self._stuck_s(), process.memory_info().rss))
            await asyncio.sleep(HEARTBEAT_S)

    def _stuck_s(self) -> float:
        now = time.monotonic()
        ages = [now - started for started in list(self._read_started.values())]
        return max([self._step_age_s(), *ages])


def _check_length(num_tokens: int, context: int) -> None:
    if num_tokens == 0:
        raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
    if num_tokens >= context:
        raise ContextLengthExceeded(
            f"the prompt has {num_tokens} tokens and must leave room for an answer in the context of {context}; "
            f"send at most {context - 1}, or serve the model with a larger --context",
            param="prompt",
        )


def _check_bias(sampling: Sampling, num_vocab: int) -> None:
    for token in sampling.logit_bias:
        if token >= num_vocab:
            raise InvalidRequest(
                f"logit_bias names token {token}; the model has 0 to {num_vocab - 1}", param="logit_bias"
            )
