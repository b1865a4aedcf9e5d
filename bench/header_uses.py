"""Does with a model file whatever the front does before a worker sees it, and judges how that ended.

A result, or one clear line in a `ModelFileError` or `ConfigError`: everything else is raised as it is.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ocak.cli.compose import plan_models
from ocak.cli.settings import ModelSettings, ServerSettings, Settings
from ocak.core.errors import ConfigError, ModelFileError
from ocak.memory.estimate import KvSettings, draft_bytes, estimate, kv_bytes, score_bytes
from ocak.memory.gguf_header import GgufHeader, GgufModel, read_header, read_model
from ocak.memory.lora_file import read_adapter
from ocak.memory.model_kind import can_split, kind_of, pooling_of

HANG_S = 5.0  # of CPU
LONGEST_MESSAGE = 600  # characters, the path among them
INT64_MAX = 2**63 - 1
KV = (KvSettings(1), KvSettings(16_384, "q8_0", "q8_0"), KvSettings(2**31 - 1, "f32", "f32"))
CONTEXT = 4096
POOLINGS = ("auto", "none", "mean", "rank")


class Hang(Exception):
    """More CPU than anything may take."""


class Unclear(Exception):
    """A refusal that is not one readable line, or a result that cannot be."""


class Uses:
    """`base` is the model of which a file may be an adapter, `adapter` one that a file may be the model of."""

    def __init__(self, base: Path, adapter: Path) -> None:
        self._base = read_model(base)
        self._adapter = adapter

    def use(self, path: Path) -> tuple[str, ...]:
        """Return which uses had a result; the first is reading, and without it there is no other."""
        with _limited():
            header = _result(lambda: read_header(path))
            if header is None:
                return ()
            _check(header)
            uses = self._uses(path, header)
            return ("read", *dict.fromkeys(name for name, use in uses if _result(use) is not None))

    def _uses(self, path: Path, header: GgufHeader) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "context", lambda: header.context_length
        for pooling in POOLINGS:
            yield "kind", lambda pooling=pooling: _kind(header, pooling)  # type: ignore[misc]
        for settings in KV:
            yield "KV", lambda settings=settings: _sane(kv_bytes(header, settings))  # type: ignore[misc]
        yield "adapter", lambda: read_adapter(path, self._base)
        yield "plan", lambda: _sane(_planned(path))
        model = _result(lambda: read_model(path))
        if model is not None:
            yield "model", lambda: model
            yield from self._uses_of_whole(model)

    def _uses_of_whole(self, model: GgufModel) -> Iterator[tuple[str, Callable[[], object]]]:
        yield "estimate", lambda: _sane(estimate(model, KV[1]).total_bytes)
        yield "scores", lambda: _sane(score_bytes(model.header, 512, CONTEXT))
        yield "draft", lambda: _sane(draft_bytes(model, CONTEXT))
        yield "base", lambda: read_adapter(self._adapter, model)


def _result(use: Callable[[], object]) -> object:
    """What a use gives; None where it refuses."""
    try:
        return use()
    except (ModelFileError, ConfigError) as error:
        if not error.message.isprintable() or len(error.message) > LONGEST_MESSAGE:
            raise Unclear(f"{error.message[:2000]!r}") from error
    return None


def _check(header: GgufHeader) -> None:
    """What a header promises must lie in its file."""
    ends = [header.data_offset + tensor.offset + tensor.num_bytes for tensor in header.tensors]
    if max(ends, default=0) > header.file_bytes or min(ends, default=1) <= 0:
        raise Unclear(f"tensors end at {max(ends)} in a file of {header.file_bytes}")


def _kind(header: GgufHeader, pooling: str) -> object:
    chosen = pooling_of(header, embedding=pooling == "mean", pooling=pooling)
    return kind_of(chosen), chosen is not None and can_split(header, chosen)


def _planned(path: Path) -> int:
    [plan] = plan_models(Settings(ServerSettings(), {"m": ModelSettings(source=str(path))}))
    return plan.spec.estimated_bytes


def _sane(num_bytes: int) -> int:
    if not 0 <= num_bytes <= INT64_MAX:
        raise Unclear(f"{num_bytes} bytes")
    return num_bytes


@contextmanager
def _limited() -> Iterator[None]:
    """Raise `Hang` in what takes too much CPU."""

    def end(*_: object) -> None:
        raise Hang(f"over {HANG_S} s of CPU")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
