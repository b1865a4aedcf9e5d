"""llama.cpp as an embedder, on tiny real models: against a plain call of its own, alone and among others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from gguf import PoolingType
from llama_cpp import llama_cpp as c
from tests.embedding_models import (
    CLS,
    SEP,
    TinyEncoder,
    write_causal_embedder,
    write_causal_ranker,
    write_cross_encoder,
    write_encoder,
)
from tests.models import TinyModel, write_model

from ocak.core.embedding import Pooling
from ocak.core.errors import LoadFailed
from ocak.core.request import Sampling
from ocak.engine.embedder import EmbeddedOutput, Embedder, EmbedderLimits
from ocak.engine.embedding_runner import Vector
from ocak.engine.runner import Aborted, Chunk
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.embedding import POOLING_TYPES, EmbeddingContext, EmbeddingOptions
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.pairs import PairReader

CONTEXT = 256
TEXTS = [[(7 * i + j * j) % 60 + 5 for j in range(3 + 11 * i)] for i in range(8)]
Write = Callable[[Path], Path]
KINDS: dict[str, tuple[Write, Pooling]] = {
    "bert, mean": (write_encoder, "mean"),
    "bert, cls": (write_encoder, "cls"),
    "bert, last": (write_encoder, "last"),
    "bert, rank": (write_cross_encoder, "rank"),
    "qwen2, last": (write_causal_embedder, "last"),
    "qwen2, mean": (lambda path: write_causal_embedder(path, pooling=PoolingType.MEAN), "mean"),
    "qwen2, cls": (write_causal_embedder, "cls"),
    "qwen3, rank": (write_causal_ranker, "rank"),
}


@contextmanager
def loaded(path: Path) -> Iterator[LlamaModel]:
    library.initialise()
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    yield model
    model.close()


def options(model: LlamaModel, pooling: Pooling, **changes: object) -> EmbeddingOptions:
    can_split = pooling in ("last", "rank") and model.architecture != "bert"
    settings: dict[str, object] = {
        "context": CONTEXT,
        "num_slots": 8,
        "batch_tokens": 128,
        "threads": 1,
        "can_split": can_split,
        "kv_type": "f32",
        "kv_offload": True,
        "flash_attn": "off",  # its half-precision sums hide what is looked for
    }
    return EmbeddingOptions(pooling=pooling, **(settings | changes))  # type: ignore[arg-type]


def embedded(model: LlamaModel, sizes: EmbeddingOptions, texts: list[list[int]]) -> list[Vector]:
    """Embed all texts at once."""
    context = EmbeddingContext(model, sizes)
    limits = EmbedderLimits(sizes.num_slots, sizes.context, sizes.batch_tokens, sizes.num_cells, sizes.can_split)
    engine = Embedder(context, limits)
    for i, text in enumerate(texts):
        engine.submit(Sequence(i, list(text), Sampling(), 1, frozenset()))
    found: dict[int, Vector] = {}
    while engine.has_work:
        found |= {o.sequence.id: o.vector for o in engine.step() if isinstance(o, EmbeddedOutput)}
        engine.check_integrity()
    context.close()
    return [found[i] for i in range(len(texts))]


def plainly(model: LlamaModel, pooling: Pooling, text: list[int]) -> Vector:
    """What llama.cpp says of one text, called as its own examples do."""
    params = c.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.embeddings = True
    params.pooling_type = POOLING_TYPES[pooling]
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = library.KV_TYPES["f32"]
    params.flash_attn_type = library.FLASH_ATTENTION["off"]
    context = c.llama_init_from_model(model.pointer, params)
    tokens = (c.llama_token * len(text))(*text)
    assert c.llama_decode(context, c.llama_batch_get_one(tokens, len(text))) == 0
    is_rank = pooling == "rank"
    length = c.llama_model_n_cls_out(model.pointer) if is_rank else c.llama_model_n_embd_out(model.pointer)
    vector: Vector = np.ctypeslib.as_array(c.llama_get_embeddings_seq(context, 0), (length,)).copy()
    c.llama_free(context)
    return vector


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[LlamaModel, Pooling]]:
    write, pooling = request.param
    with loaded(write(tmp_path / "model.gguf")) as model:
        yield model, pooling


def test_a_vector_is_what_llama_cpp_gives_for_the_text_alone(kind: tuple[LlamaModel, Pooling]) -> None:
    model, pooling = kind
    for made, text in zip(embedded(model, options(model, pooling), TEXTS), TEXTS, strict=True):
        np.testing.assert_allclose(made, plainly(model, pooling, text), atol=2e-4, rtol=1e-4)


def test_neighbours_in_a_pass_change_nothing(kind: tuple[LlamaModel, Pooling]) -> None:
    model, pooling = kind
    alone = [embedded(model, options(model, pooling), [text])[0] for text in TEXTS]
    together = embedded(model, options(model, pooling, batch_tokens=CONTEXT), TEXTS)
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert np.abs(np.diff(alone, axis=0)).max(axis=1).min() > 1e-3, "texts that cannot be told apart prove nothing"


def test_a_text_in_parts_has_the_vector_of_the_whole(tmp_path: Path) -> None:
    text = [(11 * j) % 200 + 5 for j in range(CONTEXT)]
    with loaded(write_causal_embedder(tmp_path / "causal.gguf")) as model:
        [parts] = embedded(model, options(model, "last", batch_tokens=17), [text])
        np.testing.assert_allclose(parts, plainly(model, "last", text), atol=2e-4, rtol=1e-4)
        among = embedded(model, options(model, "last", batch_tokens=40), [text, *TEXTS])[0]
        np.testing.assert_allclose(among, parts, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "mamba"])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_models_that_write_embed_whatever_their_memory(
    tmp_path: Path, architecture: Literal["llama", "qwen2", "gemma2", "mamba"], pooling: Pooling
) -> None:
    """A sliding window, a recurrent state: in one pass, and where they may, in parts."""
    with loaded(write_model(tmp_path / "model.gguf", TinyModel(architecture=architecture))) as model:
        for made, text in zip(
            embedded(model, options(model, pooling, batch_tokens=40), TEXTS), TEXTS, strict=True
        ):
            plain = plainly(model, pooling, text)
            assert made @ plain / np.linalg.norm(made) / np.linalg.norm(plain) > 1 - 1e-5


def test_the_longest_text_fits_beside_a_budget_that_is_smaller(tmp_path: Path) -> None:
    text = [7] * 512
    with loaded(write_encoder(tmp_path / "bert.gguf", TinyEncoder(context_length=512))) as model:
        [vector] = embedded(model, options(model, "mean", context=512, batch_tokens=32), [text])
    assert np.isfinite(vector).all()


@pytest.mark.parametrize("num_slots", [1, 3, 64, 100])
@pytest.mark.parametrize("context", [2, 7, 300, 511])
def test_any_length_goes_with_any_number_of_slots(tmp_path: Path, context: int, num_slots: int) -> None:
    for write, pooling in KINDS.values():
        with loaded(write(tmp_path / "model.gguf")) as model:
            sizes = options(model, pooling, context=context, num_slots=num_slots, batch_tokens=max(100, num_slots))
            texts = [[7] * context, [8, 9]] * 3
            assert np.isfinite(embedded(model, sizes, texts)).all()


@pytest.mark.parametrize("name", ["bert, mean", "qwen2, last"])
def test_a_pass_that_is_cut_short_leaves_the_context_as_good_as_new(tmp_path: Path, name: str) -> None:
    write, pooling = KINDS[name]
    text = Chunk(0, 0, [9] * CONTEXT, None)
    with loaded(write(tmp_path / "model.gguf")) as model:
        context = EmbeddingContext(model, options(model, pooling, batch_tokens=CONTEXT))
        expected = context.run([text], [0])[0]
        context.clear(0)
        with ThreadPoolExecutor(1) as threads:
            is_over = threading.Event()
            cutting = threads.submit(lambda: [context.abort() for _ in iter(is_over.is_set, True)])
            for _ in range(5):
                with pytest.raises(Aborted):
                    while True:
                        context.run([text], [0])
                        context.clear(0)
                context.clear(0)
            is_over.set()
            cutting.result()
        again = context.run([text], [0])[0]
        context.close()
    np.testing.assert_array_equal(again, expected)


def test_a_model_that_reads_both_ways_is_not_read_in_parts(tmp_path: Path) -> None:
    with loaded(write_encoder(tmp_path / "bert.gguf")) as model, pytest.raises(LoadFailed, match="both ways"):
        EmbeddingContext(model, options(model, "last", can_split=True))


def test_a_pair_is_read_with_the_marks_of_the_tokenizer(tmp_path: Path) -> None:
    with loaded(write_cross_encoder(tmp_path / "rank.gguf")) as model:
        tokens = PairReader(model).read("who?", "fire")
        plain = model.vocabulary.tokenize
        query = plain("who?", add_special=False, parse_special=False)
        document = plain("fire", add_special=False, parse_special=False)
        assert tokens == [CLS, *query, SEP, *document, SEP]
        assert SEP not in PairReader(model).read("[SEP]", "")[1:-2], "text stays text"


def test_a_template_takes_both_at_once(tmp_path: Path) -> None:
    path = write_causal_ranker(tmp_path / "rank.gguf", "<|im_start|>{query} = {document}?")
    with loaded(path) as model:
        tokens = PairReader(model).read("{document}", "a {query}")
        assert model.vocabulary.text(tokens) == "<|im_start|>{document} = a {query}?"
        assert model.vocabulary.special_text(tokens[0]) == "<|im_start|>", "its marks are tokens"
