"""`ocak.load`: a model in this process, for scripts and notebooks. No server, no port.

Every method may be called from any thread. Decides nothing of its own: requests go through the gateway's checks
and the engine that servers have. What ends llama.cpp ends the process, for there is no other one.
"""

from __future__ import annotations

import itertools
import logging
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import overload

import msgspec

from ocak.api.choices import complete_all
from ocak.core.events import FinishReason, PromptToken, TokenLogprob, Usage
from ocak.core.limits import INT32_MAX
from ocak.core.request import DEFAULT_TENANT, Prompt
from ocak.core.status import EngineStats, ModelInfo
from ocak.fleet.process import ENVIRONMENT
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Completion, Gateway, ServedModel
from ocak.offline.requests import Chat, PromptLike, as_prompt, as_request, is_batch
from ocak.offline.session import Session
from ocak.offline.settings import plan
from ocak.offline.stream import TextStream

logging.getLogger("ocak").addHandler(logging.NullHandler())  # what is logged is for the caller to show

SPIN = "GOMP_SPINCOUNT"
NO_LIMITS = {"max_queued": INT32_MAX, "max_queued_bytes": 2**62}  # the queue is the caller's own


@dataclass(frozen=True, slots=True)
class Result:
    """A whole answer; `finish_reason` is "stop" or "length"."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: list[TokenLogprob] | None = None  # if asked for
    prompt_logprobs: list[PromptToken] | None = None  # likewise
    reasoning: str = ""  # what the model thought before it answered


def load(source: str | os.PathLike[str] = "embedded", **settings: object) -> Model:
    """Load a model into this process: "embedded", the path of a GGUF, or hf:owner/repo[:file-or-quant].

    Settings are those of `ocak serve`: context, parallel, kv_cells, kv_type, gpu_layers, threads, …
    Raises `ConfigError`, `ModelFileError`, `DownloadError`, `LoadFailed`.
    """
    return Model(source, settings)


class Model:
    """`with ocak.load("model.gguf") as model: for text in model.stream("…"): …`"""

    def __init__(self, source: str | os.PathLike[str], settings: dict[str, object]) -> None:
        planned = plan(source, settings)
        os.environ.setdefault(SPIN, ENVIRONMENT[SPIN])  # read when llama.cpp's library is loaded
        options = msgspec.structs.replace(planned.spec.options, holds_cores=False)
        self._key = planned.key
        self._batches = itertools.count(1)
        self._session = Session(planned.key)
        self._provider = self._session.provider
        weakref.finalize(self, self._session.abandon).atexit = False
        try:
            self._session.run(self._provider.open(options))
        except BaseException:
            self._session.abandon()
            raise
        queue = QueueLimits(self.info.parallel, **NO_LIMITS)
        served = ServedModel(planned.key, self._provider, Admission(queue), adapters=planned.adapters)
        self._gateway = Gateway([served])

    @property
    def info(self) -> ModelInfo:
        """What was loaded: names, sizes, context, device."""
        return self._provider.info

    @property
    def stats(self) -> EngineStats:
        """What the engine has done so far: slots, cells, steps, tokens."""
        return self._provider.status().engine

    def stream(self, prompt: PromptLike, **options: object) -> TextStream:
        """Begin an answer and return its text, piece by piece; leaving the loop or `close()` ends it.

        Options: temperature, top_k, top_p, min_p, seed, max_tokens, stop, … Raises `InvalidRequest`.
        """
        request = as_request(self._key, as_prompt(prompt), options)
        return TextStream(self._gateway.stream(request), self._session.submit)

    @overload
    def generate(self, prompts: str | list[int] | list[dict[str, str]], **options: object) -> Result: ...

    @overload
    def generate(
        self, prompts: list[str] | list[list[int]] | list[list[dict[str, str]]], **options: object
    ) -> list[Result]: ...

    def generate(self, prompts: PromptLike | Sequence[PromptLike], **options: object) -> Result | list[Result]:
        """Return the answer to a prompt, or those to a list of prompts, computed together, in their order.

        Options as for `stream`, the same for all. The first failure ends the others and is raised.
        """
        if not is_batch(prompts):
            return self._answers([as_prompt(prompts)], options)[0]
        return self._answers([as_prompt(p, f"prompts[{at}]") for at, p in enumerate(prompts)], options)

    def tokenize(self, text: str | Chat, *, add_special: bool = True) -> list[int]:
        """Return the ids of a text, or of a conversation as the model reads it."""
        prompt = as_prompt(text, "text")
        return list(self._session.run(self._gateway.tokenize(None, prompt, add_special=add_special)))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids, special tokens written out."""
        return self._session.run(self._gateway.detokenize(None, tuple(tokens)))

    def save(self, path: str | os.PathLike[str], conversation: PromptLike) -> int:
        """Write what the prefix cache has of a prompt to a file; return how many of its tokens that are.

        Raises `StateFileError` if it has nothing, and for what the disk says.
        """
        prompt = as_prompt(conversation, "conversation")
        return self._session.run(self._provider.save_state(os.path.abspath(path), prompt, DEFAULT_TENANT, ""))

    def restore(self, path: str | os.PathLike[str]) -> int:
        """Put a saved conversation into the prefix cache, for prompts that begin with it; return its tokens.

        Only for files that this program wrote. Raises `StateFileError` for another model's and damaged ones.
        """
        return self._session.run(self._provider.restore_state(os.path.abspath(path), DEFAULT_TENANT, ""))

    def _answers(self, prompts: Sequence[Prompt], options: dict[str, object]) -> list[Result]:
        family = f"batch {next(self._batches)}"
        requests = [as_request(self._key, prompt, options, family) for prompt in prompts]
        completions = self._session.run(complete_all(self._gateway, requests)) if requests else []
        return [_result(completion) for completion in completions]

    def close(self) -> None:
        """End every answer and free the model's memory. Closing it again does nothing."""
        self._session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _result(completion: Completion) -> Result:
    return Result(
        text=completion.text,
        finish_reason=completion.reason,
        usage=completion.usage,
        logprobs=completion.logprobs,
        prompt_logprobs=completion.prompt,
        reasoning=completion.reasoning,
    )
