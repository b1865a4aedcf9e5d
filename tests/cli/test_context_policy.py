"""A real server and prompts that do not fit: what is dropped is exact, and told everywhere."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.cli.processes import DEADLINE_S, RunningServer, ocak, serving
from tests.models import TinyModel, write_model

CONTEXT = 256
KEEP = 32
STEP = (CONTEXT - KEEP) // 2


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[RunningServer]:
    sizes = ("--context", str(CONTEXT), "--parallel", "2", "--n-keep", str(KEEP), "--served-name", "tiny")
    with serving(tiny_model, *sizes) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def prompt(length: int) -> list[int]:
    return [(7 * i + i * i // 5) % 240 + 1 for i in range(length)]


def dropped(server: RunningServer) -> float:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=DEADLINE_S) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("ocak_context_shift_tokens_total{"))


def expected(num_computed: int, keep: int = KEEP) -> int:
    step = (CONTEXT - keep) // 2
    return -(-max(0, num_computed - CONTEXT) // step) * step


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1, CONTEXT + STEP, CONTEXT + STEP + 1, 20_000])
def test_a_prompt_of_any_length_is_answered_and_what_it_lost_is_told_everywhere(
    server: RunningServer, client: OpenAI, length: int
) -> None:
    before = dropped(server)
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt=prompt(length), max_tokens=1, temperature=0, extra_body={"context_policy": "shift"}
    )
    usage = raw.parse().usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (length, 1)
    count = expected(length)
    assert usage.prompt_tokens_details.dropped_tokens == count  # type: ignore[attr-defined]
    assert raw.headers.get("x-ocak-dropped-tokens") == (str(count) if count else None)
    assert dropped(server) - before == count


def test_an_answer_longer_than_the_context_goes_on_to_its_limit(server: RunningServer, client: OpenAI) -> None:
    body = {"context_policy": "shift", "n_keep": 8}
    answer = client.completions.create(
        model="tiny", prompt=prompt(100), max_tokens=700, temperature=0, extra_body=body
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 700
    assert answer.usage.prompt_tokens_details.dropped_tokens == expected(100 + 699, 8)  # type: ignore[union-attr]
    ends = client.completions.create(model="tiny", prompt=prompt(100), max_tokens=700, temperature=0)
    assert ends.usage is not None and ends.usage.completion_tokens == CONTEXT - 100
    assert answer.choices[0].text.startswith(ends.choices[0].text[:-4])


def test_a_chat_without_a_limit_ends_after_a_context_of_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hello"}],
        temperature=0,
        extra_body={"context_policy": "shift"},
    )
    assert answer.usage is not None and answer.usage.completion_tokens == CONTEXT


def test_a_stream_tells_in_its_header_what_the_prompt_loses(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="tiny",
        prompt=[prompt(1000), prompt(20)],
        n=2,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"context_policy": "shift"},
    )
    *_, last = raw.parse()
    assert raw.headers["x-ocak-dropped-tokens"] == str(expected(1000))
    assert last.usage.prompt_tokens_details.dropped_tokens == expected(1000 + 4)


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, CONTEXT + 1])
def test_a_streams_header_is_exact_where_the_answer_is_the_first_to_shift(client: OpenAI, length: int) -> None:
    body = {"context_policy": "shift"}
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt=prompt(length), max_tokens=9, stream=True, extra_body=body
    )
    assert len(list(raw.parse())) > 1
    assert raw.headers.get("x-ocak-dropped-tokens") == (str(STEP) if length > CONTEXT else None)


def test_a_truncated_prompt_answers_as_its_ends_do(client: OpenAI) -> None:
    whole, n_keep, max_tokens = prompt(900), 50, 30
    cut = whole[:n_keep] + whole[n_keep - (CONTEXT - max_tokens) :]
    body = {"context_policy": "truncate", "n_keep": n_keep}
    raw = client.completions.with_raw_response.create(
        model="tiny", prompt=whole, max_tokens=max_tokens, temperature=0, echo=False, extra_body=body
    )
    answer = raw.parse()
    plain = client.completions.create(model="tiny", prompt=cut, max_tokens=max_tokens, temperature=0)
    assert answer.choices[0].text == plain.choices[0].text
    assert answer.usage is not None and answer.usage.prompt_tokens == 900
    assert raw.headers["x-ocak-dropped-tokens"] == str(900 - len(cut))


def test_without_a_policy_the_error_names_it(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"context_policy shift or truncate") as caught:
        client.completions.create(model="tiny", prompt=prompt(CONTEXT), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"context_policy": "forget"}, "context_policy"),
        ({"context_policy": 1}, "context_policy"),
        ({"context_policy": "shift", "n_keep": -1}, "n_keep"),
        ({"context_policy": "shift", "n_keep": CONTEXT // 2}, "n_keep"),
        ({"context_policy": "shift", "n_keep": 2**40}, "n_keep"),
        ({"n_keep": "many"}, "n_keep"),
    ],
)
def test_a_wrong_policy_is_refused_by_name_and_harms_nobody(
    client: OpenAI, body: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=prompt(300), max_tokens=1, extra_body=body)
    assert caught.value.param == param
    assert client.completions.create(model="tiny", prompt=prompt(3), max_tokens=1).choices


def test_the_models_settings_are_told_and_used(server: RunningServer, tiny_model: Path) -> None:
    info = server.get("/models/status")["models"][0]["info"]
    assert (info["context_policy"], info["n_keep"], info["can_shift"]) == ("error", KEEP, True)
    with serving(tiny_model, extra={"LLM_LLAMA_SERVICE_CONTEXT_SIZE": str(CONTEXT)}) as replacing:
        assert replacing.get("/models/status")["models"][0]["info"]["context_policy"] == "shift"
        data = json.dumps({"prompt": prompt(3 * CONTEXT), "max_tokens": 1}).encode()
        call = urllib.request.Request(f"{replacing.url}/v1/completions", data)
        with urllib.request.urlopen(call, timeout=DEADLINE_S) as answer:
            assert int(answer.headers["x-ocak-dropped-tokens"]) > 0


def test_a_model_that_cannot_shift_says_so_to_its_owner_and_to_its_callers(tmp_path: Path) -> None:
    path = write_model(tmp_path / "mamba.gguf", TinyModel(architecture="mamba"))
    refused = ocak("serve", path, "--context-policy", "shift", "--context", "128", "--port", "0")
    assert refused.returncode != 0
    assert "cannot shift its context" in refused.stderr and "--context-policy truncate" in refused.stderr
    with serving(path, "--context", "128", "--context-policy", "truncate") as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        answer = client.completions.create(model="mamba", prompt=prompt(1000), max_tokens=8)
        assert answer.usage is not None and answer.usage.prompt_tokens == 1000
        with pytest.raises(openai.BadRequestError, match="cannot shift its context") as caught:
            client.completions.create(
                model="mamba", prompt=prompt(3), max_tokens=1, extra_body={"context_policy": "shift"}
            )
        assert caught.value.param == "context_policy"


FILLER = "The ferry leaves the harbour twice a day, once before breakfast and once when the shops close. "


@pytest.mark.parametrize("layout", [(), ("--kv-cells", "600")], ids=["split", "unified and over-committed"])
def test_what_is_kept_and_what_is_near_is_remembered_and_neighbours_notice_nothing(
    layout: tuple[str, ...],
) -> None:
    """Long prompts shift, some of their clients leave, and beside them code words are told and asked for."""
    words = ["falcon", "lantern", "velvet", "anchor"]
    sizes = ("--context", "256", "--parallel", "4", "--n-keep", "48")
    with serving("--context-policy", "shift", *sizes, *layout) as running, ThreadPoolExecutor(12) as threads:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)

        def ask(before: str, word: str, after: str) -> str:
            text = f"{before}The code word is {word}. {after}What is the code word?"
            answer = client.chat.completions.create(
                model="embedded", messages=[{"role": "user", "content": text}], temperature=0, max_tokens=16
            )
            return answer.choices[0].message.content or ""

        def leave() -> None:
            body = {"model": "embedded", "prompt": FILLER * 200, "stream": True, "max_tokens": 500}
            with client.completions.create(**body):  # type: ignore[call-overload]
                pass

        leavers = [threads.submit(leave) for _ in range(4)]
        kept = [threads.submit(ask, "", word, FILLER * 60) for word in words]
        near = [threads.submit(ask, FILLER * 60, word, FILLER) for word in words]
        short = [threads.submit(ask, "", word, FILLER * 2) for word in words]
        for asked in (kept, near, short):
            assert [future.result() for future in asked] == [f"The code word is {word}." for word in words]
        for leaver in leavers:
            leaver.result()
        engine = running.get("/models/status")["models"][0]["engine"]
        assert engine["kv_cells_used"] == engine["slots_used"] == 0
