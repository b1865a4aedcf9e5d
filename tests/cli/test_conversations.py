"""A real server: conversations outlive it in files, each tenant has its own, and names lead nowhere else."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.processes import RunningServer, serving

FIRST, SECOND = "the-first-key", "the-second-key"
KEYS = ("--api-key", FIRST, "--api-key", SECOND)
TALK = [{"role": "user", "content": "What is a KV cache, and what is it for? " * 8}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "states"


@pytest.fixture
def server(folder: Path) -> Iterator[RunningServer]:
    with serving("--state-dir", folder, *KEYS) as running:
        yield running


def call(
    server: RunningServer, path: str, body: object, key: str = FIRST, method: str = "POST"
) -> tuple[int, Any]:
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode(),
        {"authorization": f"Bearer {key}", "content-type": "application/json"},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]


def chat(server: RunningServer, key: str = FIRST) -> tuple[str, int]:
    body = {"messages": TALK, "temperature": 0, "max_tokens": 12}
    status, answer = call(server, "/v1/chat/completions", body, key)
    assert status == 200
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return answer["choices"][0]["message"]["content"], cached


PLACE = "/api/v1/models/embedded/conversations/talk"


def test_a_conversation_outlives_its_server(server: RunningServer, folder: Path) -> None:
    text, cached = chat(server)
    assert cached == 0
    status, saved = call(server, PLACE, {"messages": TALK})
    assert (status, saved["name"]) == (200, "talk") and saved["tokens"] > 60
    server.end()
    with serving("--state-dir", folder, *KEYS) as again:
        assert call(again, f"{PLACE}/restore", {}, key=SECOND)[0] == 404, "another tenant's"
        assert call(again, f"{PLACE}/restore", {}) == (200, saved)
        assert chat(again) == (text, saved["tokens"] - 1)
        assert chat(again, key=SECOND) == (text, 0)
        assert call(again, PLACE, None, method="DELETE")[0] == 200
        assert call(again, PLACE, None, method="DELETE")[0] == 404
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_name_leads_nowhere_else(server: RunningServer, folder: Path) -> None:
    chat(server)
    names = ["..", "...", ".hidden", "a.b", "a%2Fb", "..%2F..%2Fx", "a%00", "%C3%BC", "a" * 65, "-a"]
    for name in names:
        path = f"/api/v1/models/embedded/conversations/{name}"
        for suffix, body in (("", {"messages": TALK}), ("/restore", {})):
            assert call(server, path + suffix, body)[0] in (400, 404), name
    assert not [path for path in folder.parent.rglob("*") if path.is_file()]


def test_what_cannot_be_saved_or_restored_is_told(server: RunningServer, folder: Path) -> None:
    assert call(server, PLACE, {"prompt": "never seen"})[0] == 409
    assert call(server, PLACE, {"prompt": "x", "tokens": [1]})[0] == 400
    assert call(server, PLACE, {"tokens": [-1]})[0] == 400
    assert call(server, PLACE.replace("embedded", "other"), {"prompt": "x"})[0] == 404
    chat(server)
    call(server, PLACE, {"messages": TALK})
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    status, error = call(server, f"{PLACE}/restore", {})
    assert status == 409 and "damaged" in error["message"] and str(folder) not in error["message"]
    assert chat(server)[1] > 60, "nobody else noticed"


def test_without_a_folder_nothing_is_saved() -> None:
    with serving() as without:
        status, error = call(without, PLACE, {"prompt": "x"})
    assert status == 400 and "--state-dir" in error["message"]
