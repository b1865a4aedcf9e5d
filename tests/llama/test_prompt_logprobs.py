"""Log-probabilities of prompts against llama.cpp's own logits, computed by a bare context of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from llama_cpp import llama_cpp as c
from numpy.typing import NDArray
from tests.adapters import TinyAdapter, write_adapter
from tests.llama.test_runner import CONTEXT, GREEDY, PROMPTS, options
from tests.models import TinyModel, write_model

from ocak.core.lora import LoraAdapter
from ocak.engine.engine import Engine
from ocak.engine.outputs import Scored
from ocak.engine.runner import MOST_SCORED, Chunk, Logprobs
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.adapters import LlamaAdapters
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner

COUNT = 5
LONG = [(7 * i + i * i) % 250 + 1 for i in range(CONTEXT - 10)]


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


SHAPES = 0.1  # what the logits may move by when the kernels see other rows beside


def log_softmax(
    model: LlamaModel, prompt: list[int], use: LlamaAdapters, adapter: str = "", rows: int = 512
) -> NDArray[np.float64]:
    """All rows of the prompt, in passes of so many, of a context that nobody else uses."""
    params = c.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = 1
    pointer = c.llama_init_from_model(model.pointer, params)
    use.use(pointer, adapter)
    passes = [one_pass(pointer, prompt, at, model.vocabulary.size, rows) for at in range(0, len(prompt), rows)]
    c.llama_free(pointer)
    logits = np.concatenate(passes)
    peaks = logits.max(1, keepdims=True)
    return logits - peaks - np.log(np.exp(logits - peaks).sum(1, keepdims=True))


def one_pass(pointer: object, prompt: list[int], start: int, num_vocab: int, rows: int) -> NDArray[np.float64]:
    tokens = prompt[start : start + rows]
    batch = c.llama_batch_init(len(tokens), 0, 1)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, start + place, 1
        batch.seq_id[place][0], batch.logits[place] = 0, 1
    batch.n_tokens = len(tokens)
    assert c.llama_decode(pointer, batch) == 0
    size = len(tokens) * num_vocab
    flat = (ctypes.c_float * size).from_address(ctypes.addressof(c.llama_get_logits(pointer).contents))
    logits = np.array(flat, np.float64).reshape(len(tokens), -1)
    c.llama_batch_free(batch)
    return logits


def serve(
    model: LlamaModel, use: LlamaAdapters, jobs: list[tuple[list[int], str, int | None]], sizes: ContextOptions
) -> list[list[Logprobs]]:
    context = LlamaContext(model, sizes)
    limits = SchedulerLimits(
        sizes.parallel,
        sizes.context,
        sizes.kv_cells,
        sizes.batch_tokens,
        num_slots=context.num_slots,
        shares_cells=context.is_unified,
        keeps_prefixes=True,
    )
    engine = Engine(LlamaRunner(context, model.vocabulary, use), limits)
    told: list[list[Logprobs]] = [[] for _ in jobs]
    for i, (prompt, adapter, count) in enumerate(jobs):
        engine.submit(
            Sequence(
                i,
                list(prompt),
                GREEDY,
                10,
                frozenset(),
                adapter=adapter,
                root=adapter,
                num_prompt_logprobs=count,
            )
        )
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Scored):
                told[output.sequence.id] += output.logprobs
        engine.check_integrity()
    context.close()
    return told


def test_each_value_is_the_log_softmax_of_llama_cpps_own_logits(
    model: LlamaModel, adapters: LlamaAdapters
) -> None:
    context = LlamaContext(model, options(parallel=1, kv_cells=CONTEXT))
    runner = LlamaRunner(context, model.vocabulary, adapters)
    prompt = LONG[: 4 * MOST_SCORED]
    for adapter in ("", "loud"):
        runner.use_adapter(adapter)
        rows = log_softmax(model, prompt, adapters, adapter, MOST_SCORED)
        for start in range(0, len(prompt) - MOST_SCORED, MOST_SCORED):
            tokens = prompt[start : start + MOST_SCORED]
            runner.run([Chunk(0, start, tokens, None, range(MOST_SCORED))])
            for place in range(MOST_SCORED):
                token = prompt[start + place + 1]
                told = runner.prompt_logprobs(0, place, token, COUNT)
                row = rows[start + place]
                assert told.token == pytest.approx(row[token], abs=1e-4)
                assert [value for _, value in told.likeliest] == pytest.approx(
                    np.sort(row)[::-1][:COUNT], abs=1e-4
                )
                assert all(row[other] == pytest.approx(value, abs=1e-4) for other, value in told.likeliest)
                assert told.rank == (row >= row[token]).sum()
        runner.trim(0, 0)
    context.close()


@pytest.mark.parametrize("batch_tokens", [4, 33, 128])
@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT * 2], ids=["split", "unified"])
def test_the_values_in_a_busy_batch_are_those_of_the_prompt_alone(
    model: LlamaModel, adapters: LlamaAdapters, kv_cells: int, batch_tokens: int
) -> None:
    jobs: list[tuple[list[int], str, int | None]] = [(LONG, "", COUNT), (PROMPTS[5], "loud", COUNT)]
    jobs += [(PROMPTS[4], "", None), (PROMPTS[3], "", 0), (LONG[:100], "loud", 1)]
    served = serve(model, adapters, jobs, options(kv_cells=kv_cells, batch_tokens=batch_tokens))
    for (prompt, adapter, count), told in zip(jobs, served, strict=True):
        rows = log_softmax(model, prompt, adapters, adapter)
        assert len(told) == (0 if count is None else len(prompt) - 1)
        for row, token, logprobs in zip(rows, prompt[1:], told, strict=False):
            assert logprobs.token == pytest.approx(row[token], abs=SHAPES)
            assert len(logprobs.likeliest) == count
            assert all(row[other] == pytest.approx(value, abs=SHAPES) for other, value in logprobs.likeliest)
            assert (row > row[token] + SHAPES).sum() < logprobs.rank <= (row >= row[token] - SHAPES).sum()


@pytest.mark.parametrize("batch_tokens", [1, 2, 3])
def test_the_smallest_batches_tell_them_too(model: LlamaModel, adapters: LlamaAdapters, batch_tokens: int) -> None:
    sizes = options(parallel=1, kv_cells=CONTEXT, batch_tokens=batch_tokens)
    (told,) = serve(model, adapters, [(PROMPTS[2], "", 0)], sizes)
    rows = log_softmax(model, PROMPTS[2], adapters)
    expected = [row[token] for row, token in zip(rows, PROMPTS[2][1:], strict=False)]
    assert [one.token for one in told] == pytest.approx(expected, abs=SHAPES)


@pytest.mark.parametrize("architecture", ["gemma2", "mamba"])
def test_models_with_a_window_or_a_recurrent_state_tell_them_too(tmp_path: Path, architecture: str) -> None:
    path = write_model(tmp_path / "other.gguf", TinyModel(architecture=architecture))  # type: ignore[arg-type]
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    none = LlamaAdapters(model, [])
    served = serve(model, none, [(LONG, "", 2), (PROMPTS[5], "", None), (LONG[:90], "", 0)], options())
    for prompt, told in ((LONG, served[0]), (LONG[:90], served[2])):
        rows = log_softmax(model, prompt, none)
        expected = [row[token] for row, token in zip(rows, prompt[1:], strict=False)]
        assert [one.token for one in told] == pytest.approx(expected, abs=SHAPES)
    model.close()
