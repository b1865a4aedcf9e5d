"""Where tensors lie and how positions are stretched: what the settings say reaches llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.llama.test_runner import CONTEXT, GREEDY, PROMPTS, options, serve
from tests.models import TinyModel, write_model

from ocak.core.errors import LoadFailed
from ocak.core.placement import CPU, TensorOverride, overrides
from ocak.core.rope import RopeOptions
from ocak.engine.runner import Chunk
from ocak.llama import library
from ocak.llama.context import LlamaContext
from ocak.llama.model import LlamaModel, WeightOptions
from ocak.llama.runner import LlamaRunner
from ocak.worker.messages import LoadOptions
from ocak.worker.sizes import context_options


def load(path: Path, *wanted: TensorOverride) -> LlamaModel:
    library.initialise()
    return LlamaModel(str(path), WeightOptions(tensor_overrides=wanted), lambda _progress: None)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    loaded = load(tiny_model)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "moe.gguf", TinyModel(num_experts=4))


def last_logits(model: LlamaModel, rope: RopeOptions, num_tokens: int) -> NDArray[np.float32]:
    context = LlamaContext(model, options(parallel=1, kv_cells=CONTEXT, batch_tokens=CONTEXT, rope=rope))
    runner = LlamaRunner(context, model.vocabulary)
    tokens = [(i * 7) % 250 + 1 for i in range(num_tokens)]
    runner.run([Chunk(0, 0, tokens, runner.new_sampler(GREEDY, ()))])
    logits = context.logits()[0].copy()
    context.close()
    return logits


@pytest.mark.parametrize(
    "rope",
    [
        RopeOptions(scaling="linear", freq_scale=0.25),
        RopeOptions(scaling="yarn", freq_scale=0.25),
        RopeOptions(freq_base=500.0),
    ],
    ids=["linear", "yarn", "base"],
)
def test_stretched_positions_change_what_far_tokens_see_and_a_lone_token_not(
    model: LlamaModel, rope: RopeOptions
) -> None:
    plain = RopeOptions()
    assert np.abs(last_logits(model, rope, 200) - last_logits(model, plain, 200)).max() > 0.01
    assert np.allclose(last_logits(model, rope, 1), last_logits(model, plain, 1), atol=1e-4)


@pytest.mark.parametrize(
    "changed", ["yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_ctx"]
)
def test_every_setting_of_yarn_reaches_the_model(model: LlamaModel, changed: str) -> None:
    values = {"yarn_ext_factor": 0.4, "yarn_attn_factor": 3.0, "yarn_beta_fast": 4.0, "yarn_beta_slow": 3.0}
    # llama.cpp settles the attention factor itself, unless there is nothing to extrapolate.
    base = {"yarn_ext_factor": 0.0} if changed == "yarn_attn_factor" else {}
    yarn = RopeOptions(scaling="yarn", freq_scale=0.25, **base)  # type: ignore[arg-type]
    other = RopeOptions(scaling="yarn", freq_scale=0.25, **(base | {changed: values.get(changed, 64)}))  # type: ignore[arg-type]
    assert np.abs(last_logits(model, yarn, 200) - last_logits(model, other, 200)).max() > 1e-4


def test_without_scaling_a_factor_counts_for_nothing(model: LlamaModel) -> None:
    none = RopeOptions(scaling="none", freq_scale=0.25)
    assert np.array_equal(last_logits(model, none, 200), last_logits(model, RopeOptions(), 200))


def test_a_context_beyond_the_trained_one_needs_stretching_and_the_refusal_says_how() -> None:
    with pytest.raises(LoadFailed, match=r"2048.*--rope-scaling yarn --rope-scale 4"):
        context_options(LoadOptions(path="", context=8192), 2048)
    rope = RopeOptions(scaling="yarn", freq_scale=0.25)
    assert context_options(LoadOptions(path="", context=8192, rope=rope), 2048).context == 8192
    with pytest.raises(LoadFailed, match="with its RoPE scaling"):
        context_options(LoadOptions(path="", context=8193, rope=rope), 2048)


@pytest.mark.parametrize("wanted", [{"cpu_moe": True, "n_cpu_moe": 0}, {"cpu_moe": False, "n_cpu_moe": 1}])
def test_a_model_whose_experts_stay_on_the_cpu_answers_the_same(experts: Path, wanted: dict[str, int]) -> None:
    sizes = options(parallel=2, kv_cells=2 * CONTEXT)
    plain, placed = load(experts), load(experts, *overrides([], **wanted))  # type: ignore[arg-type]
    assert serve(placed, PROMPTS[:2], sizes, GREEDY) == serve(plain, PROMPTS[:2], sizes, GREEDY)
    plain.close()
    placed.close()


def test_an_override_reaches_the_tensors_it_names(experts: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "ocak.llama"):
        load(experts, *overrides([r"blk\.1\.attn_q=CPU"], cpu_moe=False, n_cpu_moe=1)).close()
    moved = [record.message for record in caplog.records if "overridden" in record.message]
    assert len(moved) == 4 and any("blk.1.attn_q" in line for line in moved)
    assert {
        name for name in ("gate", "down", "up") if any(f"blk.0.ffn_{name}_exps" in line for line in moved)
    } == {
        "gate",
        "down",
        "up",
    }


def test_a_device_that_is_not_there_is_refused_with_those_that_are(tiny_model: Path) -> None:
    with pytest.raises(LoadFailed, match=f"no device CUDA7; this build has .*{CPU}"):
        load(tiny_model, TensorOverride("attn_q", "CUDA7"))


def test_a_pattern_that_only_python_reads_is_an_error_and_no_crash(tiny_model: Path) -> None:
    with pytest.raises(LoadFailed):
        load(tiny_model, TensorOverride("attn_q[[:nonsense:]]", CPU))
