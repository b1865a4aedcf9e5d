"""A real server with the embedded model: samplers and token rules, asked for with OpenAI's own client."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types import Completion

from tests.cli.processes import DEADLINE_S, RunningServer, serving

PROMPT = "The fire in the hearth was"
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving("--parallel", "2") as running:
        yield running


def complete(server: RunningServer, **body: object) -> Completion:
    fields = {"temperature": 0, "max_tokens": 24, "seed": 5} | body
    known = {name: fields.pop(name) for name in ("temperature", "max_tokens", "seed")}
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        return client.completions.create(  # type: ignore[call-overload,no-any-return]
            model="embedded", prompt=PROMPT, extra_body=fields, **known
        )


def text(server: RunningServer, **body: object) -> str:
    return complete(server, **ENDLESS, **body).choices[0].text


def tokens(server: RunningServer, words: str) -> list[int]:
    return post(server, "/tokenize", {"content": words})["tokens"]  # type: ignore[no-any-return]


def post(server: RunningServer, path: str, body: dict[str, object]) -> dict[str, Any]:
    data = json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        return json.load(answer)  # type: ignore[no-any-return]


SAMPLERS = [
    {"typical_p": 0.2},
    {"top_n_sigma": 0.5},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"dry_multiplier": 5.0, "dry_allowed_length": 1, "temperature": 0},
    {"dynatemp_range": 1.5, "temperature": 1.5},
    {"mirostat": 1, "mirostat_tau": 1.0},
    {"mirostat": 2, "mirostat_tau": 1.0},
    {"adaptive_target": 0.1},
    {"samplers": ["temperature"], "temperature": 1.5},
    {"samplers": ["top_k", "infill", "temperature"], "temperature": 1.5},
]


@pytest.mark.parametrize("fields", SAMPLERS, ids=lambda fields: "+".join(fields))
def test_a_sampler_changes_the_answer_which_its_seed_repeats(
    server: RunningServer, fields: dict[str, object]
) -> None:
    temperature = fields.get("temperature", 1)
    body = {"temperature": temperature, "max_tokens": 60} | fields
    sampled = text(server, **body)
    assert sampled == text(server, **body)
    assert sampled != text(server, temperature=temperature, max_tokens=60)


def test_a_bad_word_is_avoided(server: RunningServer) -> None:
    plain = text(server)
    word = max(plain.split(), key=len)
    avoiding = text(server, bad_words=[word])
    assert word in plain and word not in avoiding


def test_only_allowed_tokens_are_said(server: RunningServer) -> None:
    allowed = tokens(server, "red")
    assert set(text(server, allowed_token_ids=allowed)) <= set("red ") < set(text(server))


def test_a_stop_token_ends_the_answer_and_is_no_part_of_it(server: RunningServer) -> None:
    plain = text(server)
    stop = tokens(server, plain)[3]
    word = post(server, "/detokenize", {"tokens": [stop]})["content"]
    choice = complete(server, stop_token_ids=[stop], **ENDLESS).choices[0]
    assert choice.finish_reason == "stop" and plain != choice.text
    assert plain.startswith(choice.text + word)


def test_an_answer_is_as_long_as_it_must_be(server: RunningServer) -> None:
    common = list(range(500))
    longer, shorter = (complete(server, stop_token_ids=common, min_tokens=least).usage for least in (12, 0))
    assert longer is not None and shorter is not None
    assert longer.completion_tokens >= 12 > shorter.completion_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop_token_ids": [10**7]}, "stop_token_ids"),
        ({"allowed_token_ids": [10**7]}, "allowed_token_ids"),
        ({"logit_bias": {"10000000": 1}}, "logit_bias"),
        ({"mirostat": 3}, "mirostat"),
    ],
)
def test_what_the_model_does_not_have_is_refused_by_name(
    server: RunningServer, fields: dict[str, object], param: str
) -> None:
    with pytest.raises(BadRequestError) as refusal:
        complete(server, **fields)
    assert refusal.value.param == param


def test_tokens_picked_inside_the_graph_are_the_hosts(server: RunningServer) -> None:
    bodies: list[dict[str, object]] = [
        {},
        {"temperature": 0.8, "min_p": 0.05},
        {"repetition_penalty": 1.2},
        {"logprobs": 2},
    ]
    with serving("--parallel", "2", "--device-sampling", "on") as device:
        (model,) = device.get("/models/status")["models"]
        assert model["info"]["samples_on_device"]
        assert [text(device, **body) for body in bodies] == [text(server, **body) for body in bodies]
