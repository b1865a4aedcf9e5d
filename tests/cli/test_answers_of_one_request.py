"""A real server: several answers to one prompt compute it once, and the best of them is the likeliest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.cli.processes import RunningServer, serving

PROMPT = "An inference server keeps models warm, so that nobody waits for them to load. " * 12 + "It is"


@pytest.fixture(scope="module", params=["split", "unified", "nothing is kept"])
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    options = {"split": [], "unified": ["--kv-cells", "2048"], "nothing is kept": ["--no-prefix-cache"]}
    with serving("--parallel", "4", "--context", "1024", *options[request.param]) as running:
        yield running


def computed(server: RunningServer) -> int:
    return int(server.get("/models/status")["models"][0]["engine"]["prompt_tokens"])


@pytest.fixture
def api(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_four_answers_compute_their_prompt_once(server: RunningServer, api: OpenAI) -> None:
    before = computed(server)
    answer = api.completions.create(model="embedded", prompt="Four. " + PROMPT, n=4, max_tokens=8, seed=1)
    assert answer.usage is not None and answer.usage.prompt_tokens > 200
    assert computed(server) - before == answer.usage.prompt_tokens + 3 * 1
    assert len({choice.text for choice in answer.choices}) > 1
    before = computed(server)
    stream = api.completions.create(model="embedded", prompt="A stream. " + PROMPT, n=4, max_tokens=8, stream=True)
    assert {chunk.choices[0].index for chunk in stream} == {0, 1, 2, 3}
    assert computed(server) - before < answer.usage.prompt_tokens + 16, "the prompts differ in a few tokens"


def test_the_best_of_four_is_the_likeliest_of_the_same_four(api: OpenAI) -> None:
    asked = {"model": "embedded", "prompt": "The best. " + PROMPT, "max_tokens": 8, "seed": 5, "logprobs": 0}
    four = api.completions.create(n=4, **asked).choices  # type: ignore[call-overload]
    best = api.completions.create(best_of=4, **asked)  # type: ignore[call-overload]

    def mean(choice: object) -> float:
        told = choice.logprobs.token_logprobs  # type: ignore[attr-defined]
        return float(sum(told) / len(told))

    assert best.choices[0].text == max(four, key=mean).text
    assert len(best.choices) == 1 and best.usage.completion_tokens > 8
