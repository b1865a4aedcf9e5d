"""Turns whatever went wrong into what the caller hears, and into a line of the log when the server is at fault."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException

from ocak.api import errors
from ocak.api.errors import Header
from ocak.api.exchange import Exchange
from ocak.core.errors import OcakError

log = logging.getLogger(__name__)


def heard(error: Exception, exchange: Exchange) -> OcakError:
    """Return the error as the caller may hear it."""
    match error:
        case OcakError():
            if errors.is_ours(error):
                log.error("request %s failed: %s: %s", exchange.request_id, error.code, error.message)
            return error
        case HTTPException():
            return errors.from_router(error, exchange.method, exchange.path)
        case _:
            log.error("request %s failed unexpectedly", exchange.request_id, exc_info=error)
            return errors.internal(exchange.request_id)


async def refuse(exchange: Exchange, error: OcakError, more: list[Header]) -> None:
    """Answer with the error."""
    headers = [*errors.headers(error), *more]
    await exchange.answer(errors.body(error), status=errors.meaning(error).status, headers=headers)


def in_band(error: OcakError) -> bytes:
    """Return the error as the last event of a stream that has begun."""
    return b"data: %b\n\n" % errors.body(error)
