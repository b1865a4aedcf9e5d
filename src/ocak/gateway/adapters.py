"""Which names stand for a model with one of its LoRA adapters. Pure.

Each adapter answers to `base:adapter` for every name of its model, and to its own name where that is no model's
and no other model has an adapter of that name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ocak.core.errors import InvalidRequest

SHOWN_NAME = 100  # characters of an unknown adapter's name in the message


class Adaptable(Protocol):
    @property
    def key(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def adapters(self) -> tuple[str, ...]: ...


Model = TypeVar("Model", bound=Adaptable)


@dataclass(frozen=True, slots=True)
class Adapted(Generic[Model]):
    model: Model
    adapter: str


def adapted_names(models: Iterable[Model]) -> dict[str, Adapted[Model]]:
    """Return what each such name stands for."""
    all_models = list(models)
    counts = Counter(adapter for model in all_models for adapter in model.adapters)
    taken = {name for model in all_models for name in (model.key, *model.names)}
    found: dict[str, Adapted[Model]] = {}
    for model in all_models:
        for adapter in model.adapters:
            own = [adapter] if counts[adapter] == 1 else []
            for name in (*own, *(f"{base}:{adapter}" for base in (model.key, *model.names))):
                if name not in taken:
                    found[name] = Adapted(model, adapter)
    return found


def check_adapter(model: Adaptable, name: str) -> None:
    """Raise `InvalidRequest` for an adapter that the model does not have."""
    if name and name not in model.adapters:
        known = ", ".join(map(repr, model.adapters)) or "none: serve it with --lora NAME=PATH"
        raise InvalidRequest(
            f"the model {model.key!r} has no LoRA adapter {name[:SHOWN_NAME]!r}; there is {known}", param="lora"
        )
