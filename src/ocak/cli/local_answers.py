"""Answers from a worker of this process's own: no server, no port."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from ocak.cli.answers import AnswerOptions
from ocak.cli.compose import Plan, build_gateway
from ocak.cli.progress import progress_line
from ocak.core.errors import ConfigError
from ocak.core.events import Delta, Finished
from ocak.core.request import ChatPrompt, GenerateRequest, Message, Sampling, Stopping, TextPrompt
from ocak.fleet.fleet import Fleet

REDRAW_S = 0.1
DRAIN_S = 1.0


class LocalAnswers:
    def __init__(self, plan: Plan) -> None:
        if len(plan.adapters) > 1:
            raise ConfigError("ocak run answers with one LoRA adapter at most; give --lora once", param="lora")
        self._key = plan.key
        self._lora = "".join(plan.adapters)
        self._fleet = Fleet([plan.spec])
        self._gateway = build_gateway([plan], self._fleet)
        self._numbers = itertools.count(1)

    async def open(self) -> None:
        await self._fleet.start()
        showing = asyncio.create_task(self._show_loading())
        try:
            await self._fleet.wait_ready(self._key)
        finally:
            showing.cancel()

    async def stream(
        self, messages: Sequence[Message], options: AnswerOptions
    ) -> AsyncGenerator[Delta | Finished, None]:
        async with aclosing(self._gateway.stream(self._request(messages, options))) as events:
            async for event in events:
                if isinstance(event, Delta | Finished):
                    yield event

    async def close(self) -> None:
        await self._fleet.stop(drain_s=DRAIN_S)

    def _request(self, messages: Sequence[Message], options: AnswerOptions) -> GenerateRequest:
        sampling = Sampling(seed=options.seed)
        if options.temperature is not None:
            sampling = Sampling(temperature=options.temperature, seed=options.seed)
        return GenerateRequest(
            id=f"run-{next(self._numbers)}",
            model=self._key,
            prompt=self._prompt(messages),
            sampling=sampling,
            stopping=Stopping(max_tokens=options.max_tokens),
            lora=self._lora,
        )

    def _prompt(self, messages: Sequence[Message]) -> ChatPrompt | TextPrompt:
        """A model without a chat template goes on with the text."""
        info = self._gateway.resolve(self._key).provider.status().info
        if info is None or info.has_chat_template:
            return ChatPrompt(tuple(messages))
        return TextPrompt("\n".join(message.content for message in messages))

    async def _show_loading(self) -> None:
        with progress_line() as line:
            while True:
                status = self._gateway.resolve(self._key).provider.status()
                line.show(f"loading {self._key}", status.load.progress)
                await asyncio.sleep(REDRAW_S)
