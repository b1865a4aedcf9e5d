"""What the worker makes of raw vectors, and which inputs it takes."""

from __future__ import annotations

import math
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.core.embedding import EmbedRequest, ModelKind, Pair, floats, input_bytes
from ocak.core.errors import ContextLengthExceeded, InvalidRequest
from ocak.core.request import TextPrompt, TokenPrompt
from ocak.core.status import ModelInfo
from ocak.engine.embedding_runner import Vector
from ocak.llama.vocabulary import InfillTokens
from ocak.worker.embedding import EmbeddingWork, normalised
from ocak.worker.prompt import PromptReader

INFO = ModelInfo(
    architecture="bert",
    name="b",
    num_parameters=1,
    weights_bytes=1,
    kv_bytes=0,
    cache_ram_bytes=0,
    vocabulary=256,
    context=8,
    trained_context=16,
    parallel=4,
    kv_cells=0,
    has_chat_template=False,
    has_infill=False,
    gpu=None,
    idle_gpu=None,
    load_s=0.0,
    kind="embedding",
    pooling="mean",
    embedding_length=4,
)
numbers = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=32)


class Bytes:
    """A vocabulary of bytes, and pairs with a 0 between."""

    size = 256
    infill: InfillTokens | None = None
    bos_text = ""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return list(text.encode())

    def text(self, tokens: tuple[int, ...]) -> str:
        return bytes(tokens).decode()

    def read(self, query: str, document: str) -> list[int]:
        return [*query.encode(), 0, *document.encode()]


def work(kind: ModelKind = "embedding", *, has_probabilities: bool = False) -> EmbeddingWork:
    info = msgspec.structs.replace(INFO, kind=kind)
    return EmbeddingWork(PromptReader(Bytes(), None), Bytes(), info, has_probabilities=has_probabilities)


def request(given_input: TextPrompt | TokenPrompt | Pair, **more: object) -> EmbedRequest:
    return EmbedRequest(id="r", model="b", input=given_input, **more)  # type: ignore[arg-type]


def finished(kind: ModelKind, vector: list[float], **more: object) -> list[float] | None:
    made = work(kind, has_probabilities=bool(more.pop("has_probabilities", False)))
    sequence = made.sequence(1, request(Pair("q", "d") if kind == "rerank" else TextPrompt("text")))
    end = made.finish(sequence, np.array(vector, np.float32), more.get("dimensions"))  # type: ignore[arg-type]
    assert end is None or end.usage.prompt_tokens == sequence.num_prompt
    return None if end is None else floats(end.vector)


@given(numbers)
def test_a_vector_has_length_one_and_its_own_direction(raw: list[float]) -> None:
    vector: Vector = np.array(raw, np.float32)
    made = normalised(vector)
    if not vector.any():
        assert not made.any()
        return
    assert math.hypot(*made.tolist()) == pytest.approx(1, abs=1e-5)
    assert float(np.dot(made.astype(np.float64), vector.astype(np.float64))) > 0


@given(numbers)
def test_numbers_survive_their_journey(raw: list[float]) -> None:
    assert floats(struct.pack(f"<{len(raw)}f", *raw)) == raw


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ["embedding", "rerank"])
def test_what_is_no_number_is_no_answer(kind: ModelKind, broken: float) -> None:
    assert finished(kind, [broken, 1.0]) is None


def test_dimensions_cut_before_the_length_is_made_one() -> None:
    assert finished("embedding", [3.0, 4.0, 12.0, 0.0], dimensions=2) == pytest.approx([0.6, 0.8])


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(-(2.0**100), 2.0**100, width=32))
def test_scores_are_between_0_and_1_and_keep_the_order_of_logits(one: float, other: float) -> None:
    low, high = sorted((one, other))
    [score_low] = finished("rerank", [low]) or []
    [score_high] = finished("rerank", [high]) or []
    assert 0 <= score_low <= score_high <= 1


def test_a_probability_is_a_score_as_it_is() -> None:
    assert finished("rerank", [0.25, 0.75], has_probabilities=True) == [0.25]
    assert finished("rerank", [0.0]) == [0.5]


def test_inputs_that_do_not_fit_are_refused() -> None:
    assert len(work().sequence(1, request(TextPrompt("x" * 8))).tokens) == 8
    with pytest.raises(ContextLengthExceeded, match="has 9 tokens and this model takes 8 .*--context, up to 16"):
        work().sequence(1, request(TextPrompt("x" * 9)))
    with pytest.raises(ContextLengthExceeded, match="together have 9 tokens"):
        work("rerank").sequence(1, request(Pair("xxxx", "yyyy")))
    with pytest.raises(InvalidRequest, match="no tokens"):
        work().sequence(1, request(TextPrompt("")))
    with pytest.raises(InvalidRequest, match="token id 256"):
        work().sequence(1, request(TokenPrompt((256,))))
    with pytest.raises(InvalidRequest, match="surrogate"):
        work("rerank").sequence(1, request(Pair("q", "\ud800")))


def test_the_queue_counts_both_sides_of_a_pair() -> None:
    assert input_bytes(Pair("ü", "abc")) == 5
    assert input_bytes(TokenPrompt((1, 2, 3))) == 3
