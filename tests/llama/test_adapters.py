"""LoRA adapters on a real tiny model: each answers as if it were alone, whatever else is served."""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.adapters import TinyAdapter, adapter_tensors, write_adapter
from tests.llama.test_runner import CONTEXT, GREEDY, PROMPTS, options
from tests.models import TinyModel, write_model

from ocak.core.errors import LoadFailed, ModelFileError
from ocak.core.lora import LoraAdapter
from ocak.engine.engine import Engine
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.llama import library
from ocak.llama.adapters import LlamaAdapters
from ocak.llama.context import ContextOptions, LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.memory.gguf_header import read_model
from ocak.memory.lora_file import read_adapter

NAMES = ("", "loud", "other", "still")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    library.initialise()
    loaded = LlamaModel(str(tiny_model), WeightOptions(), lambda _progress: None)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def adapters(model: LlamaModel, tmp_path_factory: pytest.TempPathFactory) -> LlamaAdapters:
    folder = tmp_path_factory.mktemp("adapters")
    made = {
        "loud": TinyAdapter(seed=1),
        "other": TinyAdapter(seed=2),
        "still": TinyAdapter(strength=0.0),
    }
    paths = {name: write_adapter(folder / f"{name}.gguf", adapter) for name, adapter in made.items()}
    return LlamaAdapters(model, [LoraAdapter(name, str(path)) for name, path in paths.items()])


def serve(
    model: LlamaModel, adapters: LlamaAdapters, jobs: list[tuple[str, list[int]]], sizes: ContextOptions
) -> list[list[int]]:
    """Serve every job, an adapter and a prompt, at once; return the tokens that followed."""
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
    engine = Engine(LlamaRunner(context, model.vocabulary, adapters), limits)
    sequences = [
        Sequence(i, list(prompt), GREEDY, 20, frozenset(), adapter=adapter, root=adapter)
        for i, (adapter, prompt) in enumerate(jobs)
    ]
    for sequence in sequences:
        engine.submit(sequence)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    context.close()
    return [sequence.tokens[sequence.num_prompt :] for sequence in sequences]


def alone(model: LlamaModel, adapters: LlamaAdapters, adapter: str, prompt: list[int]) -> list[int]:
    return serve(model, adapters, [(adapter, prompt)], options(parallel=1, kv_cells=CONTEXT))[0]


@pytest.mark.parametrize("kv_cells", [CONTEXT * 4, CONTEXT], ids=["split", "unified and over-committed"])
def test_an_answer_in_a_busy_mix_of_adapters_is_the_one_it_is_alone(
    model: LlamaModel, adapters: LlamaAdapters, kv_cells: int
) -> None:
    jobs = [(name, prompt) for prompt in PROMPTS[:4] for name in NAMES]
    mixed = serve(model, adapters, jobs, options(kv_cells=kv_cells))
    assert mixed == [alone(model, adapters, name, prompt) for name, prompt in jobs]


def test_an_adapter_changes_the_answer_and_one_of_no_strength_does_not(
    model: LlamaModel, adapters: LlamaAdapters
) -> None:
    base, loud, other, still = (alone(model, adapters, name, PROMPTS[2]) for name in NAMES)
    assert base == still
    assert len({tuple(base), tuple(loud), tuple(other)}) == 3


def test_the_scale_is_how_strongly_an_adapter_counts(model: LlamaModel, tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a.gguf", TinyAdapter(seed=1)))
    doubled = str(write_adapter(tmp_path / "b.gguf", TinyAdapter(seed=1, strength=2.0)))
    made = LlamaAdapters(
        model, [LoraAdapter("twice", path, 2.0), LoraAdapter("doubled", doubled), LoraAdapter("weak", path, 1e-6)]
    )
    assert alone(model, made, "twice", PROMPTS[2]) == alone(model, made, "doubled", PROMPTS[2])
    assert alone(model, made, "weak", PROMPTS[2]) == alone(model, made, "", PROMPTS[2])


def test_an_adapter_for_experts_and_one_for_the_embedding_answer(tmp_path: Path) -> None:
    path = write_model(tmp_path / "moe.gguf", TinyModel(num_experts=4))
    random = np.random.default_rng(1)
    vocabulary = next(t.shape[1] for t in read_model(path).header.tensors if t.name == "token_embd.weight")
    shapes = {
        "blk.0.ffn_up_exps.weight.lora_a": (4, 4, 64),
        "blk.0.ffn_up_exps.weight.lora_b": (4, 96, 4),
        "token_embd.weight.lora_a": (vocabulary, 4),
        "token_embd.weight.lora_b": (64, 4),
    }
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    file = write_adapter(tmp_path / "experts.gguf", tensors=tensors)
    read_adapter(file, read_model(path))
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    adapters = LlamaAdapters(model, [LoraAdapter("experts", str(file))])
    assert alone(model, adapters, "experts", PROMPTS[1]) != alone(model, adapters, "", PROMPTS[1])
    model.close()


def test_an_adapter_of_repacked_weights_answers_and_fills_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_model(tmp_path / "q4.gguf", TinyModel(is_quantized=True))
    model = LlamaModel(str(path), WeightOptions(), lambda _progress: None)
    files = {name: write_adapter(tmp_path / name, TinyAdapter(seed=seed)) for name, seed in (("a", 1), ("b", 2))}
    adapters = LlamaAdapters(model, [LoraAdapter(name, str(file)) for name, file in files.items()])
    jobs = [(name, prompt) for prompt in PROMPTS[:2] for name in ("", "a", "b")]
    mixed = serve(model, adapters, jobs, options())
    assert mixed == [alone(model, adapters, name, prompt) for name, prompt in jobs]
    assert len({tuple(answer) for answer in mixed}) == 6
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    model.close()


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    tensors = adapter_tensors(TinyAdapter())
    return tensors | {name: np.ascontiguousarray(change(tensors[name]))}


Q_A, Q_B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"
WRONG = {
    "another model's row length": (changed(Q_A, lambda a: a[:, :32]), "needs 64 x 4"),
    "another model's rows": (changed(Q_B, lambda b: b[:32]), "needs 4 x 64"),
    "two ranks": (changed(Q_A, lambda a: a[:2]), "needs 64 x 4"),
    "experts where there are none": (changed(Q_A, lambda a: np.stack([a, a])), "needs 64 x 4"),
    "half a pair": ({Q_A: np.zeros((4, 64), np.float32)}, "lora_b is missing"),
    "a layer too many": (adapter_tensors(TinyAdapter(num_layers=3)), "has no tensor 'blk.2"),
    "a tensor of no adapter": ({"blk.0.attn_q.weight": np.zeros((64, 64), np.float32)}, "neither a .lora_a"),
    "nothing": ({"blk.0.attn_norm.weight": np.zeros(64, np.float32)}, "no LoRA tensors"),
    "a vector": (
        {
            "output_norm.weight.lora_a": np.zeros((4, 64), np.float32),
            "output_norm.weight.lora_b": np.zeros((1, 4), np.float32),
        },
        "no matrix",
    ),
    "integers": (changed(Q_A, lambda a: a.astype(np.int32)), "type I32"),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_adapter_that_does_not_fit_is_refused_before_c_sees_it(
    tiny_model: Path, tmp_path: Path, what: str
) -> None:
    tensors, reason = WRONG[what]
    path = write_adapter(tmp_path / "wrong.gguf", tensors=tensors)
    with pytest.raises(ModelFileError, match=reason):
        read_adapter(path, read_model(tiny_model))


@pytest.mark.parametrize("what", set(WRONG) - {"experts where there are none", "integers", "nothing", "a vector"})
def test_what_llama_cpp_refuses_itself_is_an_error_and_no_crash(
    model: LlamaModel, tmp_path: Path, what: str
) -> None:
    path = write_adapter(tmp_path / "wrong.gguf", tensors=WRONG[what][0])
    with pytest.raises(LoadFailed, match="could not load the adapter 'x'"):
        LlamaAdapters(model, [LoraAdapter("x", str(path))])


def test_an_adapter_of_another_architecture_and_a_model_are_no_adapters(tiny_model: Path, tmp_path: Path) -> None:
    model = read_model(tiny_model)
    other = write_adapter(tmp_path / "other.gguf", TinyAdapter(architecture="qwen2"))
    with pytest.raises(ModelFileError, match="architecture is qwen2, the model's llama"):
        read_adapter(other, model)
    with pytest.raises(ModelFileError, match="no LoRA adapter: general.type"):
        read_adapter(tiny_model, model)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_adapter(tmp_path / "absent.gguf", model)


def test_an_alpha_that_would_abort_llama_cpp_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    data = write_adapter(tmp_path / "good.gguf").read_bytes()
    key = gguf.Keys.Adapter.LORA_ALPHA.encode()
    at = data.index(key) + len(key)
    for name, change in {"type": struct.pack("<I", 4), "value": struct.pack("<If", 6, float("nan"))}.items():
        wrong = tmp_path / f"{name}.gguf"
        wrong.write_bytes(data[:at] + change + data[at + len(change) :])
        with pytest.raises(ModelFileError, match="adapter.lora.alpha"):
            read_adapter(wrong, read_model(tiny_model))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_refused_or_read_and_never_crashes(
    tiny_model: Path, tmp_path: Path, model: LlamaModel, data: st.DataObject
) -> None:
    good = write_adapter(tmp_path / "good.gguf").read_bytes()
    if data.draw(st.booleans()):
        damaged = good[: data.draw(st.integers(0, len(good) - 1))]
    else:
        at = data.draw(st.integers(0, 2000))
        damaged = good[:at] + bytes([data.draw(st.integers(0, 255))]) + good[at + 1 :]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        read_adapter(path, read_model(tiny_model))
    except ModelFileError:
        return
    # A byte of a value that nobody reads, or of a weight: then llama.cpp takes it too.
    adapters = LlamaAdapters(model, [LoraAdapter("x", os.fspath(path))])
    assert len(alone(model, adapters, "x", PROMPTS[0])) == 20
