"""The one table from errors to HTTP: status, type and body. The same body serves errors inside a stream.

    OcakError
    ├── InvalidRequest
    │   └── UnsupportedParameter    a field that ocak knows and cannot honour yet
    ├── ModelUnavailable
    │   └── ShuttingDown            the server ends before the answer could
    └── HttpError                   what HTTP itself refuses
        ├── BadHost · ForbiddenOrigin · RequestTimeout · UnsupportedEncoding · HeadTooLarge
        └── PathNotFound · MethodNotAllowed

Errors that nobody raised on purpose become 500 without a word of their text: the log has it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException

from ocak.core.errors import (
    BodyTooLarge,
    ConversationNotFound,
    GenerationFailed,
    InvalidRequest,
    LoadFailed,
    ModelNotFound,
    ModelUnavailable,
    OcakError,
    Overloaded,
    StateFileError,
    Unauthorized,
    WorkerLost,
)

Header = tuple[bytes, bytes]


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class ShuttingDown(ModelUnavailable):
    code = "shutting_down"


class HttpError(OcakError):
    code = "http_error"


class BadHost(HttpError):
    code = "host_not_allowed"


class ForbiddenOrigin(HttpError):
    code = "origin_not_allowed"


class RequestTimeout(HttpError):
    code = "request_timeout"


class UnsupportedEncoding(HttpError):
    code = "unsupported_encoding"


class HeadTooLarge(HttpError):
    code = "head_too_large"


class PathNotFound(HttpError):
    code = "path_not_found"


class MethodNotAllowed(HttpError):
    code = "method_not_allowed"


class Meaning(NamedTuple):
    """What an error is to an HTTP client; `retry_s` is the Retry-After of an error that names none."""

    status: int
    type: str
    retry_s: float | None = None


MEANINGS: dict[type[OcakError], Meaning] = {
    InvalidRequest: Meaning(400, "invalid_request_error"),
    Unauthorized: Meaning(401, "authentication_error"),
    ForbiddenOrigin: Meaning(403, "permission_error"),
    ModelNotFound: Meaning(404, "not_found_error"),
    PathNotFound: Meaning(404, "not_found_error"),
    ConversationNotFound: Meaning(404, "not_found_error"),
    MethodNotAllowed: Meaning(405, "invalid_request_error"),
    RequestTimeout: Meaning(408, "invalid_request_error"),
    StateFileError: Meaning(409, "conflict_error"),
    BodyTooLarge: Meaning(413, "invalid_request_error"),
    UnsupportedEncoding: Meaning(415, "invalid_request_error"),
    BadHost: Meaning(421, "permission_error"),
    HttpError: Meaning(400, "invalid_request_error"),
    HeadTooLarge: Meaning(431, "invalid_request_error"),
    Overloaded: Meaning(429, "overloaded_error", retry_s=1),
    GenerationFailed: Meaning(500, "server_error"),
    ModelUnavailable: Meaning(503, "unavailable_error", retry_s=5),
    WorkerLost: Meaning(503, "unavailable_error", retry_s=1),
    LoadFailed: Meaning(503, "unavailable_error"),
    OcakError: Meaning(500, "server_error"),
}


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success, as OpenAI's clients read it."""

    error: ErrorDetail


def meaning(error: OcakError) -> Meaning:
    """Return the row of the nearest class up the tree."""
    return next(MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS)


def is_ours(error: OcakError) -> bool:
    """Whether the operator should see it in the log: the server failed, not the caller."""
    return meaning(error).status == 500


def body(error: OcakError) -> bytes:
    detail = ErrorDetail(error.message, meaning(error).type, error.param, error.code)
    return msgspec.json.encode(ErrorBody(detail))


def headers(error: OcakError) -> list[Header]:
    """What an error adds to the answer's headers."""
    found: list[Header] = []
    retry_s = error.retry_after_s if error.retry_after_s is not None else meaning(error).retry_s
    if retry_s is not None and meaning(error).retry_s is not None:
        found.append((b"retry-after", b"%d" % max(1, math.ceil(retry_s))))
    if isinstance(error, Unauthorized):
        found.append((b"www-authenticate", b"Bearer"))
    return found


def internal(request_id: str) -> OcakError:
    """What a caller hears of an error that nobody foresaw."""
    return OcakError(f"internal error; the server's log has it under request id {request_id}")


def from_router(error: HTTPException, method: str, path: str) -> OcakError:
    """Translate what the router raises for a path or a method that is not there."""
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{method} is not allowed here; use {allowed}")
    return PathNotFound(f"there is no {path[:200]!r} here; /docs lists what there is")
