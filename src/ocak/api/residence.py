"""Loads, unloads, pins and unpins models while the server runs. Every answer is the model's state after it."""

from __future__ import annotations

import msgspec

from ocak.api.exchange import Exchange
from ocak.api.presence import present
from ocak.core.errors import InvalidRequest
from ocak.gateway.gateway import Gateway, Residence, ServedModel

LOAD_WITHIN_S = 3600.0
TRUTHS = {"true": True, "1": True, "false": False, "0": False}


class Residences:
    def __init__(self, gateway: Gateway, drain_s: float, stall_s: float) -> None:
        self._gateway = gateway
        self._drain_s = drain_s
        self._stall_s = stall_s

    async def load(self, exchange: Exchange) -> None:
        model, residence = self._find(exchange)
        if not _waits(exchange):
            residence.want()
            await _answer(exchange, model, status=202)
            return
        async with present(exchange, self._stall_s):
            await residence.load(LOAD_WITHIN_S)
            await _answer(exchange, model)

    async def unload(self, exchange: Exchange) -> None:
        model, residence = self._find(exchange)
        await residence.unload(self._drain_s)
        await _answer(exchange, model)

    async def pin(self, exchange: Exchange) -> None:
        model, residence = self._find(exchange)
        residence.pin()
        await _answer(exchange, model)

    async def unpin(self, exchange: Exchange) -> None:
        model, residence = self._find(exchange)
        residence.unpin()
        await _answer(exchange, model)

    def _find(self, exchange: Exchange) -> tuple[ServedModel, Residence]:
        model = self._gateway.resolve(exchange.path_parameter("key"))
        if model.residence is None:
            raise InvalidRequest(f"model {model.key!r} is not loaded by this server", param="model")
        return model, model.residence


def _waits(exchange: Exchange) -> bool:
    value = exchange.query("wait")
    if value is None:
        return True
    if value not in TRUTHS:
        raise InvalidRequest(f"wait={value[:20]!r}: it is true or false", param="wait")
    return TRUTHS[value]


async def _answer(exchange: Exchange, model: ServedModel, status: int = 200) -> None:
    await exchange.answer(msgspec.json.encode(model.provider.status()), status=status)
