"""A draft on real models: the same answers, cells in step, and clear words where two models do not fit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.embedding_models import write_encoder
from tests.models import TinyModel, write_model

from ocak.core.errors import LoadFailed, ModelFileError
from ocak.core.limits import MOST_GUESSES
from ocak.core.request import Sampling
from ocak.engine.draft_pay import DraftPay
from ocak.engine.drafting import Draft
from ocak.engine.engine import Engine
from ocak.engine.outputs import Sampled
from ocak.engine.payoff import StepTimes
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.window import Window
from ocak.llama import library
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.drafter import LlamaDrafter
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.llama.vocabulary_match import difference
from ocak.worker.loading import LoadedModel, load
from ocak.worker.messages import LoadOptions
from ocak.worker.stopwatch import Stopwatch

CONTEXT = 512
SIZES = ContextOptions(CONTEXT, 2, 2 * CONTEXT, 64, 1, "f16", True, "auto")
TINY = TinyModel()


class Always(DraftPay):
    """A tiny model is as slow as its draft; it drafts nevertheless."""

    def __init__(self, chunk: int) -> None:
        super().__init__(0.2, MOST_GUESSES)
        self._chunk = chunk

    def plan(self, times: StepTimes, num_behind: int, num_left: int, rival: float = 1.0) -> int:
        return 5

    def chunk(self, times: StepTimes) -> int:
        return self._chunk


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never of the tiny model's opinion."""
    return write_model(tmp_path_factory.mktemp("other") / "other.gguf", TinyModel(seed=1, num_layers=1))


def sequence(number: int, sampling: Sampling, prompt: int = 40, max_tokens: int = 120) -> Sequence:
    tokens = [7 + (place * 13 + number) % 200 for place in range(prompt)]
    return Sequence(number, tokens, sampling, max_tokens, frozenset(), num_logprobs=2)


def serve(
    model: LlamaModel,
    sequences: list[Sequence],
    path: Path | None = None,
    chunk: int = 64,
    draft_context: int = CONTEXT,
) -> tuple[list[list[Sampled]], Engine]:
    """Answer one after another; with a draft if there is a path."""
    context = LlamaContext(model, SIZES)
    drafter = None if path is None else drafter_at(path, model, draft_context)
    draft = None if drafter is None else Draft(drafter, Always(chunk))
    limits = SchedulerLimits(2, CONTEXT, 2 * CONTEXT, 64)
    engine = Engine(LlamaRunner(context, model.vocabulary), limits, speculates=path is not None, draft=draft)
    told = [answer(engine, one) for one in sequences]
    if drafter is not None:
        drafter.close()
    context.close()
    return told, engine


def drafter_at(path: Path, model: LlamaModel, context: int) -> LlamaDrafter:
    own = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    sizes = replace(SIZES, parallel=1, context=context, kv_cells=context)
    return LlamaDrafter(own, LlamaContext(own, sizes), model.vocabulary.size)


def answer(engine: Engine, one: Sequence) -> list[Sampled]:
    engine.submit(one)
    told: list[Sampled] = []
    while engine.has_work:
        told += [output for output in engine.step() if isinstance(output, Sampled)]
        engine.check_integrity()
    return told


def is_same(drafted: list[list[Sampled]], plain: list[list[Sampled]]) -> None:
    for one, other in zip(drafted, plain, strict=True):
        assert [output.token for output in one] == [output.token for output in other]
        for drafted_token, token in zip(one, other, strict=True):
            assert drafted_token.logprobs is not None and token.logprobs is not None
            assert drafted_token.logprobs.token == pytest.approx(token.logprobs.token, abs=0.02)


SAMPLINGS = [Sampling(temperature=0), Sampling(temperature=0.7, seed=3, repetition_penalty=1.1)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn"])
@pytest.mark.parametrize("is_own", [True, False], ids=["agrees", "disagrees"])
def test_the_answer_is_the_one_without_a_draft(
    model: LlamaModel, tiny_model: Path, other: Path, sampling: Sampling, is_own: bool
) -> None:
    """Of three answers in turn: the second has another prompt, the third the first's."""

    def wanted() -> list[Sequence]:
        return [sequence(number % 2, sampling) for number in range(3)]

    plain, _ = serve(model, wanted())
    drafted, engine = serve(model, wanted(), tiny_model if is_own else other, chunk=16)
    is_same(drafted, plain)
    stats = engine.stats()
    assert stats.drafted_tokens > 100 and stats.draft_s > 0
    if is_own and sampling.is_greedy:
        assert stats.right_drafts > 0.95 * stats.drafted_tokens, "its cells are out of step"
        assert stats.steps < 0.5 * stats.generation_tokens
    elif not is_own:
        assert stats.right_drafts < 0.1 * stats.drafted_tokens


def test_a_draft_is_in_step_again_after_a_shift(model: LlamaModel, tiny_model: Path) -> None:
    def wanted() -> Sequence:
        one = sequence(0, Sampling(temperature=0), prompt=100, max_tokens=300)
        one.window = Window(160, 20)
        return one

    [plain], _ = serve(model, [wanted()])
    [drafted], engine = serve(model, [wanted()], tiny_model, chunk=50)
    # After a shift the model's cells have seen what is gone, and the draft's have not: they need not agree.
    assert len(drafted) == len(plain) == 300
    assert [output.token for output in drafted[:60]] == [output.token for output in plain[:60]]
    assert engine.stats().drafted_tokens > 100


def test_a_sequence_longer_than_the_drafts_context_goes_on_without_it(model: LlamaModel, tiny_model: Path) -> None:
    def wanted() -> list[Sequence]:
        return [sequence(0, Sampling(temperature=0), prompt=300), sequence(1, Sampling(temperature=0), prompt=200)]

    plain, _ = serve(model, wanted())
    [long, short], engine = serve(model, wanted(), tiny_model, draft_context=256)
    is_same([long, short], plain)
    _, alone = serve(model, wanted()[:1], tiny_model, draft_context=256)
    assert engine.stats().drafted_tokens > 0 == alone.stats().drafted_tokens


def load_with(path: Path, draft: Path, **options: object) -> LoadedModel:
    settled = LoadOptions(path=str(path), context=CONTEXT, parallel=2, threads=1, draft_path=str(draft), **options)  # type: ignore[arg-type]
    return load(settled, lambda _: None, Stopwatch())


def test_a_draft_is_loaded_beside_its_model_and_counted(tiny_model: Path, other: Path) -> None:
    loaded = load_with(tiny_model, other)
    assert loaded.info.draft == "tiny" and loaded.info.draft_bytes > other.stat().st_size / 2
    loaded.close()


@pytest.mark.parametrize(
    ("draft", "reason"),
    [
        (TinyModel(extra_tokens=tuple(f"word{i}" for i in range(200))), "tokens, the model"),
        (TinyModel(extra_tokens=("hearth",)), "its token 2.. is"),
        (TinyModel(add_bos=True), "as BOS it adds token .* the model no token"),
        (TinyModel(architecture="mamba"), "gives no single cell back"),
        (TinyModel(architecture="gemma2"), "gives no single cell back"),
    ],
    ids=["size", "texts", "bos", "recurrent", "window"],
)
def test_a_draft_that_does_not_fit_is_refused_with_what_differs(
    tiny_model: Path, tmp_path: Path, draft: TinyModel, reason: str
) -> None:
    path = write_model(tmp_path / "draft.gguf", draft)
    with pytest.raises(LoadFailed, match=reason) as refused:
        load_with(tiny_model, path)
    assert str(path) in refused.value.message and "leave out --draft-model" in refused.value.message
    assert refused.value.param == "draft_model"


def test_another_type_of_tokenizer_is_told(model: LlamaModel, tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "bert.gguf")
    bert = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    assert difference(model.vocabulary, bert.vocabulary) == "its tokenizer is of the type WPM, the model's of BPE"
    bert.close()


def test_a_few_tokens_more_at_the_end_do_no_harm(tmp_path: Path, tiny_model: Path, model: LlamaModel) -> None:
    draft = TinyModel(special_tokens=tuple(f"<|extra_{i}|>" for i in range(100)))
    path = write_model(tmp_path / "draft.gguf", draft)
    load_with(tiny_model, path).close()
    load_with(path, tiny_model).close()
    drafter = drafter_at(tiny_model, model, 64)
    drafter.read(0, [model.vocabulary.size + 50])  # one that it does not know
    drafter.close()


def test_a_file_that_is_no_model_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "draft.gguf"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelFileError, match=r"draft\.gguf"):
        load_with(tiny_model, path)


@pytest.mark.parametrize(
    ("unused", "reason"),
    [
        ((TINY, {"deterministic": True}), "deterministic"),
        ((TINY, {"speculation": "off"}), "speculation is off"),
        ((TinyModel(architecture="mamba"), {}), "no single cell back"),
    ],
)
def test_a_draft_that_would_never_be_asked_is_left_out(
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    unused: tuple[TinyModel, dict[str, object]],
    reason: str,
) -> None:
    target, options = unused
    with caplog.at_level(logging.WARNING):
        loaded = load_with(write_model(tmp_path / "target.gguf", target), tiny_model, **options)
    assert loaded.info.draft is None and loaded.draft is None
    assert any(reason in record.message and "left out" in record.message for record in caplog.records)
    loaded.close()


def test_a_model_that_embeds_has_no_use_for_a_draft(tiny_model: Path) -> None:
    with pytest.raises(LoadFailed, match="leave --draft-model out"):
        load_with(tiny_model, tiny_model, embedding=True)
