"""A real server with the embedded model: what was computed is not computed again, and not shared across salts."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.cli.processes import RunningServer, serving

SYSTEM = "You answer in one sentence. " + "Be brief, be kind, and say what you know of serving models. " * 4


LAYOUTS = {"split": (), "unified": ("--context", "512", "--kv-cells", "512")}


@pytest.fixture(scope="module", params=LAYOUTS.values(), ids=LAYOUTS.keys())
def server(request: pytest.FixtureRequest) -> Iterator[RunningServer]:
    with serving("--parallel", "2", *request.param) as running:
        yield running


def ask(server: RunningServer, question: str, salt: str | None = None) -> tuple[str, int]:
    """Return the answer and how much of its prompt was cached."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body = {"cache_salt": salt} if salt else {}
    answer = client.chat.completions.create(
        model="embedded",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=24,
        extra_body=body,
    )
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    return answer.choices[0].message.content or "", answer.usage.prompt_tokens_details.cached_tokens or 0


def test_what_was_computed_is_used_again_under_the_same_salt_alone(server: RunningServer) -> None:
    first, none = ask(server, "What is a KV cache?")
    again, most = ask(server, "What is a KV cache?")
    other, some = ask(server, "What is a worker?")
    assert none == 0 and most > some > 60
    assert first == again != other
    assert ask(server, "What is a KV cache?", salt="mine") == (first, 0)
    assert ask(server, "What is a KV cache?", salt="mine") == (first, most)


def test_prefixes_outlive_their_slots_in_memory_and_metrics_tell(server: RunningServer) -> None:
    questions = [f"Question {i}: what is a token?" for i in range(4)]
    answers = [ask(server, question, salt=str(i)) for i, question in enumerate(questions)]
    again = [ask(server, question, salt=str(i)) for i, question in enumerate(questions)]
    assert [text for text, _ in again] == [text for text, _ in answers]
    assert all(cached > 60 for _, cached in again), "four conversations, and room for fewer"
    engine = server.get("/models/status")["models"][0]["engine"]
    assert engine["kv_cells_used"] == 0 < engine["kv_cells_cached"]
    assert engine["saved_tokens"] > 0


def test_what_slots_hold_is_saved_when_nobody_has_asked_for_a_while(server: RunningServer) -> None:
    def saved_tokens() -> int:
        return int(server.get("/models/status")["models"][0]["engine"]["saved_tokens"])

    ask(server, "What is a prefix?", salt="saved ahead")
    before, deadline = saved_tokens(), time.monotonic() + 10
    while saved_tokens() == before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert saved_tokens() > before
