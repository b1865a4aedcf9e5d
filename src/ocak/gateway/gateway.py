"""The one door: finds the model, admits the request, and hands its events on.

Knows no HTTP, no process and no tokenizer. Invariant: whatever was admitted is given back exactly once,
however the stream ends.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Protocol

import msgspec

from ocak.core.embedding import Embedded, EmbedRequest, input_bytes
from ocak.core.errors import InvalidRequest, ModelNotFound, Overloaded, WorkerLost
from ocak.core.events import (
    Delta,
    Event,
    Finished,
    FinishReason,
    PromptScored,
    PromptToken,
    TokenLogprob,
    Usage,
)
from ocak.core.limits import (
    DIMENSIONS_RANGE,
    LOGPROBS_RANGE,
    N_KEEP_RANGE,
    PRIORITY_RANGE,
    check_constraint,
    check_sampling,
    check_stopping,
)
from ocak.core.request import GenerateRequest, Prompt, ToolCall, prompt_bytes
from ocak.core.status import ModelStatus
from ocak.gateway.adapters import adapted_names, check_adapter
from ocak.gateway.admission import Admission
from ocak.gateway.collected_calls import CollectedCalls
from ocak.providers.base import Provider
from ocak.telemetry.metrics import RequestTimer

MAX_ATTEMPTS = 2  # a request that ends its worker may do so twice, not for ever
SHOWN_NAME = 200  # characters of an unknown model's name in the message


class ModelProvider(Provider, Protocol):
    """A provider that also lends its tokenizer, saves conversations and tells its state."""

    async def tokenize(self, prompt: Prompt, *, add_special: bool) -> tuple[int, ...]: ...

    async def detokenize(self, tokens: tuple[int, ...]) -> str: ...

    async def save_state(self, path: str, prompt: Prompt, tenant: str, cache_salt: str) -> int: ...

    async def restore_state(self, path: str, tenant: str, cache_salt: str) -> int: ...

    def status(self) -> ModelStatus: ...

    def is_ready(self) -> bool: ...


class Residence(Protocol):
    """A model's place in this machine's memory."""

    async def load(self, wait_s: float) -> None: ...

    async def unload(self, drain_s: float) -> None: ...

    def want(self) -> None: ...

    def pin(self) -> None: ...

    def unpin(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under its key, and the other names it answers to."""

    key: str
    provider: ModelProvider
    admission: Admission
    names: tuple[str, ...] = ()
    created: int = 0  # Unix seconds
    adapters: tuple[str, ...] = ()  # LoRA adapters that requests may name
    residence: Residence | None = None  # None: it lives elsewhere


class Completion(msgspec.Struct, frozen=True):
    """A whole answer."""

    text: str
    reason: FinishReason
    usage: Usage
    logprobs: list[TokenLogprob] | None = None  # of the text's tokens; None: not asked for
    prompt: list[PromptToken] | None = None  # the same of the prompt's
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


class Gateway:
    def __init__(self, models: Iterable[ServedModel]) -> None:
        self.models = tuple(models)
        self._by_name = {name: model for model in self.models for name in (model.key, *model.names)}
        self._adapted = adapted_names(self.models)

    def resolve(self, name: str | None) -> ServedModel:
        """Return the model called `name`; the only one when no name is given. Raises `ModelNotFound`."""
        if name is None:
            if len(self.models) == 1:
                return self.models[0]
            raise InvalidRequest(f"model is required: one of {self._known()}", param="model")
        model = self._by_name.get(name) or (self._adapted[name].model if name in self._adapted else None)
        if model is None:
            close = difflib.get_close_matches(name[:SHOWN_NAME], [*self._by_name, *self._adapted], n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there is {self._known()}"
            raise ModelNotFound(f"no model is called {name[:SHOWN_NAME]!r}; {hint}", param="model")
        return model

    def adapter(self, name: str | None) -> str:
        """Return the adapter that a name stands for, as `base:adapter` or by its own; empty if none."""
        return self._adapted[name].adapter if name in self._adapted and name not in self._by_name else ""

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Yield the answer's events. A worker lost before the first text is retried; after it, it is an error."""
        request = self._named(request)
        with self._admitted(request) as (provider, timer):
            for attempt in range(1, MAX_ATTEMPTS + 1):
                has_text = False
                try:
                    async with aclosing(provider.stream(request)) as events:
                        async for event in events:
                            timer.observe(event)
                            has_text |= isinstance(event, Delta)
                            yield event
                    return
                except WorkerLost:
                    if has_text or attempt == MAX_ATTEMPTS:
                        raise

    async def complete(self, request: GenerateRequest) -> Completion:
        """Return the whole answer. Nothing of it is seen before its end, so a lost worker is always retried."""
        request = self._named(request)
        with self._admitted(request) as (provider, timer):
            for attempt in range(1, MAX_ATTEMPTS + 1):
                try:
                    return await _collect(provider, request, timer)
                except WorkerLost:
                    if attempt == MAX_ATTEMPTS:
                        raise
        raise AssertionError("the loop returns or raises")

    async def embed(self, request: EmbedRequest) -> Embedded:
        """Return one input's vector, or one pair's score. A lost worker is tried again, as in `complete`."""
        model = self.resolve(request.model)
        PRIORITY_RANGE.check("priority", request.priority)
        if request.dimensions is not None:
            DIMENSIONS_RANGE.check("dimensions", request.dimensions)
        with self._place(model, input_bytes(request.input), is_patient=request.is_patient) as timer:
            for attempt in range(1, MAX_ATTEMPTS + 1):
                try:
                    return await _embedded(model.provider, request, timer)
                except WorkerLost:
                    if attempt == MAX_ATTEMPTS:
                        raise
        raise AssertionError("the loop returns or raises")

    async def tokenize(self, name: str | None, prompt: Prompt, *, add_special: bool = True) -> tuple[int, ...]:
        model = self.resolve(name)
        with model.admission.place(prompt_bytes(prompt)):
            return await model.provider.tokenize(prompt, add_special=add_special)

    async def detokenize(self, name: str | None, tokens: tuple[int, ...]) -> str:
        model = self.resolve(name)
        with model.admission.place(len(tokens)):
            return await model.provider.detokenize(tokens)

    def _named(self, request: GenerateRequest) -> GenerateRequest:
        """Spell out the adapter that the model's name may stand for."""
        adapter = self.adapter(request.model)
        return msgspec.structs.replace(request, lora=request.lora or adapter) if adapter else request

    @contextmanager
    def _admitted(self, request: GenerateRequest) -> Iterator[tuple[ModelProvider, RequestTimer]]:
        """Hold a place in the model's queue for as long as the request is served."""
        model = self.resolve(request.model)
        check_adapter(model, request.lora)
        check_sampling(request.sampling)
        PRIORITY_RANGE.check("priority", request.priority)
        check_stopping(request.stopping)
        if request.constraint is not None:
            check_constraint(request.constraint)
        if request.logprobs is not None:
            LOGPROBS_RANGE.check("logprobs", request.logprobs)
        if request.prompt_logprobs is not None:
            LOGPROBS_RANGE.check("prompt_logprobs", request.prompt_logprobs)
        if request.n_keep is not None:
            N_KEEP_RANGE.check("n_keep", request.n_keep)
        with self._place(model, prompt_bytes(request.prompt)) as timer:
            yield model.provider, timer

    @contextmanager
    def _place(self, model: ServedModel, cost: int, *, is_patient: bool = False) -> Iterator[RequestTimer]:
        """Hold a place in the model's queue; what becomes of it is counted."""
        timer = RequestTimer(model.key)
        try:
            model.admission.enter(cost, is_patient=is_patient)
        except Overloaded as error:
            timer.fail(error)
            timer.finish()
            raise
        try:
            yield timer
        except BaseException as error:
            timer.fail(error)
            raise
        finally:
            model.admission.leave(cost, timer.finish())

    def _known(self) -> str:
        return ", ".join(repr(model.key) for model in self.models) or "none: no model is configured"


async def _collect(provider: Provider, request: GenerateRequest, timer: RequestTimer) -> Completion:
    text: list[str] = []
    reasoning: list[str] = []
    calls = CollectedCalls()
    logprobs: list[TokenLogprob] | None = None if request.logprobs is None else []
    prompt: list[PromptToken] | None = None if request.prompt_logprobs is None else []
    async with aclosing(provider.stream(request)) as events:
        async for event in events:
            timer.observe(event)
            if isinstance(event, Delta):
                text.append(event.text)
                reasoning.append(event.reasoning)
                calls.add(event.calls)
                if logprobs is not None:
                    logprobs += event.logprobs
            elif isinstance(event, PromptScored) and prompt is not None:
                prompt += event.tokens
            elif isinstance(event, Finished):
                whole = calls.whole()
                return Completion(
                    "".join(text), event.reason, event.usage, logprobs, prompt, "".join(reasoning), whole
                )
    raise WorkerLost("the answer ended without its end")


async def _embedded(provider: Provider, request: EmbedRequest, timer: RequestTimer) -> Embedded:
    async with aclosing(provider.embed(request)) as events:
        async for event in events:
            timer.observe(event)
            if isinstance(event, Embedded):
                return event
    raise WorkerLost("the answer ended without its end")
