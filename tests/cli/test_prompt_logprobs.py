"""A real server tells the log-probabilities of prompts, asked with OpenAI's own client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.cli.processes import RunningServer, serving

TEXT = "The quick 🔥 fox. " * 3


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    with serving(tiny_model, "--parallel", "2", "--context", "2048") as running:
        yield running


def complete(server: RunningServer, **fields: Any) -> dict[str, Any]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        body = {"model": "tiny", "prompt": TEXT, "max_tokens": 2, "temperature": 0} | fields
        answer = client.completions.create(**body)
        return answer.model_dump()  # type: ignore[no-any-return]


def test_both_ways_tell_the_same_and_what_is_cached_changes_nothing(server: RunningServer) -> None:
    first = complete(server, extra_body={"prompt_logprobs": 3})
    again = complete(server, extra_body={"prompt_logprobs": 3})
    told = first["choices"][0]["prompt_logprobs"]
    assert (
        told == again["choices"][0]["prompt_logprobs"]
        and again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    )
    assert told[0] is None and len(told) == first["usage"]["prompt_tokens"]
    assert all(3 <= len(one) <= 4 for one in told[1:])
    echoed = complete(server, echo=True, logprobs=3)["choices"][0]
    logprobs = echoed["logprobs"]
    own = [next(iter(one.values()))["logprob"] for one in told[1:]]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1 : len(told)] == pytest.approx(own, abs=0.1)
    assert echoed["text"].startswith(TEXT) and len(logprobs["tokens"]) == len(told) + 2
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for at, token in zip(logprobs["text_offset"], logprobs["tokens"], strict=True):
        assert token.startswith("bytes:") or echoed["text"][at:].startswith(token)


def test_a_stream_tells_the_echo_as_a_whole_answer_does(server: RunningServer) -> None:
    whole = complete(server, echo=True, logprobs=1, max_tokens=5)["choices"][0]
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(
            model="tiny", prompt=TEXT, max_tokens=5, temperature=0, echo=True, logprobs=1, stream=True
        )
        choices = [chunk.choices[0] for chunk in stream]
    assert "".join(choice.text for choice in choices) == whole["text"]
    told = [choice.logprobs for choice in choices if choice.logprobs]
    assert [token for one in told for token in one.tokens or ()] == whole["logprobs"]["tokens"]
    assert [at for one in told for at in one.text_offset or ()] == whole["logprobs"]["text_offset"]


def test_a_chat_counts_its_template_and_names_special_tokens(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=1,
            extra_body={"prompt_logprobs": 0},
        ).model_dump()
    told = answer["choices"][0]["prompt_logprobs"]
    assert len(told) == answer["usage"]["prompt_tokens"]
    names = [next(iter(one.values()))["decoded_token"] for one in told[1:]]
    assert "<|im_end|>" in names and names.count("<|im_start|>") == 1


def test_long_prompts_are_told_whole_while_others_are_served_and_memory_stays(server: RunningServer) -> None:
    def ask(i: int) -> tuple[int, float]:
        prompt = [(j * 31 + i) % 250 for j in range(2000)]
        choice = complete(server, prompt=prompt, max_tokens=1, extra_body={"prompt_logprobs": 20})["choices"][0]
        return len(choice["prompt_logprobs"]), len(complete(server)["choices"][0]["text"])

    def resident() -> int:
        return int(server.get("/models/status")["models"][0]["memory"]["resident"])

    assert ask(0)[0] == 2000
    before = resident()
    with ThreadPoolExecutor(4) as pool:
        assert {told for told, _ in pool.map(ask, range(1, 4))} == {2000}
    assert resident() < before + 64 * 2**20


def test_a_prompt_of_one_token_has_nothing_to_tell(server: RunningServer) -> None:
    assert complete(server, prompt=[5], extra_body={"prompt_logprobs": 5})["choices"][0]["prompt_logprobs"] == [
        None
    ]
    assert (
        complete(server, prompt=[40], echo=True, logprobs=0)["choices"][0]["logprobs"]["token_logprobs"][0] is None
    )


def test_too_many_are_refused_with_the_way_out(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tests.models import TinyModel, write_model

    path = write_model(tmp_path_factory.mktemp("models") / "long.gguf", TinyModel(context_length=16384))
    with serving(path, "--parallel", "1", "--context", "16384") as running:
        with pytest.raises(BadRequestError, match="at most 131072 are told") as refusal:
            complete(running, model="long", prompt=[5] * 10_000, extra_body={"prompt_logprobs": 20})
        assert refusal.value.param == "prompt_logprobs"
        assert complete(running, model="long", prompt=[5] * 10)["choices"][0]["finish_reason"] == "length"
