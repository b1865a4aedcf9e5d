"""Every error that ocak raises on purpose. Knows no transport: status codes live in `api/errors.py`.

    OcakError
    ├── InvalidRequest              the caller's input: names the field, the limit and the way out
    │   ├── ContextLengthExceeded   the prompt does not fit the context of a sequence
    │   └── BodyTooLarge            the request's bytes exceed the limit
    ├── Unauthorized                no key, or a wrong one
    ├── ModelNotFound               no model is registered under that key
    ├── ConversationNotFound        no conversation was saved under that name
    ├── Overloaded                  the queue is full: try again after `retry_after_s`
    ├── ModelUnavailable            the model is loading, restarting or failed
    ├── WorkerLost                  the worker ended while it held the request
    ├── GenerationFailed            the engine could not go on with this request
    ├── LoadFailed                  a worker could not load its model
    │   └── DoesNotFit              it would take more memory than can be had
    ├── ModelFileError              a model file is missing, truncated or lying
    ├── StateFileError              a saved conversation cannot be written, read, or used here
    ├── DownloadError               a model could not be fetched whole
    └── ConfigError                 a setting is unknown, mistyped or out of range

Each class has a stable `code`, by which an error crosses a process boundary: `to_wire` and `from_wire`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import msgspec


class OcakError(Exception):
    """Base of all; `param` names the offending field, `retry_after_s` says when a retry may help."""

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(OcakError):
    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class BodyTooLarge(InvalidRequest):
    code = "body_too_large"


class Unauthorized(OcakError):
    code = "invalid_api_key"


class ModelNotFound(OcakError):
    code = "model_not_found"


class ConversationNotFound(OcakError):
    code = "conversation_not_found"


class Overloaded(OcakError):
    code = "overloaded"


class ModelUnavailable(OcakError):
    code = "model_unavailable"


class WorkerLost(OcakError):
    code = "worker_lost"


class GenerationFailed(OcakError):
    code = "generation_failed"


class LoadFailed(OcakError):
    code = "load_failed"


class DoesNotFit(LoadFailed):
    code = "does_not_fit"


class ModelFileError(OcakError):
    code = "model_file_invalid"


class StateFileError(OcakError):
    code = "state_file_invalid"


class DownloadError(OcakError):
    code = "download_failed"


class ConfigError(OcakError):
    code = "config_invalid"


class WireError(msgspec.Struct, frozen=True):
    """An error on its way between two processes."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


def to_wire(error: OcakError) -> WireError:
    return WireError(error.code, error.message, error.param, error.retry_after_s)


def from_wire(wire: WireError) -> OcakError:
    """Rebuild the error; an unknown code becomes a plain `OcakError`."""
    kind = next((kind for kind in _tree(OcakError) if kind.code == wire.code), OcakError)
    return kind(wire.message, param=wire.param, retry_after_s=wire.retry_after_s)


def _tree(root: type[OcakError]) -> Iterator[type[OcakError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)
