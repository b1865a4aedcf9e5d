"""A model in this process: real llama.cpp, tiny weights, every thread that a caller may have."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psutil
import pytest

import ocak
from ocak.core.errors import (
    ConfigError,
    ContextLengthExceeded,
    InvalidRequest,
    LoadFailed,
    ModelFileError,
    ModelUnavailable,
    StateFileError,
)
from ocak.llama.model import LlamaModel, WeightOptions
from tests.adapters import TinyAdapter, write_adapter
from tests.models import TinyModel, token_id, write_model

SMALL = {"context": 256, "parallel": 4, "threads": 1}
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
ENDLESS = {"temperature": 0, "ignore_eos": True}
TINY = TinyModel()
LONG = {"context": 65536, "parallel": 1, "threads": 1}  # answers that go on for longer than any test


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[ocak.Model]:
    with ocak.load(tiny_model, **SMALL) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("long") / "long.gguf", TinyModel(context_length=65536))


def test_a_stream_is_the_same_text_as_a_whole_answer(model: ocak.Model) -> None:
    stream = model.stream("the fire and", **GREEDY)
    assert stream.finish_reason is stream.usage is None
    text = "".join(stream)
    whole = model.generate("the fire and", **GREEDY)
    assert isinstance(whole, ocak.Result)
    assert text == whole.text != ""
    assert stream.finish_reason == whole.finish_reason == "length"
    assert stream.usage is not None
    assert stream.usage.completion_tokens == whole.usage.completion_tokens == 12
    assert list(stream) == []


def test_many_prompts_of_all_kinds_are_answered_in_order_as_each_alone(model: ocak.Model) -> None:
    prompts = [f"the {i}" for i in range(10)]
    alone = [model.generate(prompt, **GREEDY).text for prompt in prompts]
    assert [result.text for result in model.generate(prompts, **GREEDY)] == alone
    tokens = [model.tokenize(prompt) for prompt in prompts]
    assert [result.text for result in model.generate(tokens, **GREEDY)] == alone
    assert model.generate([], **GREEDY) == []


def test_a_batch_runs_in_all_slots_at_once(tiny_model: Path) -> None:
    with ocak.load(tiny_model, **SMALL, prefix_cache=False) as fresh:
        fresh.generate([[i + 1, i + 2] for i in range(8)], **GREEDY)
        stats = fresh.stats
    assert stats.generation_tokens == 8 * 12
    assert stats.steps <= 2 * (12 + 4), "eight answers one after another take 96 steps"


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("kv_cells", [0, 2 * 512], ids=["split", "unified"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mamba"])
def test_equal_prompts_are_computed_once_with_any_memory(
    tmp_path: Path, architecture: Literal["llama", "gemma2", "mamba"], kv_cells: int, prefix_cache: bool
) -> None:
    file = write_model(tmp_path / "model.gguf", TinyModel(architecture=architecture))
    prompt = [i * 7 % 200 + 1 for i in range(300)]
    with ocak.load(
        file, context=512, parallel=4, kv_cells=kv_cells, threads=1, prefix_cache=prefix_cache
    ) as loaded:
        alone = loaded.generate([[1, 2], prompt], **GREEDY)[1].text
        before = loaded.stats.prompt_tokens
        together = loaded.generate([prompt] * 4 if not prefix_cache else [[9, *prompt]] * 4, **GREEDY)
        computed = loaded.stats.prompt_tokens - before
    assert len({result.text for result in together}) == 1
    assert prefix_cache or together[0].text == alone
    length = len(prompt) + prefix_cache
    assert computed == length + 3 * 1


def test_a_chat_is_read_through_the_models_template(model: ocak.Model) -> None:
    messages = [{"role": "user", "content": "hello"}]
    written = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert model.detokenize(model.tokenize(messages)) == written
    assert model.generate(messages, **GREEDY).text == model.generate(written, **GREEDY).text
    both = model.generate([messages, messages], **GREEDY)
    assert [one.text for one in both] == [model.generate(messages, **GREEDY).text] * 2


def test_text_survives_its_tokens(model: ocak.Model) -> None:
    text = "Ocağın 🔥 ateşi\n"
    assert model.detokenize(model.tokenize(text)) == text


def test_closing_a_stream_frees_its_slot_for_the_next(long_model: Path) -> None:
    with ocak.load(long_model, **LONG) as alone:
        stream = alone.stream("the", **ENDLESS)
        next(stream)
        stream.close()
        assert list(stream) == []
        assert alone.generate("the", **GREEDY).usage.completion_tokens == 12
        assert alone.stats.generation_tokens < 30_000


def test_a_stream_that_nobody_holds_any_more_ends(long_model: Path) -> None:
    with ocak.load(long_model, **LONG) as alone:
        for _text in alone.stream("the", **ENDLESS):
            break
        gc.collect()
        assert alone.generate("the", **GREEDY).finish_reason == "length"
        assert alone.stats.generation_tokens < 30_000


def test_stop_strings_and_log_probabilities_work_as_in_requests(model: ocak.Model) -> None:
    whole = model.generate("the", **GREEDY, logprobs=2)
    assert whole.logprobs is not None and len(whole.logprobs) == 12
    assert all(len(token.likeliest) == 2 for token in whole.logprobs)
    cut = model.generate("the", **GREEDY, stop=whole.text[3:6])
    assert (cut.text, cut.finish_reason) == (whole.text[:3], "stop")


def test_a_prompts_log_probabilities_come_with_its_result(model: ocak.Model) -> None:
    told = model.generate([5, 6, 7], **GREEDY, prompt_logprobs=1).prompt_logprobs
    assert told is not None and [token.id for token in told] == [5, 6, 7]
    assert told[0].rank == 0 and all(token.rank > 0 and len(token.likeliest) >= 1 for token in told[1:])
    assert model.generate([5, 6, 7], **GREEDY).prompt_logprobs is None


def test_a_long_prompt_is_shortened_where_that_is_asked_for(model: ocak.Model) -> None:
    usage = model.generate([7] * 400, **GREEDY, context_policy="truncate").usage
    assert usage.prompt_tokens == 400 and usage.dropped_tokens > 0
    assert model.generate([7] * 10, **(GREEDY | {"max_tokens": 300}), context_policy="shift").usage.dropped_tokens


def test_adapters_answer_by_their_names(tiny_model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "loud.gguf", TinyAdapter(seed=1))
    with ocak.load(tiny_model, **SMALL, lora={"loud": str(adapter)}) as model:
        texts = [model.generate([5, 6, 7], **GREEDY, lora=name).text for name in ("", "loud", "")]
        assert texts[0] == texts[2] != texts[1]
        with pytest.raises(InvalidRequest, match="no LoRA adapter 'quiet'"):
            model.generate("the", lora="quiet")


def test_a_model_that_embeds_loads_refuses_text_and_closes(tiny_model: Path, tmp_path: Path) -> None:
    with ocak.load(tiny_model, **SMALL, embedding=True) as model:
        assert model.info.kind == "embedding"
        with pytest.raises(InvalidRequest, match="writes no text"):
            model.generate("the", **GREEDY)
        with pytest.raises(StateFileError, match="keeps no conversations"):
            model.save(tmp_path / "talk", "the")


def test_threads_share_a_model(model: ocak.Model) -> None:
    prompts = [f"the {i}" for i in range(12)]
    expected = [model.generate(prompt, **GREEDY).text for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        streamed = list(pool.map(lambda prompt: "".join(model.stream(prompt, **GREEDY)), prompts))
    assert streamed == expected


def test_two_models_answer_at_once(model: ocak.Model, tmp_path: Path) -> None:
    other_file = write_model(tmp_path / "other.gguf", TinyModel(seed=1))
    expected = model.generate("the fire", **GREEDY).text
    with ocak.load(other_file, **SMALL) as other:
        first, second = model.stream("the fire", **GREEDY), other.stream("the fire", **GREEDY)
        pieces: tuple[list[str], list[str]] = ([], [])
        for left, right in zip(first, second, strict=False):
            pieces[0].append(left)
            pieces[1].append(right)
        texts = ["".join([*said, *rest]) for said, rest in zip(pieces, (first, second), strict=True)]
        assert texts[0] == expected != texts[1] == other.generate("the fire", **GREEDY).text


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temprature": 1}, "did you mean 'temperature'?"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1000}, "temperature must be between 0 and 100"),
        ({"max_tokens": 0}, "max_tokens must be between 1"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {10**6: 1}}, "logit_bias names token 1000000"),
        ({"tenant": "other"}, "no option 'tenant'"),
        ({"logprobs": 21}, "logprobs must be between 0 and 20"),
    ],
)
def test_wrong_options_are_named_and_hurt_nobody(model: ocak.Model, options: dict, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told.replace("?", r"\?")):
        model.generate("the", **options)
    with pytest.raises(InvalidRequest, match=told.replace("?", r"\?")):
        "".join(model.stream("the", **options))
    assert model.generate("the", **GREEDY).finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        (7, "prompt must be a text, a list of token ids, or a list of chat messages"),
        ({"role": "user", "content": "x"}, "prompt must be a text"),
        ([], "prompt must be a text"),
        ([1, "two"], "item 1 is 'two'"),
        ([True], "item 0 is True"),
        ([-1], "token id -1"),
        ([10**9], "token id 1000000000"),
        ([10**30], "token id 1000"),
        ([{"role": "user"}], r"prompt\[0\] must be"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_wrong_prompts_are_told_what_a_prompt_is(model: ocak.Model, prompt: object, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        "".join(model.stream(prompt, **GREEDY))  # type: ignore[arg-type]


def test_a_wrong_prompt_in_a_batch_is_told_by_its_place(model: ocak.Model) -> None:
    with pytest.raises(InvalidRequest, match=r"prompts\[1\] must be"):
        model.generate(["the", None], **GREEDY)  # type: ignore[list-item]


def test_a_prompt_that_is_too_long_fails_and_those_beside_it_in_other_threads_do_not(model: ocak.Model) -> None:
    beside = model.stream("the", **GREEDY)
    with pytest.raises(ContextLengthExceeded, match="256"):
        model.generate([[1], [1] * 300], **GREEDY)
    assert "".join(beside) == model.generate("the", **GREEDY).text


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"contxt": 64}, ConfigError, "did you mean 'context'"),
        ({"context": "many"}, ConfigError, "context must be a whole number from 0"),
        ({"context": -1}, ConfigError, "context must be a whole number from 0"),
        ({"kv_type": "q3"}, ConfigError, "kv_type must be one of"),
        ({"max_queued": 3}, ConfigError, "no setting 'max_queued'"),
        ({"context": 100_000}, LoadFailed, "trained for"),
        ({"chat_template": "/nowhere"}, ConfigError, "No such file"),
    ],
)
def test_wrong_settings_are_named_before_or_at_the_load(
    tiny_model: Path, settings: dict, error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        ocak.load(tiny_model, **settings)


def test_a_load_that_is_given_up_ends_before_its_end(tiny_model: Path) -> None:
    told: list[float] = []

    def give_up(progress: float) -> bool:
        told.append(progress)
        return False

    with pytest.raises(LoadFailed, match="could not load"):
        LlamaModel(str(tiny_model), WeightOptions(), give_up)
    assert len(told) == 1


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no model file"):
        ocak.load(tmp_path / "missing.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ModelFileError):
        ocak.load(tmp_path / "broken.gguf")


def test_a_closed_model_says_so(tiny_model: Path) -> None:
    closed = ocak.load(tiny_model, **SMALL)
    closed.close()
    closed.close()
    for use in (
        lambda: closed.generate("the"),
        lambda: closed.stream("the"),
        lambda: closed.tokenize("the"),
        lambda: closed.detokenize([1]),
    ):
        with pytest.raises(ModelUnavailable, match="closed"):
            use()


def test_closing_tells_those_who_wait_in_other_threads(long_model: Path) -> None:
    closing = ocak.load(long_model, **LONG)
    started, told = threading.Barrier(3), []

    def wait(_number: int) -> None:
        stream = closing.stream("the", **ENDLESS)
        started.wait()
        try:
            "".join(stream)
        except ModelUnavailable as error:
            told.append(error.message)

    threads = [threading.Thread(target=wait, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    started.wait()
    closing.close()
    for thread in threads:
        thread.join(10)
    assert told == ["the model is closed; load it again"] * 2


def test_an_answer_of_which_a_part_was_read_ends_with_the_same_error(long_model: Path) -> None:
    closing = ocak.load(long_model, **LONG)
    stream = closing.stream("the", **ENDLESS)
    next(stream)
    closing.close()
    with pytest.raises(ModelUnavailable, match="closed"):
        "".join(stream)
    assert list(stream) == [] and stream.finish_reason is None


def test_memory_and_threads_are_back_after_closing(tiny_model: Path) -> None:
    def load_and_close() -> None:
        with ocak.load(tiny_model, context=2048, parallel=16, threads=1) as loaded:
            loaded.generate(["the", "and"], **GREEDY)

    for _ in range(15):  # until the allocator has its arenas
        load_and_close()
    process, threads = psutil.Process(), threading.active_count()
    before = process.memory_info().rss
    for _ in range(20):
        load_and_close()
    cells = 2048 * 16 * 2 * 2 * 32 * 2  # layers, K and V, width, f16: what each load would leave
    assert process.memory_info().rss - before < 10 * cells
    assert threading.active_count() == threads


def test_a_model_that_nobody_holds_any_more_is_closed(tiny_model: Path) -> None:
    threads = set(threading.enumerate())
    ocak.load(tiny_model, **SMALL)
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)
        assert not thread.is_alive()


def test_an_engine_that_breaks_tells_those_who_wait_and_leaves_the_process(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with ocak.load(tiny_model, **SMALL) as broken:
        monkeypatch.setattr("ocak.engine.engine.Engine.step", fail)
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match="the engine has stopped"):
                broken.generate("the", **GREEDY)
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    with ocak.load(tiny_model, **SMALL) as again:
        assert again.generate([token_id("the", TINY)], **GREEDY).finish_reason == "length"
