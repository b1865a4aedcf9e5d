"""Tokens picked inside the graph, on a real model: what the host would pick, whoever else is in the batch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from llama_cpp import llama_cpp as c

from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.outputs import Sampled
from ocak.engine.rules import NO_RULES, TokenRules
from ocak.engine.runner import Chunk
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence as Answer
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.llama.sampler import LlamaSampler

CONTEXT = 256
LENGTH = 60
GREEDY = Sampling(temperature=0)
DRAWN = Sampling(seed=7, temperature=1.3, top_k=20, top_p=0.9, min_p=0.01)
ON_HOST = [
    Sampling(seed=3, top_k=0),
    Sampling(seed=3, top_k=257),
    Sampling(seed=3, repetition_penalty=1.3),
    Sampling(seed=3, logit_bias={9: 2.0}),
    Sampling(seed=3, min_p=1.0),
    Sampling(seed=3, dynatemp_range=0.5),
    Sampling(seed=3, typical_p=0.9),
    Sampling(seed=3, top_n_sigma=1.0),
    Sampling(seed=3, xtc_probability=0.5),
    Sampling(seed=3, dry_multiplier=1.0),
    Sampling(seed=3, mirostat=2),
    Sampling(seed=3, adaptive_target=0.2),
    Sampling(seed=3, samplers=("top_p", "top_k")),
    Sampling(seed=3, samplers=("top_k", "infill")),
    Sampling(temperature=0, presence_penalty=1.0),
]
PROMPTS = [[(7 * i + j * j) % 250 + 1 for j in range(5 + 17 * i)] for i in range(6)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@dataclass
class Bench:
    """A context with a runner of its own."""

    model: LlamaModel
    runner: LlamaRunner
    context: LlamaContext

    def sampler(self, sampling: Sampling, rules: TokenRules = NO_RULES) -> LlamaSampler:
        return self.runner.new_sampler(sampling, (), rules)

    def draw(self, sampler: LlamaSampler, slot: int = 0, *, has_logprobs: bool = False) -> int:
        """Pick what follows the same prompt, once more."""
        self.runner.trim(slot, 0)
        (token,) = self.runner.run([Chunk(slot, 0, PROMPTS[1], sampler, has_logprobs=has_logprobs)])
        assert isinstance(token, int)
        return token


def bench(model: LlamaModel, *, on_device: bool, kv_cells: int = 4 * CONTEXT) -> Bench:
    sizes = ContextOptions(CONTEXT, 4, kv_cells, 128, 1, "f16", True, "auto")
    context = LlamaContext(model, sizes)
    return Bench(model, LlamaRunner(context, model.vocabulary, samples_on_device=on_device), context)


@pytest.fixture
def device(model: LlamaModel) -> Iterator[Bench]:
    made = bench(model, on_device=True)
    yield made
    made.context.close()


@pytest.fixture
def host(model: LlamaModel) -> Iterator[Bench]:
    made = bench(model, on_device=False)
    yield made
    made.context.close()


@dataclass
class Job:
    prompt: Sequence[int]
    sampling: Sampling
    rules: TokenRules = NO_RULES
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None


def serve(
    model: LlamaModel,
    jobs: Sequence[Job],
    *,
    on_device: bool,
    kv_cells: int = 4 * CONTEXT,
    speculates: bool = False,
) -> tuple[list[list[int]], Engine]:
    """Serve all at once; return the tokens that followed."""
    made = bench(model, on_device=on_device, kv_cells=kv_cells)
    limits = SchedulerLimits(4, CONTEXT, kv_cells, 128, shares_cells=kv_cells < 4 * CONTEXT)
    engine = Engine(made.runner, limits, speculates=speculates)
    answers = [
        Answer(
            i,
            list(job.prompt),
            job.sampling,
            LENGTH + i,
            frozenset(),
            rules=job.rules,
            num_logprobs=job.num_logprobs,
            num_prompt_logprobs=job.num_prompt_logprobs,
        )
        for i, job in enumerate(jobs)
    ]
    for answer in answers:
        engine.submit(answer)
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Sampled) and output.sequence.num_logprobs is not None:
                assert output.logprobs is not None and output.logprobs.token <= 0
        engine.check_integrity()
    made.context.close()
    return [answer.tokens[answer.num_prompt :] for answer in answers], engine


@pytest.mark.parametrize("kv_cells", [4 * CONTEXT, CONTEXT], ids=["split", "unified and over-committed"])
def test_greedy_answers_are_the_hosts(model: LlamaModel, kv_cells: int) -> None:
    jobs = [Job(prompt, GREEDY) for prompt in PROMPTS]
    expected, _ = serve(model, jobs, on_device=False, kv_cells=kv_cells)
    assert serve(model, jobs, on_device=True, kv_cells=kv_cells)[0] == expected


@pytest.mark.parametrize("kv_cells", [4 * CONTEXT, CONTEXT], ids=["split", "unified and over-committed"])
def test_whoever_needs_the_host_has_it_beside_those_on_the_device(model: LlamaModel, kv_cells: int) -> None:
    few = TokenRules(allowed=frozenset(range(40, 60)))
    jobs = [
        Job(PROMPTS[0], DRAWN),
        Job(PROMPTS[1], GREEDY, num_logprobs=2),
        Job(PROMPTS[2], GREEDY),
        Job(PROMPTS[3], DRAWN, rules=few),
        Job(PROMPTS[4], ON_HOST[2]),
        Job(PROMPTS[5], DRAWN, num_prompt_logprobs=1),
        Job(PROMPTS[0], msgspec.structs.replace(DRAWN, seed=8)),
    ]
    expected, _ = serve(model, jobs, on_device=False, kv_cells=kv_cells)
    answers, engine = serve(model, jobs, on_device=True, kv_cells=kv_cells)
    assert answers == expected
    assert engine.stats().preemptions or kv_cells > CONTEXT
    assert answers[0] != answers[-1][:LENGTH], "a seed of its own"


@pytest.mark.parametrize(
    "sampling",
    [
        DRAWN,
        msgspec.structs.replace(DRAWN, samplers=("top_k", "temperature", "min_p"), min_p=0.05),
        msgspec.structs.replace(DRAWN, temperature=1.0, top_k=5, top_p=1.0, min_p=0.0),
        msgspec.structs.replace(
            DRAWN, samplers=("top_k", "temperature", "top_p"), temperature=2.0, top_k=256, top_p=0.5
        ),
    ],
    ids=["usual", "min-p behind the temperature", "top-k alone", "flat"],
)
def test_tokens_are_drawn_from_the_hosts_distribution(device: Bench, host: Bench, sampling: Sampling) -> None:
    """Pearson's chi-square over many seeds, at one in a thousand; what the host drops is never drawn."""
    expected = chances(host, sampling)
    seeds, draws = range(40), 25
    counts = dict.fromkeys(expected, 0)
    for seed in seeds:
        sampler = device.sampler(msgspec.structs.replace(sampling, seed=seed))
        for _ in range(draws):
            counts[device.draw(sampler)] += 1  # a token outside has no entry
        assert sampler.seat is not None
    total = len(seeds) * draws
    often = [token for token in expected if expected[token] * total >= 5]
    rest = 1 - sum(expected[token] for token in often), total - sum(counts[token] for token in often)
    cells = [(expected[token], counts[token]) for token in often] + ([rest] if rest[0] * total >= 5 else [])
    chi_square = sum((count - p * total) ** 2 / (p * total) for p, count in cells)
    assert len(cells) > 3 and chi_square < most_chi_square(len(cells) - 1)


def most_chi_square(freedom: int) -> float:
    """The value that one in a thousand exceeds, by Wilson and Hilferty."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + 3.09 * spread**0.5) ** 3)


def chances(host: Bench, sampling: Sampling) -> dict[int, float]:
    """What the host's own chain leaves behind the prompt, and how likely each is."""
    sampler = host.sampler(sampling)
    host.draw(sampler)
    logits = host.runner.last_logits(0).copy()
    data = (c.llama_token_data * len(logits))(*[c.llama_token_data(i, x, 0.0) for i, x in enumerate(logits)])
    array = c.llama_token_data_array(data, len(logits), -1, False)
    c.llama_sampler_apply(sampler.chain, ctypes.byref(array))
    left = [array.data[i] for i in range(array.size)]
    return {int(one.id): float(one.p) for one in left if one.p > 0}


def test_a_sequence_that_changes_between_device_and_host_goes_on_drawing(device: Bench, host: Bench) -> None:
    mixed, plain = device.sampler(DRAWN), host.sampler(DRAWN)
    tokens = [device.draw(mixed, slot=i % 4, has_logprobs=i % 3 == 1) for i in range(40)]
    assert tokens == [host.draw(plain) for _ in range(40)]
    assert len(set(tokens)) > 5


def test_the_next_in_a_slot_sees_nothing_of_the_last(device: Bench, host: Bench) -> None:
    samplings = [DRAWN, GREEDY, msgspec.structs.replace(DRAWN, seed=9), *ON_HOST[:3], DRAWN]
    for sampling in samplings:
        ours, theirs = device.sampler(sampling), host.sampler(sampling)
        assert [device.draw(ours) for _ in range(8)] == [host.draw(theirs) for _ in range(8)]
        ours.close()


def test_a_seat_stays_while_requests_ask_for_the_same(device: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[int] = []
    change = c.llama_set_sampler
    monkeypatch.setattr(c, "llama_set_sampler", lambda *given: (changes.append(given[1]), change(*given))[1])
    for seed in range(3):
        sampler = device.sampler(msgspec.structs.replace(DRAWN, seed=seed))
        device.draw(sampler, slot=2)
        sampler.close()
    assert changes == [2], "the graph was built anew for a seed"
    device.draw(device.sampler(GREEDY), slot=2)
    assert changes == [2, 2]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_guesses_are_verified_on_the_device(device: Bench, host: Bench, sampling: Sampling) -> None:
    plain = host.sampler(sampling)
    (first,) = host.runner.run([Chunk(0, 0, PROMPTS[2], plain)])
    tokens = [first]
    for i in range(8):
        tokens += host.runner.run([Chunk(0, len(PROMPTS[2]) + i, [tokens[-1]], plain)])  # type: ignore[list-item]
    guessing = device.sampler(sampling)
    start = len(PROMPTS[2])
    assert device.runner.run([Chunk(0, 0, PROMPTS[2], guessing)]) == tokens[:1]
    wrong = (int(tokens[4]) + 1) % 250  # type: ignore[arg-type]
    guesses = [*tokens[1:4], wrong, *tokens[5:7]]
    told = device.runner.run([Chunk(0, start, [tokens[0], *guesses], guessing, num_guesses=len(guesses))])  # type: ignore[list-item]
    assert told == tokens[1:5] and guessing.seat is not None
    device.runner.trim(0, start + 4)
    for i in range(4, 8):
        assert device.runner.run([Chunk(0, start + i, [tokens[i]], guessing)]) == [tokens[i + 1]]  # type: ignore[list-item]


def test_a_lone_answer_with_guesses_is_the_hosts(model: LlamaModel) -> None:
    jobs = [Job([40, 41, 42, 43] * 12, GREEDY)]
    plain, _ = serve(model, jobs, on_device=False)
    guessed, _ = serve(model, jobs, on_device=True, speculates=True)
    assert guessed == plain


@pytest.mark.parametrize("sampling", ON_HOST, ids=str)
def test_what_the_graph_cannot_do_is_done_on_the_host(device: Bench, host: Bench, sampling: Sampling) -> None:
    ours, theirs = device.sampler(sampling), host.sampler(sampling)
    assert ours.shape is None
    assert [device.draw(ours) for _ in range(4)] == [host.draw(theirs) for _ in range(4)]


@pytest.mark.parametrize("refusal", ["all", "a stage"])
def test_a_device_that_cannot_do_it_leaves_all_to_the_host(
    model: LlamaModel, host: Bench, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    with monkeypatch.context() as patched:
        if refusal == "all":
            patched.setattr(c, "llama_set_sampler", lambda *_given: False)
        else:
            name = c.llama_sampler_name
            patched.setattr(c, "llama_sampler_name", lambda stage: name(stage).replace(b"+dist", b"-dist"))
        refusing = bench(model, on_device=True)
        for sampling in (GREEDY, DRAWN):
            ours, theirs = refusing.sampler(sampling), host.sampler(sampling)
            assert [refusing.draw(ours) for _ in range(6)] == [host.draw(theirs) for _ in range(6)]
            assert ours.seat is None
        refusing.context.close()


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_slots_take_turns_in_one_graph(device: Bench, host: Bench, sampling: Sampling) -> None:
    """Its memory is planned for the slots of an earlier batch."""
    ours, theirs = ([made.sampler(sampling) for _ in range(4)] for made in (device, host))
    for turn in range(16):
        slots = [slot for slot in range(4) if turn >> slot & 1]
        picked = []
        for made, samplers in ((device, ours), (host, theirs)):
            for slot in slots:
                made.runner.trim(slot, 0)
            chunks = [Chunk(slot, 0, [9 + 10 * turn + slot], samplers[slot]) for slot in slots]
            picked.append(made.runner.run(chunks) if chunks else [])
        assert picked[0] == picked[1]


@pytest.mark.parametrize("others", [0, 1, 2], ids=["all there", "one told", "one on the host"])
def test_no_row_of_logits_leaves_the_graph_where_all_are_picked_there(device: Bench, others: int) -> None:
    """What the host would read stays as it was, but for one that needs it."""
    device.draw(device.sampler(GREEDY))
    device.runner.trim(0, 0)
    device.context.logits()[:2] = 7.0
    samplers = [
        device.sampler(GREEDY),
        device.sampler(DRAWN),
        device.sampler(GREEDY if others < 2 else ON_HOST[0]),
    ]
    chunks = [Chunk(i, 0, [9], samplers[i], has_logprobs=i == 2 and others == 1) for i in range(3)]
    device.runner.run(chunks)
    assert bool(np.all(device.context.logits()[0] == 7.0)) == (not others)
