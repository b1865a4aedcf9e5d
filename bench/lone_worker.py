"""A worker without a front: loaded, asked a few prompts, and its resident memory read."""

import asyncio
from collections.abc import Sequence

import psutil

from ocak.core.events import Finished
from ocak.core.request import GenerateRequest, Sampling, Stopping, TokenPrompt
from ocak.fleet.process import WorkerProcess
from ocak.worker.messages import Events, Failed, Load, Loaded, LoadOptions, Refused, Rejected, Submit

ANSWER_TOKENS = 4
WITHIN_S = 300


def resident_bytes(options: LoadOptions, parallel: int, prompt_tokens: int) -> int:
    """Load, have as many sequences at once read a prompt and answer, and return what is resident then."""
    return asyncio.run(asyncio.wait_for(_resident(options, parallel, prompt_tokens), WITHIN_S))


async def _resident(options: LoadOptions, parallel: int, prompt_tokens: int) -> int:
    worker = await WorkerProcess.spawn()
    try:
        worker.channel.send(Load(options))
        while not isinstance(message := await worker.channel.receive(), Loaded):
            if isinstance(message, Rejected):
                raise RuntimeError(message.error.message)
        await _answer(worker, range(parallel), prompt_tokens)
        return int(psutil.Process(worker.pid).memory_info().rss)
    finally:
        worker.kill()
        await worker.end()


async def _answer(worker: WorkerProcess, handles: Sequence[int], prompt_tokens: int) -> None:
    """Wait until every prompt, each of its own tokens, is answered."""
    for handle in handles:
        tokens = tuple((131 * handle + 17 * place) % 20_000 + 5 for place in range(prompt_tokens))
        worker.channel.send(Submit(handle, _request(handle, tokens)))
    left = set(handles)
    while left:
        message = await worker.channel.receive()
        if isinstance(message, Refused):
            raise RuntimeError(message.error.message)
        if isinstance(message, Events):
            left -= {handle for handle, event in message.events if _is_end(event)}


def _request(handle: int, tokens: tuple[int, ...]) -> GenerateRequest:
    return GenerateRequest(
        id=str(handle),
        model="bench",
        prompt=TokenPrompt(tokens),
        sampling=Sampling(temperature=0),
        stopping=Stopping(max_tokens=ANSWER_TOKENS, ignore_eos=True),
    )


def _is_end(event: object) -> bool:
    if isinstance(event, Failed):
        raise RuntimeError(event.error.message)
    return isinstance(event, Finished)
