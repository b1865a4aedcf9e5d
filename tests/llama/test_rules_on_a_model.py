"""Allowed tokens, bad words and an answer's least length, on a tiny real model."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as c

from ocak.core.limits import SAMPLING_RANGES, check_sampling
from ocak.core.request import SAMPLERS, Sampling
from ocak.engine.engine import Engine
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.runner import Chunk
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.llama.sampler import LlamaSampler, SamplerFactory
from ocak.llama.token_mask import TokenMask

GREEDY = Sampling(temperature=0)
DRAWN = Sampling(temperature=1.5, seed=5, top_k=0, top_p=1, min_p=0)
STATEFUL = Sampling(temperature=1, seed=5, dry_multiplier=2, xtc_probability=0.5, repetition_penalty=1.2)
LEARNING = Sampling(seed=5, mirostat=1, mirostat_tau=3)
ADAPTIVE = Sampling(seed=5, adaptive_target=0.3)
BOTH = pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
CONTEXT = 256
PROMPT = [(5 * i) % 240 + 1 for i in range(40)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


def sizes(kv_cells: int, parallel: int) -> ContextOptions:
    return ContextOptions(
        context=CONTEXT,
        parallel=parallel,
        kv_cells=kv_cells,
        batch_tokens=64,
        threads=1,
        kv_type="f16",
        kv_offload=True,
        flash_attn="auto",
    )


def serve(
    model: LlamaModel, sequences: list[Sequence], *, kv_cells: int = CONTEXT, parallel: int = 1
) -> tuple[list[list[int]], int]:
    """Serve them all at once; return their answers, and how often one was preempted."""
    options = sizes(kv_cells, parallel)
    context = LlamaContext(model, options)
    limits = SchedulerLimits(parallel, CONTEXT, kv_cells, options.batch_tokens)
    engine = Engine(LlamaRunner(context, model.vocabulary), limits)
    for sequence in sequences:
        engine.submit(sequence)
    while engine.has_work:
        engine.step()
    context.close()
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences], engine.stats().preemptions


def answer(model: LlamaModel, sampling: Sampling, rules: TokenRules = NO_RULES, num_tokens: int = 30) -> list[int]:
    sequence = Sequence(0, list(PROMPT), sampling, num_tokens, rules.end_tokens, rules=rules)
    return serve(model, [sequence])[0][0]


@BOTH
def test_an_answer_holds_allowed_tokens_alone(model: LlamaModel, sampling: Sampling) -> None:
    allowed = frozenset({3, 50, 51, 52})
    assert not set(answer(model, sampling)) <= allowed
    assert set(answer(model, sampling, TokenRules(allowed=allowed))) <= allowed


@BOTH
def test_a_bad_token_never_comes(model: LlamaModel, sampling: Sampling) -> None:
    plain = answer(model, sampling)
    bad = frozenset((token,) for token in plain)
    assert not {(token,) for token in answer(model, sampling, TokenRules(bad_words=bad))} & bad


@BOTH
def test_a_bad_word_of_many_tokens_is_never_completed(model: LlamaModel, sampling: Sampling) -> None:
    allowed = frozenset({60, 61, 62})  # so that words come often
    plain = answer(model, sampling, TokenRules(allowed=allowed), 60)
    bad = frozenset({*windows(plain, 2)[20:22], *windows(plain, 3)[30:32]})
    held = answer(model, sampling, TokenRules(allowed=allowed, bad_words=bad), 60)
    assert len(held) == 60 and len(set(held)) > 1
    assert not bad & {*windows(held, 2), *windows(held, 3)}


def windows(tokens: list[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def test_a_bad_word_gives_way_where_nothing_else_is_left(model: LlamaModel) -> None:
    rules = TokenRules(allowed=frozenset({60}), bad_words=frozenset({(60, 60)}))
    assert answer(model, DRAWN, rules, 5) == answer(model, GREEDY, rules, 5) == [60] * 5


@BOTH
def test_an_answer_ends_after_its_least_length_and_not_before(model: LlamaModel, sampling: Sampling) -> None:
    others = {60, 61, 62}
    ends = frozenset(range(model.vocabulary.size)) - others
    assert len(answer(model, sampling, TokenRules(end_tokens=ends))) == 1
    held = answer(model, sampling, TokenRules(end_tokens=ends, min_tokens=4))
    assert set(held[:4]) <= others and len(held) == 5 and held[4] in ends


@pytest.mark.parametrize("sampling", [STATEFUL, LEARNING, ADAPTIVE], ids=["history", "mirostat", "adaptive"])
def test_a_preempted_sequence_keeps_its_sampler_which_takes_each_token_once(
    model: LlamaModel, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = TokenRules(bad_words=frozenset({(60, 61), (5,)}), end_tokens=frozenset({7}), min_tokens=70)
    seen: dict[LlamaSampler, list[np.ndarray]] = {}
    pick = LlamaSampler.pick

    def recorded(sampler: LlamaSampler, context: object, row: int, logits: np.ndarray) -> int:
        seen.setdefault(sampler, []).append(logits.copy())
        return pick(sampler, context, row, logits)

    monkeypatch.setattr(LlamaSampler, "pick", recorded)
    sequences = [Sequence(i, PROMPT[i:], sampling, 90, rules.end_tokens, rules=rules) for i in range(4)]
    answers, num_preempted = serve(model, sequences, parallel=4)
    assert num_preempted > 0 and len(seen) == 4
    for sequence, held in zip(sequences, answers, strict=True):
        assert isinstance(sequence.sampler, LlamaSampler)
        logits = seen[sequence.sampler]
        assert held == replayed(model, sequence, logits)


def replayed(model: LlamaModel, sequence: Sequence, logits: list[np.ndarray]) -> list[int]:
    """Pick from the same logits with a sampler that was never interrupted."""
    sampler = SamplerFactory(model.vocabulary).new(
        sequence.sampling, sequence.tokens[: sequence.num_prompt], sequence.rules
    )
    mask = TokenMask(sequence.rules, model.vocabulary.size)
    tokens = []
    for row in logits:
        row[mask.forbidden()] = -np.inf
        data = (c.llama_token_data * len(row))(*[c.llama_token_data(i, x, 0.0) for i, x in enumerate(row)])
        array = c.llama_token_data_array(data, len(row), -1, False)
        c.llama_sampler_apply(sampler.chain, ctypes.byref(array))
        tokens.append(int(array.data[array.selected].id))
        c.llama_sampler_accept(sampler.chain, tokens[-1])
        mask.accept(tokens[-1])
    sampler.close()
    return tokens


@BOTH
def test_the_logits_stay_the_models_own(model: LlamaModel, sampling: Sampling) -> None:
    context = LlamaContext(model, sizes(CONTEXT, 1))
    runner = LlamaRunner(context, model.vocabulary)
    seen = []
    for rules in (NO_RULES, TokenRules(allowed=frozenset({3}))):
        sampler = runner.new_sampler(sampling, PROMPT, rules)
        (token,) = runner.run([Chunk(0, 0, PROMPT, sampler)])
        seen.append((token, context.logits()[0].copy()))
        sampler.close()
        runner.trim(0, 0)
    context.close()
    assert seen[1][0] == 3 != seen[0][0]
    assert np.array_equal(seen[0][1], seen[1][1])


def numbers(name: str) -> st.SearchStrategy[float]:
    """Values of a field's whole range, its ends and its default among them."""
    allowed, default = SAMPLING_RANGES[name], getattr(Sampling(), name)
    ends = st.sampled_from([default, type(default)(allowed.low), type(default)(allowed.high)])
    if isinstance(default, int):
        return ends | st.integers(int(allowed.low), int(allowed.high))
    return ends | st.floats(allowed.low, allowed.high)


samplings = st.builds(
    Sampling,
    seed=st.integers(0, 2**32 - 1),
    samplers=st.permutations(SAMPLERS).map(tuple),
    logit_bias=st.dictionaries(st.integers(0, 250), st.floats(-100, 100), max_size=3),
    **{name: numbers(name) for name in SAMPLING_RANGES},
)


@settings(max_examples=100, deadline=None)
@given(samplings, st.none() | st.frozensets(st.integers(0, 250), min_size=1, max_size=3))
def test_whatever_the_settings_a_token_comes_that_the_rules_allow(
    model: LlamaModel, sampling: Sampling, allowed: frozenset[int] | None
) -> None:
    check_sampling(sampling)
    held = answer(model, sampling, TokenRules(allowed=allowed), 6)
    assert len(held) == 6
    assert set(held) <= (allowed or set(range(model.vocabulary.size)))
