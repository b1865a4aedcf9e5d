"""Every sampler is llama.cpp's own: the same candidates on the same logits, by hand and by ocak."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from llama_cpp import llama_cpp as c

from ocak.core.request import KNOWN_SAMPLERS, SAMPLERS, Sampling
from ocak.llama import library
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.stages import SamplerStages

SEED = 7
PROMPT = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]
BREAKER = b"9"
OFF = Sampling(temperature=1, seed=SEED, top_k=0, top_p=1, min_p=0)
Logits = np.ndarray[tuple[int], np.dtype[np.float32]]
Candidates = list[tuple[int, float]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def logits(model: LlamaModel) -> Logits:
    """Some likely tokens and a long tail; what repeats the prompt is the likeliest."""
    drawn = np.random.default_rng(3).normal(0, 2, model.vocabulary.size).astype(np.float32)
    drawn[[8, 9, 20, 21, 22, 23]] = [9.0, 8.5, 8.0, 7.5, 7.0, 6.5]
    return drawn


def applied(stages: Sequence[object], logits: Logits, prompt: Sequence[int] = ()) -> tuple[Candidates, int]:
    """Apply the stages one after the other; return the candidates (id, logit) and the token picked, -1 if none."""
    data = (c.llama_token_data * len(logits))(*[c.llama_token_data(i, x, 0.0) for i, x in enumerate(logits)])
    array = c.llama_token_data_array(data, len(logits), -1, False)
    for stage in stages:
        for token in prompt:
            c.llama_sampler_accept(stage, token)
        c.llama_sampler_apply(stage, ctypes.byref(array))
        c.llama_sampler_free(stage)
    left = [(int(array.data[i].id), float(array.data[i].logit)) for i in range(array.size)]
    token = left[array.selected][0] if array.selected >= 0 else -1
    return sorted(candidate for candidate in left if candidate[1] > -np.inf), token


def dry(model: LlamaModel, multiplier: float, breakers: Sequence[bytes]) -> object:
    array = (ctypes.c_char_p * len(breakers))(*breakers)
    return c.llama_sampler_init_dry(model.vocabulary.pointer, multiplier, 1.75, 2, 64, array, len(breakers))


Stages = Callable[[LlamaModel], list[object]]

EACH: dict[str, tuple[dict[str, object], Stages]] = {
    "typical": ({"typical_p": 0.4}, lambda _: [c.llama_sampler_init_typical(0.4, 1)]),
    "top-n-sigma": ({"top_n_sigma": 1.0}, lambda _: [c.llama_sampler_init_top_n_sigma(1.0)]),
    "xtc": (
        {"xtc_probability": 1.0, "xtc_threshold": 0.1},
        lambda _: [c.llama_sampler_init_xtc(1.0, 0.1, 1, SEED)],
    ),
    "dry": ({"dry_multiplier": 2.0}, lambda m: [dry(m, 2.0, [b"\n", b":", b'"', b"*"])]),
    "dynamic temperature": (
        {"temperature": 1.2, "dynatemp_range": 0.8, "dynatemp_exponent": 1.5},
        lambda _: [c.llama_sampler_init_temp_ext(1.2, 0.8, 1.5)],
    ),
    "temperature": ({"temperature": 0.5}, lambda _: [c.llama_sampler_init_temp(0.5)]),
    "top-k": ({"top_k": 5}, lambda _: [c.llama_sampler_init_top_k(5)]),
    "top-p": ({"top_p": 0.7}, lambda _: [c.llama_sampler_init_top_p(0.7, 1)]),
    "min-p": ({"min_p": 0.2}, lambda _: [c.llama_sampler_init_min_p(0.2, 1)]),
    "penalties": (
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25},
        lambda m: [c.llama_sampler_init_penalties(m.vocabulary.size, 64, 1.3, 0.25, 0.5)],
    ),
    "infill": (
        {"top_k": 20, "samplers": ("top_k", "infill")},
        lambda m: [c.llama_sampler_init_top_k(20), c.llama_sampler_init_infill(m.vocabulary.pointer)],
    ),
}


@pytest.mark.parametrize(("fields", "by_hand"), EACH.values(), ids=EACH)
def test_each_sampler_leaves_llama_cpps_candidates_and_its_draw(
    model: LlamaModel, logits: Logits, fields: dict[str, object], by_hand: Stages
) -> None:
    sampling = msgspec.structs.replace(OFF, **fields)
    ours, token = applied(SamplerStages(model.vocabulary).of(sampling, is_masked=False), logits, PROMPT)
    theirs, their_token = applied([*by_hand(model), c.llama_sampler_init_dist(SEED)], logits, PROMPT)
    unsampled, _ = applied([c.llama_sampler_init_dist(SEED)], logits)
    assert ours == theirs != unsampled, "the sampler changes nothing, or not as llama.cpp's"
    assert token == their_token


THEIR_NAMES = {"typical": "typ_p", "temp": "temperature", "temp_ext": "temperature"}
NOT_NAMED = {"greedy", "dist", "mirostat", "mirostat_v2", "logit_bias"}  # other settings choose them
BY_LLGUIDANCE = {"grammar", "grammar_lazy", "grammar_lazy_patterns"}


def test_no_sampler_of_llama_cpp_is_missing() -> None:
    prefix = "llama_sampler_init_"
    theirs = {name.removeprefix(prefix) for name in dir(c) if name.startswith(prefix)} - NOT_NAMED - BY_LLGUIDANCE
    assert {THEIR_NAMES.get(name, name) for name in theirs} == set(KNOWN_SAMPLERS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("likely", ["the end", "nothing", "a word"])
def test_infill_ends_the_answer_where_the_model_is_in_two_minds(
    model: LlamaModel, logits: Logits, temperature: float, likely: str
) -> None:
    end = c.llama_vocab_eos(model.vocabulary.pointer)
    given = np.where(np.arange(len(logits)) < 256, np.float32(0), np.float32(-9))
    given[end] = 1.0 if likely == "the end" else -9.0
    given[8] = 9.0 if likely == "a word" else 0.5
    sampling = msgspec.structs.replace(
        OFF, temperature=temperature, top_k=20, samplers=("top_k", "infill", "temperature")
    )
    _, token = applied(SamplerStages(model.vocabulary).of(sampling, is_masked=False), given)
    assert (token == 8) == (likely == "a word")
    assert (token in model.vocabulary.end_tokens) == (likely != "a word")


DRAWS: dict[str, tuple[dict[str, object], Stages]] = {
    "mirostat 1": (
        {"mirostat": 1, "mirostat_tau": 0.5, "mirostat_eta": 0.3, "temperature": 2.0},
        lambda m: [
            c.llama_sampler_init_temp(2.0),
            c.llama_sampler_init_mirostat(m.vocabulary.size, SEED, 0.5, 0.3, 100),
        ],
    ),
    "mirostat 2": (
        {"mirostat": 2, "mirostat_tau": 0.5, "mirostat_eta": 0.3, "temperature": 2.0},
        lambda _: [c.llama_sampler_init_temp(2.0), c.llama_sampler_init_mirostat_v2(SEED, 0.5, 0.3)],
    ),
    "adaptive-p": (
        {"adaptive_target": 0.05, "adaptive_decay": 0.5},
        lambda _: [c.llama_sampler_init_adaptive_p(0.05, 0.5, SEED)],
    ),
}


def drawn(stages: Sequence[object], logits: Logits, count: int) -> list[int]:
    """Draw tokens one after another from the same logits, as a chain does: what is picked is accepted."""
    tokens = []
    chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
    for stage in stages:
        c.llama_sampler_chain_add(chain, stage)
    for _ in range(count):
        data = (c.llama_token_data * len(logits))(*[c.llama_token_data(i, x, 0.0) for i, x in enumerate(logits)])
        array = c.llama_token_data_array(data, len(logits), -1, False)
        c.llama_sampler_apply(chain, ctypes.byref(array))
        tokens.append(int(array.data[array.selected].id))
        c.llama_sampler_accept(chain, tokens[-1])
    c.llama_sampler_free(chain)
    return tokens


@pytest.mark.parametrize(("fields", "by_hand"), DRAWS.values(), ids=DRAWS)
def test_samplers_that_draw_take_the_seed_and_learn_from_their_draws(
    model: LlamaModel, logits: Logits, fields: dict[str, object], by_hand: Stages
) -> None:
    sampling = msgspec.structs.replace(OFF, **fields)
    stages = SamplerStages(model.vocabulary)
    ours = drawn(stages.of(sampling, is_masked=False), logits, 40)
    assert ours == drawn(by_hand(model), logits, 40)
    assert ours != drawn([c.llama_sampler_init_dist(SEED)], logits, 40)
    other = msgspec.structs.replace(sampling, seed=SEED + 1)
    assert ours != drawn(stages.of(other, is_masked=False), logits, 40)


def test_all_of_them_in_llama_cpps_order(model: LlamaModel, logits: Logits) -> None:
    sampling = Sampling(
        temperature=0.9,
        seed=SEED,
        top_k=60,
        top_p=0.98,
        min_p=0.001,
        repetition_penalty=1.1,
        typical_p=0.97,
        top_n_sigma=4.0,
        xtc_probability=1.0,
        xtc_threshold=0.2,
        dry_multiplier=1.0,
        dry_sequence_breakers=("9",),
        dynatemp_range=0.3,
        logit_bias={20: 1.5},
    )
    bias = (c.llama_logit_bias * 1)(c.llama_logit_bias(20, 1.5))
    size = model.vocabulary.size
    by_hand = [
        c.llama_sampler_init_logit_bias(size, 1, ctypes.cast(bias, c.llama_logit_bias_p)),
        c.llama_sampler_init_penalties(size, 64, 1.1, 0.0, 0.0),
        dry(model, 1.0, [BREAKER]),
        c.llama_sampler_init_top_n_sigma(4.0),
        c.llama_sampler_init_top_k(60),
        c.llama_sampler_init_typical(0.97, 1),
        c.llama_sampler_init_top_p(0.98, 1),
        c.llama_sampler_init_min_p(0.001, 1),
        c.llama_sampler_init_xtc(1.0, 0.2, 1, SEED),
        c.llama_sampler_init_temp_ext(0.9, 0.3, 1.0),
        c.llama_sampler_init_dist(SEED),
    ]
    stages = SamplerStages(model.vocabulary)
    ours, token = applied(stages.of(sampling, is_masked=False), logits, PROMPT)
    assert (ours, token) == applied(by_hand, logits, PROMPT)
    backwards = msgspec.structs.replace(sampling, samplers=SAMPLERS[::-1])
    assert applied(stages.of(backwards, is_masked=False), logits, PROMPT)[0] != ours


def test_the_order_decides_and_what_is_not_named_is_off(model: LlamaModel, logits: Logits) -> None:
    fields = msgspec.structs.replace(OFF, temperature=4.0, min_p=0.3, top_k=3)
    hot, cold, mute = (
        applied(
            SamplerStages(model.vocabulary).of(
                msgspec.structs.replace(fields, samplers=samplers), is_masked=False
            ),
            logits,
        )[0]
        for samplers in (("temperature", "min_p"), ("min_p", "temperature"), ("temperature",))
    )
    first = [c.llama_sampler_init_temp(4.0), c.llama_sampler_init_min_p(0.3, 1), c.llama_sampler_init_dist(SEED)]
    assert hot == applied(first, logits)[0]
    assert len(mute) == len(logits) > len(hot) > len(cold)


def test_dry_breakers_end_a_repetition(model: LlamaModel, logits: Logits) -> None:
    word = model.vocabulary.piece(7).decode()
    stages = SamplerStages(model.vocabulary)
    repeated = msgspec.structs.replace(OFF, dry_multiplier=2.0)
    broken = msgspec.structs.replace(repeated, dry_sequence_breakers=(word,))
    plain = applied(stages.of(OFF, is_masked=False), logits)[0]
    assert applied(stages.of(repeated, is_masked=False), logits, PROMPT)[0] != plain
    assert applied(stages.of(broken, is_masked=False), logits, PROMPT)[0] == plain


ZEROS: dict[str, tuple[dict[str, object], int, Stages]] = {
    "typical": ({"typical_p": 0.5}, 5, lambda _: [c.llama_sampler_init_typical(0.5, 1)]),
    "typical behind top-n-sigma": (
        {"top_n_sigma": 1.5, "typical_p": 0.5},
        4,
        lambda _: [c.llama_sampler_init_typical(0.5, 1)],
    ),
    "mirostat 1": (
        {"mirostat": 1, "mirostat_tau": 1.5},
        5,
        lambda m: [c.llama_sampler_init_mirostat(m.vocabulary.size, SEED, 1.5, 0.1, 100)],
    ),
    "dynamic temperature": (
        {"dynatemp_range": 0.5},
        5,
        lambda _: [c.llama_sampler_init_temp_ext(1.0, 0.5, 1.0)],
    ),
}


@pytest.mark.parametrize(("fields", "num_left", "by_hand"), ZEROS.values(), ids=ZEROS)
def test_tokens_without_a_chance_count_for_nothing(
    model: LlamaModel, logits: Logits, fields: dict[str, object], num_left: int, by_hand: Stages
) -> None:
    """llama.cpp's logarithms of zero are NaN; here the candidates without a chance are gone before."""
    possible = np.array([3.0, 2.5, 2.4, 2.3, -3.0], np.float32)
    masked = np.full_like(logits, -np.inf)
    masked[20:25] = possible
    stages = SamplerStages(model.vocabulary).of(msgspec.structs.replace(OFF, **fields), is_masked=True)
    ours, token = applied(stages, masked)
    last = [] if "mirostat" in fields else [c.llama_sampler_init_dist(SEED)]
    theirs, their_token = applied([*by_hand(model), *last], possible[:num_left])
    assert ours == [(20 + index, logit) for index, logit in theirs]
    assert token == 20 + their_token


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "the likeliest"),
        ({"top_k": 3, "top_p": 0.5, "min_p": 0.5, "top_n_sigma": 1.0, "temperature": 1e-9}, "the likeliest"),
        ({"mirostat": 2, "repetition_penalty": 2.0}, "the likeliest"),
        ({"dry_multiplier": 5.0}, "another"),
        ({"xtc_probability": 1.0}, "another"),
        ({"typical_p": 0.3}, "another"),
        ({"repetition_penalty": 2.0}, "another"),
    ],
)
def test_greedy_heeds_what_changes_the_likeliest(
    model: LlamaModel, logits: Logits, fields: dict[str, object], expected: str
) -> None:
    sampling = msgspec.structs.replace(OFF, **({"temperature": 0.0, "seed": None} | fields))
    stages = SamplerStages(model.vocabulary).of(sampling, is_masked=False)
    if expected == "the likeliest":
        assert stages == [], "plain greedy needs no chain"
    else:
        _, token = applied(stages, logits, PROMPT)
        assert token != int(logits.argmax())


def test_no_seed_is_random_to_llama_cpp(model: LlamaModel, logits: Logits) -> None:
    largest = msgspec.structs.replace(OFF, seed=2**32 - 1)
    stages = SamplerStages(model.vocabulary)
    first, again = (drawn(stages.of(largest, is_masked=False), logits, 30) for _ in range(2))
    assert first == again


def test_breakers_are_read_once_and_samplers_forget_each_other(
    model: LlamaModel, logits: Logits, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    init = c.llama_sampler_init_dry
    monkeypatch.setattr(c, "llama_sampler_init_dry", lambda *given: (read.append(given), init(*given))[1])
    stages = SamplerStages(model.vocabulary)
    sampling = msgspec.structs.replace(OFF, dry_multiplier=2.0)
    stages.prepare(sampling)
    assert len(read) == 1
    repeated, fresh = (applied(stages.of(sampling, is_masked=False), logits, p)[0] for p in (PROMPT, []))
    assert len(read) == 1
    assert repeated != fresh == applied(stages.of(OFF, is_masked=False), logits)[0]
