"""Which names stand for a model with an adapter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from ocak.core.errors import InvalidRequest, ModelNotFound
from ocak.core.request import GenerateRequest, TextPrompt
from ocak.gateway.adapters import adapted_names, check_adapter
from ocak.gateway.admission import Admission, QueueLimits
from ocak.gateway.gateway import Gateway, ServedModel
from ocak.providers.echo import EchoProvider


@dataclass(frozen=True)
class Model:
    key: str
    adapters: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


def names(*models: Model) -> dict[str, tuple[str, str]]:
    return {name: (found.model.key, found.adapter) for name, found in adapted_names(models).items()}


def test_an_adapter_answers_to_its_own_name_and_to_each_of_its_models_with_its_own() -> None:
    target = ("base", "sql")
    assert names(Model("base", ("sql",), ("alias",))) == {"sql": target, "base:sql": target, "alias:sql": target}


def test_a_name_that_two_models_adapters_share_needs_the_models() -> None:
    assert set(names(Model("a", ("x",)), Model("b", ("x",)))) == {"a:x", "b:x"}


def test_a_models_own_name_is_the_models() -> None:
    assert set(names(Model("a", ("b",)), Model("b"), Model("a:b"))) == set()


def test_an_adapter_of_another_model_is_refused_with_those_there_are() -> None:
    check_adapter(Model("a", ("x",)), "")
    check_adapter(Model("a", ("x",)), "x")
    with pytest.raises(InvalidRequest, match="'a' has no LoRA adapter 'y'; there is 'x'"):
        check_adapter(Model("a", ("x",)), "y")
    with pytest.raises(InvalidRequest, match="none: serve it with --lora"):
        check_adapter(Model("a"), "y" * 10_000)


def request(model: str, lora: str = "") -> GenerateRequest:
    return GenerateRequest(id="1", model=model, prompt=TextPrompt("hello"), lora=lora)


async def test_the_gateway_spells_an_adapter_out_whoever_asks() -> None:
    echo = EchoProvider("base")
    admission = Admission(QueueLimits(parallel=1, max_queued=1))
    gateway = Gateway([ServedModel("base", echo, admission, adapters=("sql",))])
    for asked in (request("base"), request("sql"), request("base:sql"), request("base", "sql")):
        await gateway.complete(asked)
        async for _ in gateway.stream(asked):
            pass
    assert [one.lora for one in echo.requests] == ["", "", *["sql"] * 6]
    with pytest.raises(ModelNotFound, match="did you mean 'base:sql'"):
        gateway.resolve("base:sqll")
    assert admission.in_flight == 0
