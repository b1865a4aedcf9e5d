"""Which models there are, as OpenAI's clients read it, and how they are, as operators do."""

from __future__ import annotations

import msgspec

from ocak.api.exchange import Exchange
from ocak.core.embedding import ModelKind
from ocak.core.request import Sampling
from ocak.core.status import ModelStatus
from ocak.gateway.gateway import Gateway, ServedModel


class SamplingDefaults(msgspec.Struct, frozen=True):
    """What applies where a request is silent."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "ocak"
    root: str  # the model's key; differs from `id` for its other names
    parent: str | None = None  # of a LoRA adapter: the model that it changes
    kind: ModelKind | None = None  # what it does: text, embedding or rerank; null until it is known
    max_model_len: int | None  # tokens of a sequence, prompt and answer; null until it is known
    defaults: SamplingDefaults


class ModelCards(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: str = "list"


class ModelStatuses(msgspec.Struct, frozen=True):
    models: list[ModelStatus]


def _silent() -> SamplingDefaults:
    sampling = Sampling()
    return SamplingDefaults(*(getattr(sampling, name) for name in SamplingDefaults.__struct_fields__))


DEFAULTS = _silent()


class Models:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def list(self, exchange: Exchange) -> None:
        cards = [_card(name, m) for m in self._gateway.models for name in dict.fromkeys((m.key, *m.names))]
        cards += [
            _card(f"{model.key}:{adapter}", model, adapter)
            for model in self._gateway.models
            for adapter in model.adapters
        ]
        await exchange.answer(msgspec.json.encode(ModelCards(cards)))

    async def retrieve(self, exchange: Exchange) -> None:
        name = exchange.path_parameter("id")
        model = self._gateway.resolve(name)
        await exchange.answer(msgspec.json.encode(_card(name, model, self._gateway.adapter(name))))

    async def status(self, exchange: Exchange) -> None:
        statuses = [model.provider.status() for model in self._gateway.models]
        await exchange.answer(msgspec.json.encode(ModelStatuses(statuses)))


def _card(name: str, model: ServedModel, adapter: str = "") -> ModelCard:
    info = model.provider.status().info
    return ModelCard(
        id=name,
        created=model.created,
        root=f"{model.key}:{adapter}" if adapter else model.key,
        parent=model.key if adapter else None,
        kind=info.kind if info else None,
        max_model_len=context_of(model),
        defaults=DEFAULTS,
    )


def context_of(model: ServedModel) -> int | None:
    info = model.provider.status().info
    return info.context if info else None
