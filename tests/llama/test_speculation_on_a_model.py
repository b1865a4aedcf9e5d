"""Guesses on a real model: the same answers in fewer passes, told with the same log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.adapters import TinyAdapter, write_adapter

from ocak.core.lora import LoraAdapter
from ocak.core.request import Constraint, Sampling
from ocak.engine.engine import Engine
from ocak.engine.outputs import Sampled
from ocak.engine.rules import TokenRules
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.adapters import LlamaAdapters
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.grammar import GrammarCompiler
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.worker.constraints import source

CONTEXT = 512
FEW_WORDS = TokenRules(allowed=frozenset({40, 41, 42}))  # so that the answer repeats itself


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def adapters(model: LlamaModel, tmp_path_factory: pytest.TempPathFactory) -> LlamaAdapters:
    path = write_adapter(tmp_path_factory.mktemp("adapters") / "loud.gguf", TinyAdapter(seed=1))
    return LlamaAdapters(model, [LoraAdapter("loud", str(path))])


def sequence(sampling: Sampling, rules: TokenRules = FEW_WORDS) -> Sequence:
    return Sequence(0, [7, 8, 9, 10], sampling, 200, frozenset(), num_logprobs=2, rules=rules)


def serve(
    model: LlamaModel,
    sequence: Sequence,
    kv_cells: int,
    speculates: bool,
    adapters: LlamaAdapters | None = None,
) -> tuple[list[Sampled], int, Engine]:
    sizes = ContextOptions(CONTEXT, 2, kv_cells, 64, 1, "f16", True, "auto")
    context = LlamaContext(model, sizes)
    limits = SchedulerLimits(2, CONTEXT, kv_cells, 64, shares_cells=sizes.is_unified)
    engine = Engine(LlamaRunner(context, model.vocabulary, adapters), limits, speculates=speculates)
    if adapters is not None:
        sequence.adapter, sequence.num_prompt_logprobs = "loud", 1
    engine.submit(sequence)
    sampled: list[Sampled] = []
    while engine.has_work:
        sampled += [output for output in engine.step() if isinstance(output, Sampled)]
        engine.check_integrity()
    context.close()
    return sampled, engine.stats().steps, engine


@pytest.mark.parametrize("kv_cells", [2 * CONTEXT, CONTEXT], ids=["split", "unified"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0.7, seed=3, repetition_penalty=1.1),
        Sampling(temperature=1.0, seed=4, mirostat=2),
    ],
    ids=["greedy", "drawn, penalised", "mirostat"],
)
def test_the_answer_is_the_one_without_guesses(model: LlamaModel, sampling: Sampling, kv_cells: int) -> None:
    plain, plain_steps, _ = serve(model, sequence(sampling), kv_cells, speculates=False)
    guessed, steps, engine = serve(model, sequence(sampling), kv_cells, speculates=True)
    assert [output.token for output in guessed] == [output.token for output in plain]
    for one, other in zip(guessed, plain, strict=True):
        assert one.logprobs is not None and other.logprobs is not None
        assert one.logprobs.token == pytest.approx(other.logprobs.token, abs=0.02)
    if sampling.is_greedy:
        assert engine.stats().right_guesses > 20 and steps < plain_steps - 20


def test_an_adapters_answer_to_a_scored_prompt_is_the_one_without_guesses(
    model: LlamaModel, adapters: LlamaAdapters
) -> None:
    bare, _, _ = serve(model, sequence(Sampling(temperature=0)), CONTEXT, speculates=True)
    plain, _, _ = serve(model, sequence(Sampling(temperature=0)), CONTEXT, False, adapters)
    guessed, _, engine = serve(model, sequence(Sampling(temperature=0)), CONTEXT, True, adapters)
    assert [output.token for output in guessed] == [output.token for output in plain]
    for one, other in zip(guessed, plain, strict=True):
        assert one.logprobs is not None and other.logprobs is not None
        assert one.logprobs.token == pytest.approx(other.logprobs.token, abs=0.02)
    assert bare[-1].logprobs != guessed[-1].logprobs
    assert engine.stats().right_guesses > 20


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(seed=2)], ids=["greedy", "drawn"])
def test_an_answer_in_a_form_is_the_one_without_guesses(model: LlamaModel, sampling: Sampling) -> None:
    constraint = Constraint("regex", "((ab|ba|[0-9]{2}) ){30,60}", "guided_regex")
    answers = []
    for speculates in (False, True):
        grammar = GrammarCompiler(model.vocabulary).compile(source(constraint))
        formed = sequence(sampling, TokenRules(grammar=grammar))
        sampled, _, engine = serve(model, formed, CONTEXT, speculates)
        answers.append([output.token for output in sampled])
    assert answers[0] == answers[1]
    assert engine.stats().guessed_tokens > 0
