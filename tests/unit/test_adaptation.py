"""Adapters, RoPE and placement as they are configured: what is read, and what is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.models import write_tiny_model

from ocak.cli.adaptation import rope_options
from ocak.cli.compose import plan_models
from ocak.cli.config import Sources, load
from ocak.cli.settings import ModelSettings, ServerSettings, Settings
from ocak.core.errors import ConfigError, ModelFileError
from ocak.core.lora import LoraAdapter, parse_adapter
from ocak.core.placement import CPU, EXPERTS, TensorOverride, check_found, overrides
from ocak.core.rope import RopeOptions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a/b.gguf", LoraAdapter("x", "/a/b.gguf")),
        ("/a/b.gguf:0.5", LoraAdapter("x", "/a/b.gguf", 0.5)),
        ("/a/b.gguf:-1e0", LoraAdapter("x", "/a/b.gguf", -1.0)),
        ("hf:owner/repo", LoraAdapter("x", "hf:owner/repo")),
        ("hf:owner/repo:file.gguf:2", LoraAdapter("x", "hf:owner/repo:file.gguf", 2.0)),
    ],
)
def test_an_adapter_is_a_path_and_perhaps_a_scale(text: str, expected: LoraAdapter) -> None:
    assert parse_adapter("x", text) == expected


@pytest.mark.parametrize(
    ("name", "text"), [("a b", "p"), ("", "p"), ("a:b", "p"), ("x", "p:0"), ("x", "p:nan"), ("x", "p:1e9")]
)
def test_a_name_or_a_scale_of_no_use_is_refused(name: str, text: str) -> None:
    with pytest.raises(ConfigError):
        parse_adapter(name, text)


@given(st.text(max_size=80))
def test_any_override_is_read_or_refused_by_name(text: str) -> None:
    try:
        [override] = overrides([text], cpu_moe=False, n_cpu_moe=0)
    except ConfigError as error:
        assert error.param == "override_tensor"
    else:
        assert f"{override.pattern}={override.device}" == text


def test_the_owners_overrides_come_before_those_of_the_experts() -> None:
    found = overrides(["x=(?=y)=CUDA0"], cpu_moe=False, n_cpu_moe=2)
    layers = [TensorOverride(rf"blk\.{layer}{EXPERTS}", CPU) for layer in (0, 1)]
    assert found == (TensorOverride("x=(?=y)", "CUDA0"), *layers)
    assert overrides([], cpu_moe=True, n_cpu_moe=2) == (TensorOverride(EXPERTS, CPU),)


@pytest.mark.parametrize(
    "text", ["ffn", "=CPU", "ffn=", "(=CPU", "(?i)ffn=CPU", r"\Affn=CPU", "f*+=CPU", "a" * 600 + "=CPU"]
)
def test_a_pattern_that_llama_cpp_could_not_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="override-tensor"):
        overrides([text], cpu_moe=False, n_cpu_moe=0)


def test_a_pattern_that_no_tensor_has_is_a_typo() -> None:
    check_found(["ffn_up=CPU"], ["blk.0.ffn_up.weight"])
    with pytest.raises(ConfigError, match=r"blk\.0\.ffn_up\.weight"):
        check_found(["fnn_up=CPU"], ["blk.0.ffn_up.weight"])


def test_a_stretched_context_reaches_as_far_as_its_factor() -> None:
    assert RopeOptions().reach(1000) == 1000
    assert RopeOptions(scaling="linear", freq_scale=0.25).reach(1000) == 4000
    assert RopeOptions(scaling="yarn", freq_scale=0.5, yarn_orig_ctx=3000).reach(1000) == 6000
    assert RopeOptions(scaling="none", freq_scale=0.25).reach(1000) == 1000
    assert RopeOptions(freq_scale=4.0).reach(1000) == 1000
    assert RopeOptions(freq_base=1e6).reach(1000) > 10**9


def test_a_factor_has_two_spellings_and_one_value() -> None:
    assert rope_options(ModelSettings(rope_scale=4.0)).freq_scale == 0.25
    with pytest.raises(ConfigError, match="rope_scale 4 and rope_freq_scale 0.25"):
        rope_options(ModelSettings(rope_scale=4.0, rope_freq_scale=0.25))
    with pytest.raises(ConfigError, match="rope_scale must be 0 or at least 0.0625"):
        rope_options(ModelSettings(rope_scale=1e-9))


def test_adapters_are_read_from_flags_variables_and_tables(tmp_path: Path) -> None:
    flags = load(Sources(flags={"lora": ["a=/x.gguf:0.5", "b=/y.gguf"]}))
    [model] = flags.models.values()
    assert model.lora == {"a": "/x.gguf:0.5", "b": "/y.gguf"}
    [model] = load(Sources(environ={"OCAK_LORA": "a=/x.gguf, b=/y.gguf:2"})).models.values()
    assert model.lora == {"a": "/x.gguf", "b": "/y.gguf:2"}
    file = tmp_path / "ocak.toml"
    file.write_text("[models.m.lora]\na = 'x.gguf:0.5'\nb = '/y.gguf'\n")
    [model] = load(Sources(config=str(file))).models.values()
    assert model.lora == {"a": f"{tmp_path}/x.gguf:0.5", "b": "/y.gguf"}


@pytest.mark.parametrize("wrong", [["a"], ["a="], ["=p"], ["a=1", "a=2"]])
def test_adapters_without_a_name_a_path_or_with_one_name_twice_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="--lora must be"):
        load(Sources(flags={"lora": wrong}))


@pytest.mark.parametrize("wrong", ["nan", "inf", "-0.1", "x", "1e13"])
def test_a_number_out_of_its_range_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--rope-freq-base must be a number from 0 to 1e"):
        load(Sources(flags={"rope_freq_base": wrong}))


def test_what_is_configured_reaches_the_worker(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    flags = {"rope_scaling": "yarn", "rope_scale": "2", "context": "4096", "override_tensor": ["attn_q=CPU"]}
    [plan] = plan_models(load(Sources(flags=flags, model=str(model))))
    assert plan.spec.options.rope == RopeOptions(scaling="yarn", freq_scale=0.5)
    assert plan.spec.options.tensor_overrides == (TensorOverride("attn_q", CPU),)


def test_a_draft_model_is_found_checked_and_counted(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model.gguf")
    write_tiny_model(tmp_path / "draft.gguf", seed=1)
    file = tmp_path / "ocak.toml"
    file.write_text("[models.m]\nsource = 'model.gguf'\ndraft_model = 'draft.gguf'\ndraft_tokens = 4\n")
    [plan] = plan_models(load(Sources(config=str(file))))
    assert plan.spec.options.draft_path == str((tmp_path / "draft.gguf").resolve())
    assert plan.spec.options.draft_tokens == 4
    file.write_text("[models.m]\nsource = 'model.gguf'\n")
    [alone] = plan_models(load(Sources(config=str(file))))
    assert alone.spec.options.draft_path is None
    more = plan.spec.estimated_bytes - alone.spec.estimated_bytes
    cells = 2048 * 2 * 32 * 2 * 2  # of two layers, each with a key and a value of 32 numbers of 2 bytes
    assert more == pytest.approx((tmp_path / "draft.gguf").stat().st_size + cells, rel=0.1)


def test_a_draft_that_is_no_model_is_refused_before_the_load(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model.gguf")
    (tmp_path / "draft.gguf").write_bytes(b"PK" * 100)
    wrong = ModelSettings(source=str(tmp_path / "model.gguf"), draft_model=str(tmp_path / "draft.gguf"))
    with pytest.raises(ModelFileError, match=r"draft\.gguf"):
        plan_models(Settings(ServerSettings(), {"m": wrong}))
