"""The configuration: what wins, what is refused, and how a refusal reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.cli.api_keys import resolve_keys
from ocak.cli.config import Sources, load
from ocak.cli.config_check import setting_rows
from ocak.cli.schema import Setting, settings_of
from ocak.cli.settings import ModelSettings, ServerSettings, Settings
from ocak.core.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / "ocak.example.toml"
ALL = [*settings_of(ServerSettings).values(), *settings_of(ModelSettings).values()]


def write(folder: Path, text: str) -> str:
    path = folder / "ocak.toml"
    path.write_text(text)
    return str(path)


def only_model(settings: Settings) -> ModelSettings:
    [model] = settings.models.values()
    return model


def test_without_anything_the_embedded_model_is_served_on_loopback() -> None:
    settings = load(Sources())
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8080)
    assert {key: model.source for key, model in settings.models.items()} == {"embedded": "embedded"}


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nport = 1\ndrain_seconds = 1\nhost = '::1'\n[models.a]\ncontext = 1\n")
    settings = load(
        Sources(
            flags={"port": "3", "context": "3"},
            environ={"OCAK_PORT": "2", "OCAK_DRAIN_SECONDS": "2", "OCAK_CONTEXT": "2"},
            config=file,
        )
    )
    assert settings.server == ServerSettings(port=3, drain_seconds=2, host="::1")
    assert settings.models == {"a": ModelSettings(context=3)}
    assert settings.origins["server.port"] == "--port"
    assert settings.origins["server.drain_seconds"] == "OCAK_DRAIN_SECONDS"
    assert settings.origins["server.host"] == f"{file}: server"
    assert settings.origins["server.no_auth"] == "default"


def test_the_settings_of_the_replaced_service_keep_working() -> None:
    environ = {
        "LLM_LLAMA_SERVICE_GPU_LAYERS": "7",
        "LLM_LLAMA_SERVICE_THREADS": "9",
        "LLM_LLAMA_SERVICE_CONTEXT_SIZE": "512",
        "LLM_LLAMA_SERVICE_USE_MMAP": "false",
        "LLM_LLAMA_SERVICE_KV_OFFLOAD": "0",
    }
    expected = ModelSettings(
        gpu_layers=7, parallel=9, context=512, mmap=False, kv_offload=False, context_policy="shift"
    )
    assert only_model(load(Sources(environ=environ))) == expected
    own = load(Sources(environ={**environ, "OCAK_PARALLEL": "2"}))
    assert only_model(own).parallel == 2


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("embedded", "embedded"),
        ("/models/qwen-8b.Q4_K_M.gguf", "qwen-8b.Q4_K_M"),
        ("big-00001-of-00003.gguf", "big"),
        ("hf:Qwen/Qwen3-0.6B-GGUF:Q8_0", "Qwen3-0.6B-GGUF"),
    ],
)
def test_a_model_without_a_name_is_called_after_its_source(source: str, key: str) -> None:
    assert list(load(Sources(model=source)).models) == [key]


def test_the_model_may_come_from_a_variable_but_not_beside_a_file(tmp_path: Path) -> None:
    assert only_model(load(Sources(environ={"OCAK_MODEL": "/m.gguf"}))).source == "/m.gguf"
    with pytest.raises(ConfigError, match="MODEL /m.gguf and .*models are both given"):
        load(Sources(model="/m.gguf", config=write(tmp_path, "[models.a]\n")))


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    text = '[models.a]\nsource = "m.gguf"\nchat_template = "t.jinja"\n[models.b]\nsource = "hf:o/r"\n'
    models = load(Sources(config=write(tmp_path, text))).models
    assert models["a"].source == str(tmp_path / "m.gguf")
    assert models["a"].chat_template == str(tmp_path / "t.jinja")
    assert models["b"].source == "hf:o/r"


def test_no_models_serves_the_front_alone() -> None:
    assert load(Sources(flags={"no_models": True})).models == {}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (Sources(flags={"port": "65536"}), "--port must be a whole number from 0 to 65535, not 65536"),
        (Sources(environ={"OCAK_PORT": "http"}), "OCAK_PORT must be a whole number from 0 to 65535, not 'http'"),
        (Sources(flags={"kv_type": "q3"}), "--kv-type must be one of f32, .*, not 'q3'"),
        (Sources(environ={"OCAK_MMAP": "maybe"}), "OCAK_MMAP must be true or false, not 'maybe'"),
        (Sources(environ={"OCAK_PROT": "1"}), "there is no variable OCAK_PROT; did you mean OCAK_PORT?"),
        (Sources(config="/nowhere/ocak.toml"), "--config /nowhere/ocak.toml: No such file"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_limits(sources: Sources, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(sources)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", "server: there is no setting 'prot'; did you mean 'port'?"),
        ("[model.a]", "there is no table 'model'; did you mean 'models'?"),
        ("[models.a]\ncontxt = 1", r"models\.a: there is no setting 'contxt'; did you mean 'context'?"),
        ("[models.a]\ncontext = '1'", r"models\.a\.context must be a whole number .*, not '1'"),
        ("[models.a]\nmmap = 1", r"models\.a\.mmap must be true or false, not 1"),
        ("[models.a]\nparallel = 0", r"models\.a\.parallel must be a whole number from 1 to 256, not 0"),
        ("[models.a]\nparallel = true", r"models\.a\.parallel must be a whole number"),
        ("[models.a]\nprovider = 'openai'", r"models\.a\.provider must be one of llama"),
        ("[models.a]\nchat_template_kwargs = {x = [1]}", "must be a table of texts, numbers and booleans"),
        ("[models.a]\nchat_template_kwargs = {x = 9223372036854775808}", "must be a table of"),
        ("models = 3", r"models must be a table: write \[models\]"),
        ("[server", "is not valid TOML"),
        ("[models.a]\n[models.b]\nserved_name = 'a'", "models 'a' and 'b' both answer to 'a'"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(Sources(config=write(tmp_path, text)))


@given(st.sampled_from(ALL), st.text(max_size=30) | st.integers().map(str))
def test_any_text_is_a_valid_value_or_a_config_error(setting: Setting, text: str) -> None:
    try:
        value = setting.parse(text, setting.flag)
    except ConfigError as error:
        assert error.param == setting.name
        assert error.message.startswith(f"{setting.flag} must be ")
    else:
        assert setting.check(value, setting.flag) == value


def test_kubernetes_service_variables_and_empty_ones_are_not_settings() -> None:
    environ = {"OCAK_PORT": "tcp://10.0.0.1:8080", "OCAK_CONTEXT": "", "OCAK_SERVICE_HOST": "10.0.0.1"}
    settings = load(Sources(environ=environ))
    assert settings.server.port == 8080
    assert only_model(settings).context == 0


def test_the_example_names_every_setting_with_its_default() -> None:
    settings = load(Sources(config=str(EXAMPLE)))
    assert settings.server == ServerSettings()
    assert settings.models == {"assistant": ModelSettings(chat_template_kwargs={"enable_thinking": False})}
    assert "default" not in settings.origins.values()


def test_keys_come_from_variables_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-the-file\n")
    monkeypatch.setenv("MY_KEY", "from-the-variable")
    server = ServerSettings(api_key=("plain-key", "env:MY_KEY", f"file:{tmp_path / 'key'}"))
    assert resolve_keys(server) == ("plain-key", "from-the-variable", "from-the-file")


@pytest.mark.parametrize("key", ["short", "env:NO_SUCH_VARIABLE", "file:/nowhere", ""])
def test_a_key_that_is_missing_or_short_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="--api-key"):
        resolve_keys(ServerSettings(api_key=(key,)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_listening_beyond_loopback_needs_a_key_or_no_auth(host: str) -> None:
    with pytest.raises(ConfigError, match="--no-auth"):
        resolve_keys(ServerSettings(host=host))
    assert resolve_keys(ServerSettings(host=host, no_auth=True)) == ()
    assert resolve_keys(ServerSettings(host=host, api_key=("long-enough",))) == ("long-enough",)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert resolve_keys(ServerSettings(host=host)) == ()


def test_secrets_are_never_shown() -> None:
    settings = load(Sources(flags={"api_key": ["a-secret-key"]}))
    rows = {name: value for name, value, _ in setting_rows(settings)}
    assert rows["server.api_key"] == "1 set"
    assert "a-secret-key" not in str(rows)


LEGACY = [name for setting in ALL for name in setting.env if name.startswith("LLM_LLAMA_SERVICE_")]


@pytest.mark.parametrize("variable", LEGACY)
def test_any_setting_of_the_replaced_service_implies_that_prompts_shift(variable: str) -> None:
    settings = load(Sources(environ={variable: "1"}))
    assert only_model(settings).context_policy == "shift"
    assert settings.origins["models.embedded.context_policy"] == variable


def test_what_is_said_of_the_context_policy_goes_before_what_is_implied(tmp_path: Path) -> None:
    environ = {"LLM_LLAMA_SERVICE_CONTEXT_SIZE": "512", "LLM_LLAMA_SERVICE_THREADS": ""}
    file = write(tmp_path, "[models.a]\ncontext_policy = 'error'\n[models.b]\n")
    models = load(Sources(environ=environ, config=file)).models
    assert (models["a"].context_policy, models["b"].context_policy) == ("error", "shift")
    assert (
        only_model(load(Sources(environ=environ, flags={"context_policy": "truncate"}))).context_policy
        == "truncate"
    )
    own = {**environ, "OCAK_CONTEXT_POLICY": "error"}
    assert only_model(load(Sources(environ=own))).context_policy == "error"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LLM_LLAMA_SERVICE_THREADS": ""},
        {"LLM_LLAMA_SERVICE_HOST": "10.0.0.1", "LLM_LLAMA_SERVICE_PORT": "tcp://10.0.0.1:80"},
    ],
    ids=["nothing", "an empty variable", "Kubernetes' names of a service that is called so"],
)
def test_without_its_settings_nothing_is_implied(environ: dict[str, str]) -> None:
    assert only_model(load(Sources(environ=environ))).context_policy == "error"
