"""Compiled grammars are kept, and a wrong one is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from ocak.core.errors import InvalidRequest
from ocak.core.request import Constraint
from ocak.llama import library
from ocak.llama.grammar import GrammarCompiler
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.worker.grammars import MAX_KEPT, Grammars


@pytest.fixture(scope="module")
def compiler(tiny_model: Path) -> Iterator[GrammarCompiler]:
    library.initialise()
    model = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield GrammarCompiler(model.vocabulary)
    model.close()


@pytest.fixture
def kept(compiler: GrammarCompiler) -> Iterator[Grammars]:
    grammars = Grammars(compiler)
    yield grammars
    grammars.close()


TENANT = "one"


def regex(text: str, param: str = "f") -> Constraint:
    return Constraint("regex", text, param)


async def test_what_many_ask_for_at_once_is_compiled_once(kept: Grammars, compiler: GrammarCompiler) -> None:
    with mock.patch.object(compiler, "compile", wraps=compiler.compile) as compiled:
        together = await asyncio.gather(*(kept.compiled(regex("a"), TENANT) for _ in range(5)))
        assert await kept.compiled(regex("a"), TENANT) is together[0]
    assert compiled.call_count == 1 and len(set(map(id, together))) == 1


async def test_the_oldest_goes_when_there_are_many(kept: Grammars) -> None:
    first = await kept.compiled(regex("a0"), TENANT)
    for i in range(MAX_KEPT):
        await kept.compiled(regex(f"a{i}"), TENANT)
    assert await kept.compiled(regex("a0"), TENANT) is first
    await kept.compiled(regex("one more"), TENANT)
    await kept.compiled(regex("and another"), TENANT)
    assert await kept.compiled(regex("a0"), TENANT) is first
    assert len(kept) == MAX_KEPT


async def test_a_wrong_one_is_refused_each_time_and_by_its_own_field(kept: Grammars) -> None:
    for param in ("one", "two"):
        with pytest.raises(InvalidRequest) as refusal:
            await kept.compiled(regex("a(", param), TENANT)
        assert refusal.value.param == param
    assert len(kept) == 0


async def test_a_request_that_leaves_takes_nobody_elses_grammar_away(kept: Grammars) -> None:
    leaving = asyncio.create_task(kept.compiled(regex("ab"), TENANT))
    staying = asyncio.create_task(kept.compiled(regex("ab"), TENANT))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    assert leaving.cancelled() and len(kept) == 1


async def test_a_model_that_cannot_end_an_answer_follows_no_grammar(compiler: GrammarCompiler) -> None:
    grammars = Grammars(compiler)
    with (
        mock.patch.object(type(compiler), "can_compile", new=False),
        pytest.raises(InvalidRequest, match="no token that ends"),
    ):
        await grammars.compiled(regex("a"), TENANT)
    grammars.close()


async def test_a_tenants_many_slow_ones_delay_nobody_elses(kept: Grammars, compiler: GrammarCompiler) -> None:
    """All compile on one thread; each tenant has one place in its queue."""
    order: list[str] = []
    with mock.patch.object(compiler, "compile", side_effect=lambda source: order.append(source)):
        slow = [asyncio.create_task(kept.compiled(regex(f"a{i}"), "greedy")) for i in range(5)]
        await asyncio.sleep(0)
        other = asyncio.create_task(kept.compiled(regex("b"), "modest"))
        await asyncio.gather(*slow, other)
    assert [i for i, source in enumerate(order) if "/b/" in source] == [1]
