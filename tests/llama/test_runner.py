"""llama.cpp underneath: cells, batches and samplers on a tiny real model."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from llama_cpp import llama_cpp as c
from tests.models import TinyModel, write_model

from ocak.core.errors import LoadFailed
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.outputs import Sampled
from ocak.engine.padding import tiled
from ocak.engine.runner import Aborted, Chunk, Logprobs
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.logprobs import LOWEST, logprobs
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.llama.sampler import LlamaSampler

GREEDY = Sampling(temperature=0)
CONTEXT = 256


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


def options(**changes: object) -> ContextOptions:
    settings: dict[str, object] = {
        "context": CONTEXT,
        "parallel": 4,
        "kv_cells": CONTEXT * 4,
        "batch_tokens": 128,
        "threads": 1,
        "kv_type": "f16",
        "kv_offload": True,
        "flash_attn": "auto",
    }
    return ContextOptions(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
def context(model: LlamaModel) -> Iterator[LlamaContext]:
    made = LlamaContext(model, options())
    yield made
    made.close()


def serve(
    model: LlamaModel, prompts: list[list[int]], sizes: ContextOptions, sampling: Sampling
) -> list[list[int]]:
    """Serve every prompt at once; return the tokens that followed."""
    context = LlamaContext(model, sizes)
    limits = SchedulerLimits(sizes.parallel, sizes.context, sizes.kv_cells, sizes.batch_tokens)
    engine = Engine(LlamaRunner(context, model.vocabulary), limits)
    sequences = [Sequence(i, list(prompt), sampling, 20, frozenset()) for i, prompt in enumerate(prompts)]
    for sequence in sequences:
        engine.submit(sequence)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    context.close()
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences]


def used_cells(context: LlamaContext, slot: int) -> int:
    memory = c.llama_get_memory(context.pointer)
    return int(c.llama_memory_seq_pos_max(memory, slot)) + 1


PROMPTS = [[(7 * i + j * j) % 250 + 1 for j in range(5 + 17 * i)] for i in range(6)]


@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT], ids=["split", "unified and over-committed"])
def test_sequences_do_not_see_each_other(model: LlamaModel, kv_cells: int) -> None:
    alone = [serve(model, [prompt], options(parallel=1, kv_cells=CONTEXT), GREEDY)[0] for prompt in PROMPTS]
    assert serve(model, PROMPTS, options(kv_cells=kv_cells), GREEDY) == alone


def test_a_drawn_answer_depends_on_its_seed_alone(model: LlamaModel) -> None:
    drawn = Sampling(temperature=1.0, seed=7)
    alone = serve(model, PROMPTS[:1], options(parallel=1, kv_cells=CONTEXT), drawn)[0]
    assert serve(model, PROMPTS, options(), drawn)[0] == alone
    assert serve(model, PROMPTS[:1], options(), Sampling(temperature=1.0, seed=8))[0] != alone


@pytest.mark.parametrize("kv_type", sorted(library.KV_TYPES))
def test_every_kv_type_serves(model: LlamaModel, kv_type: str) -> None:
    assert len(serve(model, PROMPTS[:2], options(kv_type=kv_type, flash_attn="on"), GREEDY)[1]) == 20


def test_clearing_a_slot_removes_its_cells_and_no_others(model: LlamaModel, context: LlamaContext) -> None:
    runner = LlamaRunner(context, model.vocabulary)
    runner.run([Chunk(0, 0, [1, 2, 3], None), Chunk(2, 0, [4, 5], None)])
    assert [used_cells(context, slot) for slot in range(4)] == [3, 0, 2, 0]
    runner.trim(0, 0)
    assert [used_cells(context, slot) for slot in range(4)] == [0, 0, 2, 0]


@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT * 2], ids=["split", "unified"])
def test_a_copy_outlives_whatever_becomes_of_its_source_before_the_next_pass(
    model: LlamaModel, kv_cells: int
) -> None:
    context = LlamaContext(model, options(kv_cells=kv_cells))
    runner = LlamaRunner(context, model.vocabulary)
    runner.run([Chunk(1, 0, SHARED, None)])
    runner.run([Chunk(2, 0, PROMPTS[3], None)])
    runner.save(2, 100)
    runner.copy(1, 0, len(SHARED))
    runner.trim(1, 0)
    runner.restore(100, 1, len(PROMPTS[3]))
    sampler = runner.new_sampler(GREEDY, ())
    tokens = runner.run([Chunk(0, len(SHARED), [7, 8, 9], sampler)])
    assert tokens == serve(model, [[*SHARED, 7, 8, 9]], options(parallel=1, kv_cells=CONTEXT), GREEDY)[0][:1]
    context.close()


def test_a_pass_can_be_cut_short_from_another_thread(model: LlamaModel, caplog: pytest.LogCaptureFixture) -> None:
    context = LlamaContext(model, options(context=2048, parallel=1, kv_cells=2048, batch_tokens=2048))
    runner = LlamaRunner(context, model.vocabulary)
    is_over = threading.Event()

    def interrupt() -> None:
        while not is_over.wait(0.001):
            runner.abort()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Aborted):
        runner.run([Chunk(0, 0, [i % 240 + 1 for i in range(2000)], None)])
    is_over.set()
    thread.join()
    assert not [record for record in caplog.records if record.levelname == "ERROR"], "it was asked for"
    runner.trim(0, 0)
    assert used_cells(context, 0) == 0
    answer = runner.run([Chunk(0, 0, PROMPTS[2], runner.new_sampler(GREEDY, ()))])
    assert answer == serve(model, [PROMPTS[2]], options(parallel=1, kv_cells=CONTEXT), GREEDY)[0][:1]
    context.close()


def prefix_engine(model: LlamaModel, context: LlamaContext, sizes: ContextOptions, host_tokens: int = 0) -> Engine:
    limits = SchedulerLimits(
        parallel=sizes.parallel,
        context=sizes.context,
        num_cells=sizes.kv_cells,
        batch_tokens=32,
        num_slots=sizes.num_slots,
        shares_cells=sizes.is_unified,
        reuse=context.reuse,
        keeps_prefixes=True,
        host_tokens=host_tokens,
    )
    return Engine(LlamaRunner(context, model.vocabulary), limits)


SHARED = [(5 * i) % 240 + 1 for i in range(70)]
FAMILY = [
    [*SHARED, 7, 8, 9],
    [*SHARED, 9, 8, 7, 6],
    [*SHARED[:40], 3, 2, 1],
    [*SHARED, 7, 8, 9],
    [1, 2, 3],
    [*SHARED[:40], 3, 2, 1, 5, 6],
]


@pytest.mark.parametrize(
    ("parallel", "kv_cells", "host_tokens"),
    [(4, CONTEXT * 4, 0), (4, CONTEXT * 2, 0), (2, CONTEXT * 2, 1000)],
    ids=["split", "unified", "host memory"],
)
def test_prefixes_that_are_kept_change_no_answer(
    model: LlamaModel, parallel: int, kv_cells: int, host_tokens: int
) -> None:
    alone = [serve(model, [prompt], options(parallel=1, kv_cells=CONTEXT), GREEDY)[0] for prompt in FAMILY]
    sizes = options(parallel=parallel, kv_cells=kv_cells)
    context = LlamaContext(model, sizes)
    engine = prefix_engine(model, context, sizes, host_tokens)
    sequences = [Sequence(i, list(prompt), GREEDY, 20, frozenset()) for i, prompt in enumerate(FAMILY * 3)]
    for sequence in sequences:
        engine.submit(sequence)
        engine.step()
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert (engine.stats().saved_tokens > 0) == (host_tokens > 0)
    context.close()
    assert [sequence.tokens[sequence.num_prompt :] for sequence in sequences] == alone * 3
    again = sequences[len(FAMILY) :]
    assert sum(s.num_cached for s in again) > 0.5 * sum(s.num_prompt for s in again)


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT * 2], ids=["split", "unified"])
def test_models_that_forget_reuse_whole_histories_alone(
    architecture: Literal["gemma2", "mamba"], kv_cells: int, tmp_path: Path
) -> None:
    """A window or a recurrent state cannot go back, so only what is a beginning as a whole is used."""
    library.initialise()
    path = write_model(tmp_path / "model.gguf", TinyModel(architecture=architecture))
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    sizes = options(kv_cells=kv_cells)
    context = LlamaContext(model, sizes)
    assert context.reuse == "wholes"
    engine = prefix_engine(model, context, sizes)
    histories = [list(prompt) for prompt in FAMILY]
    num_cached: list[int] = []
    for turn in range(3):
        sequences = [Sequence(10 * turn + i, list(h), GREEDY, 20, frozenset()) for i, h in enumerate(histories)]
        for sequence in sequences:
            engine.submit(sequence)
        while engine.has_work:
            engine.step()
            engine.check_integrity()
        alone = [
            serve(model, [history], options(parallel=1, kv_cells=CONTEXT), GREEDY)[0] for history in histories
        ]
        assert [sequence.tokens[sequence.num_prompt :] for sequence in sequences] == alone
        num_cached += [sequence.num_cached for sequence in sequences]
        histories = [[*sequence.tokens, 5, turn + 6] for sequence in sequences]
    assert max(num_cached) > 50
    context.close()
    model.close()


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=5)], ids=["greedy", "drawn"])
def test_slots_that_lend_a_row_change_no_answer_and_keep_no_cell(
    model: LlamaModel, context: LlamaContext, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [serve(model, [PROMPTS[slot]], options(parallel=1, kv_cells=CONTEXT), sampling)[0] for slot in (0, 2)]
    num_rows: list[int] = []
    decode = context.decode
    monkeypatch.setattr(context, "decode", lambda: (num_rows.append(context.num_rows), decode()))
    runner = LlamaRunner(context, model.vocabulary)
    chunks = [Chunk(slot, 0, PROMPTS[slot], runner.new_sampler(sampling, ())) for slot in (0, 2)]
    answers = [runner.run(chunks)]
    for depth in range(19):
        chunks = [
            Chunk(chunk.slot, len(PROMPTS[chunk.slot]) + depth, (token,), chunk.sampler)
            for chunk, token in zip(chunks, answers[-1], strict=True)
        ]
        answers.append(runner.run(chunks))
    assert [list(answer) for answer in zip(*answers, strict=True)] == alone
    assert set(num_rows[1:]) == {3, 4}, "the gap is filled, and the tile if that is quicker"
    assert [used_cells(context, slot) for slot in (1, 3)] == [0, 0]


@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT], ids=["split", "unified"])
def test_parts_of_prompts_fill_their_last_tile_and_keep_no_cell_of_it(model: LlamaModel, kv_cells: int) -> None:
    context = LlamaContext(model, options(kv_cells=kv_cells, batch_tokens=CONTEXT))
    runner = LlamaRunner(context, model.vocabulary)
    for length in (2, 3, 6, 31, CONTEXT - 1):
        prompt = [(7 * i) % 250 + 1 for i in range(length)]
        runner.run([Chunk(0, 0, prompt, runner.new_sampler(GREEDY, ()))])
        assert context.num_rows == min(tiled(length), CONTEXT)
        assert used_cells(context, 0) == length
        padded = context.logits()[0].copy()
        runner.trim(0, 0)
        context.fill([Chunk(0, 0, prompt, runner.new_sampler(GREEDY, ()))])
        context.decode()
        assert context.logits()[0] == pytest.approx(padded, abs=0.1)
        runner.trim(0, 0)
    context.close()


def chunk_and_logits(model: LlamaModel, context: LlamaContext, sampling: Sampling) -> tuple[int, np.ndarray]:
    runner = LlamaRunner(context, model.vocabulary)
    sampler = runner.new_sampler(sampling, PROMPTS[2])
    (token,) = runner.run([Chunk(1, 0, PROMPTS[2], sampler)])
    logits = context.logits()[0].copy()
    sampler.close()
    return token, logits


def reference(stages: list[object], logits: np.ndarray) -> int:
    """Apply llama.cpp's samplers to the logits by hand."""
    data = (c.llama_token_data * len(logits))(*[c.llama_token_data(i, x, 0.0) for i, x in enumerate(logits)])
    array = c.llama_token_data_array(data, len(logits), -1, False)
    for stage in stages:
        c.llama_sampler_apply(stage, ctypes.byref(array))
        c.llama_sampler_free(stage)
    return int(data[array.selected].id) if array.data is None else int(array.data[array.selected].id)


@pytest.mark.parametrize(
    ("sampling", "stages"),
    [
        (GREEDY, lambda: [c.llama_sampler_init_greedy()]),
        (
            Sampling(temperature=0.7, seed=5, top_k=0, top_p=1.0, min_p=0.0),
            lambda: [c.llama_sampler_init_temp(0.7), c.llama_sampler_init_dist(5)],
        ),
        (
            Sampling(temperature=1.3, seed=5, top_k=20, top_p=0.9, min_p=0.02),
            lambda: [
                c.llama_sampler_init_top_k(20),
                c.llama_sampler_init_top_p(0.9, 1),
                c.llama_sampler_init_min_p(0.02, 1),
                c.llama_sampler_init_temp(1.3),
                c.llama_sampler_init_dist(5),
            ],
        ),
    ],
    ids=["greedy", "temperature", "all"],
)
def test_sampling_is_llama_cpps_own(
    model: LlamaModel, context: LlamaContext, sampling: Sampling, stages: object
) -> None:
    token, logits = chunk_and_logits(model, context, sampling)
    assert token == reference(stages(), logits)  # type: ignore[operator]


def test_penalties_know_the_prompt_and_bias_decides(model: LlamaModel, context: LlamaContext) -> None:
    token, logits = chunk_and_logits(model, context, GREEDY)
    context.trim(1, 0)
    banned, _ = chunk_and_logits(model, context, Sampling(temperature=0, logit_bias={token: -100.0}))
    assert banned == int(np.argsort(-logits, kind="stable")[1])
    context.trim(1, 0)
    wanted = PROMPTS[2][-1]
    forced = Sampling(temperature=0, logit_bias={wanted: 100.0})
    assert chunk_and_logits(model, context, forced)[0] == wanted
    context.trim(1, 0)
    penal = Sampling(
        temperature=0, logit_bias={wanted: float(logits.max() - logits[wanted]) + 0.01}, presence_penalty=2.0
    )
    assert chunk_and_logits(model, context, penal)[0] != wanted


def test_greedy_beside_drawn_in_one_batch(model: LlamaModel, context: LlamaContext) -> None:
    runner = LlamaRunner(context, model.vocabulary)
    greedy, drawn = runner.new_sampler(GREEDY, ()), runner.new_sampler(Sampling(seed=3), ())
    assert isinstance(greedy, LlamaSampler) and greedy.chain is None
    tokens = runner.run(
        [Chunk(0, 0, PROMPTS[0], drawn), Chunk(1, 0, PROMPTS[1], None), Chunk(2, 0, PROMPTS[2], greedy)]
    )
    assert len(tokens) == 2
    assert tokens[1] == int(context.logits()[1].argmax())
    greedy.close()
    drawn.close()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64) - logits.max()
    return wide - np.log(np.exp(wide).sum())


@pytest.mark.parametrize("count", [0, 1, 5, 20, 100_000])
def test_log_probabilities_are_of_the_models_own_distribution(
    model: LlamaModel, context: LlamaContext, count: int
) -> None:
    """Bias, penalties and temperature change what is picked and not what is told."""
    samplings = [
        GREEDY,
        Sampling(temperature=2.0, seed=3, top_k=0, min_p=0.0),
        Sampling(temperature=0, logit_bias={5: 100.0}),
        Sampling(temperature=0, presence_penalty=2.0, repetition_penalty=1.5),
    ]
    runner = LlamaRunner(context, model.vocabulary)
    samplers = [runner.new_sampler(sampling, PROMPTS[i]) for i, sampling in enumerate(samplings)]
    chunks = [Chunk(i, 0, PROMPTS[i], None if i == 1 else samplers[i]) for i in range(4)]
    tokens = runner.run(chunks)
    padded = [tiled(len(prompt)) for prompt in PROMPTS[:4]]  # each prompt fills its last tile
    last_rows = np.cumsum([0, *padded[:3]]) + [len(prompt) - 1 for prompt in PROMPTS[:4]]
    for place, (token, row) in enumerate(zip(tokens, last_rows[[0, 2, 3]], strict=True)):
        pointer = c.llama_get_logits_ith(context.pointer, int(row))
        expected = log_softmax(np.ctypeslib.as_array(pointer, (model.vocabulary.size,)))
        told = runner.logprobs(place, token, count)
        order = np.argsort(-expected, kind="stable")[:count]
        assert told.token == pytest.approx(expected[token], abs=1e-5)
        assert len(told.likeliest) == min(count, model.vocabulary.size)
        values = [value for _, value in told.likeliest]
        assert values == pytest.approx(list(expected[order]), abs=1e-5)
        assert values == sorted(values, reverse=True)
        assert all(value == pytest.approx(expected[other], abs=1e-5) for other, value in told.likeliest)
    assert tokens[1] == 5, "the bias decided"
    if count:
        assert runner.logprobs(0, tokens[0], count).likeliest[0] == (
            tokens[0],
            runner.logprobs(0, tokens[0], 0).token,
        )
    for sampler in samplers:
        sampler.close()


@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT], ids=["split", "unified and over-committed"])
def test_log_probabilities_are_those_of_their_own_row(model: LlamaModel, kv_cells: int) -> None:
    """Beside prompts, beside others, beside slots that lend a row: as when served alone."""

    def told(prompts: list[list[int]], sizes: ContextOptions) -> list[list[Logprobs | None]]:
        context = LlamaContext(model, sizes)
        limits = SchedulerLimits(sizes.parallel, sizes.context, sizes.kv_cells, sizes.batch_tokens)
        engine = Engine(LlamaRunner(context, model.vocabulary), limits)
        sequences = [Sequence(i, list(p), GREEDY, 12 + i, frozenset()) for i, p in enumerate(prompts)]
        found: list[list[Logprobs | None]] = [[] for _ in prompts]
        for i, sequence in enumerate(sequences):
            sequence.num_logprobs = None if i % 3 == 1 else 3
            engine.submit(sequence)
        while engine.has_work:
            for output in engine.step():
                if isinstance(output, Sampled):
                    found[output.sequence.id].append(output.logprobs)
        context.close()
        return found

    together = told(PROMPTS, options(kv_cells=kv_cells))
    for i, prompt in enumerate(PROMPTS):
        (alone,) = told([prompt], options(parallel=1, kv_cells=CONTEXT))
        if i % 3 == 1:
            assert together[i] == [None] * (12 + i)
            continue
        assert len(together[i]) == 12 + i
        for one, other in zip(together[i], alone, strict=False):
            assert one is not None and other is not None
            assert one.token == pytest.approx(other.token, abs=0.02)
            assert [v for _, v in one.likeliest] == pytest.approx([v for _, v in other.likeliest], abs=0.02)
            assert one.likeliest[0][1] == one.token, "greedy takes the likeliest"


def test_log_probabilities_pass_over_the_logits_of_rows_that_fill_a_tile(
    model: LlamaModel, context: LlamaContext
) -> None:
    runner = LlamaRunner(context, model.vocabulary)
    sampler = runner.new_sampler(GREEDY, ())
    runner.run([Chunk(slot, 0, PROMPTS[slot], None) for slot in range(4)])
    starts = [len(prompt) for prompt in PROMPTS[:4]]
    decoding = [Chunk(slot, starts[slot], (9,), sampler) for slot in range(1, 4)]
    tokens = runner.run([Chunk(0, starts[0], (7, 8), None), *decoding])
    for place, token in enumerate(tokens):
        pointer = c.llama_get_logits_ith(context.pointer, 2 + place)
        expected = log_softmax(np.ctypeslib.as_array(pointer, (model.vocabulary.size,)))
        assert runner.logprobs(place, token, 0).token == pytest.approx(expected.max(), abs=1e-5)


def test_log_probabilities_stay_finite_and_equals_are_in_the_order_of_their_ids() -> None:
    row = np.array([1.0, -np.inf, 3.0, 1.0, 3.0], np.float32)
    told = logprobs(row, 1, 9)
    assert told.token == LOWEST
    assert [token for token, _ in told.likeliest] == [2, 4, 0, 3, 1]
    assert sum(np.exp(value) for _, value in told.likeliest) == pytest.approx(1)
    assert logprobs(np.full(4, -np.inf, np.float32), 0, 1).token == LOWEST
    assert logprobs(np.array([0.0, 1e30], np.float32), 0, 2).likeliest == ((1, 0.0), (0, LOWEST))


def test_any_text_survives_the_vocabulary(model: LlamaModel) -> None:
    for text in ("", "hello", "çay 😀 \0 \x7f", "a" * 5000, "\n\n\t  "):
        ids = model.vocabulary.tokenize(text, add_special=False, parse_special=False)
        assert b"".join(map(model.vocabulary.piece, ids)).decode() == text


def test_a_file_that_llama_cpp_refuses_is_an_error_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="nothing.gguf"):
        LlamaModel(str(tmp_path / "nothing.gguf"), WeightOptions(), lambda _progress: None)
