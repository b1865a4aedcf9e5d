"""Liveness, readiness and start-up, from what the models' owners say. A busy model is ready; a frozen one is not.

Live: the process serves. Ready: every model would answer, or the one that `?model=` names; those that are loaded
when somebody asks do not hold it up. Started: every model has been ready once, its load has failed for good, or it
waits to be asked for; once true it stays so.
Whoever has no key hears the verdict alone, without names and causes.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ocak.api.exchange import Exchange
from ocak.core.errors import ModelNotFound
from ocak.core.residence import ModelState
from ocak.core.status import ModelStatus
from ocak.gateway.gateway import Gateway, ServedModel

NO_STORE = ((b"cache-control", b"no-store"),)


class ModelHealth(msgspec.Struct, frozen=True):
    state: ModelState
    is_ready: bool
    error: str | None


class HealthAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    status: str
    models: dict[str, ModelHealth] | None = None


class Health:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def live(self, exchange: Exchange) -> None:
        await exchange.answer(msgspec.json.encode(HealthAnswer("live")), headers=NO_STORE)

    async def ready(self, exchange: Exchange) -> None:
        name = exchange.query("model")
        models = self._gateway.models if name is None else (self._resolve(name, exchange),)
        expected = models if name is not None else [model for model in models if _is_expected(model)]
        is_ready = all(model.provider.is_ready() for model in expected)
        await _answer(exchange, "ready" if is_ready else "not_ready", is_ready, models)

    async def startup(self, exchange: Exchange) -> None:
        has_started = all(_has_started(model.provider.status()) for model in self._gateway.models)
        await _answer(exchange, "started" if has_started else "starting", has_started, self._gateway.models)

    def _resolve(self, name: str, exchange: Exchange) -> ServedModel:
        try:
            return self._gateway.resolve(name)
        except ModelNotFound:
            if exchange.tenant is None:
                raise ModelNotFound("there is no such model", param="model") from None
            raise


def _has_started(status: ModelStatus) -> bool:
    return status.load.count > 0 or status.state in ("ready", "failed") or not status.is_expected


def _is_expected(model: ServedModel) -> bool:
    return model.provider.status().is_expected


async def _answer(exchange: Exchange, verdict: str, is_good: bool, models: Iterable[ServedModel]) -> None:
    details = {model.key: _health(model) for model in models} if exchange.tenant is not None else None
    body = msgspec.json.encode(HealthAnswer(verdict, details))
    await exchange.answer(body, status=200 if is_good else 503, headers=NO_STORE)


def _health(model: ServedModel) -> ModelHealth:
    status = model.provider.status()
    return ModelHealth(status.state, model.provider.is_ready(), status.error)
