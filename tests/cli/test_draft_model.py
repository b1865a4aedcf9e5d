"""A draft model from the command line: found, checked, counted, and no answer changed by it."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

from tests.cli.processes import RunningServer, ocak, serving
from tests.models import TinyModel, token_id, write_model

SCRIPT = tuple(f" word{place}" for place in range(150))
SMALL = TinyModel(script=SCRIPT)
LARGE = TinyModel(script=SCRIPT, num_layers=12, embedding_length=384, num_heads=6, feed_forward_length=1024)


def ask(server: RunningServer) -> str:
    """Have the script said, in which nothing comes twice."""
    prompt = [*range(40, 90), token_id(SCRIPT[0], LARGE)]
    body = json.dumps({"prompt": prompt, "max_tokens": 200, "temperature": 0}).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["choices"][0]["text"]  # type: ignore[no-any-return]


def test_a_server_answers_the_same_with_a_draft(tmp_path: Path) -> None:
    """The draft is much smaller, and knows the script too."""
    model = write_model(tmp_path / "model.gguf", LARGE)
    draft = write_model(tmp_path / "draft.gguf", SMALL)
    with serving(model, "--parallel", "2", "--speculation", "off") as server:
        plain = ask(server)
    assert plain == "".join(SCRIPT[1:])
    with serving(model, "--parallel", "2", "--draft-model", draft, "--draft-tokens", "6") as server:
        assert [ask(server) for _ in range(3)] == [plain] * 3
        [status] = server.get("/models/status")["models"]
        with urllib.request.urlopen(server.url + "/metrics", timeout=30) as page:
            metrics = page.read().decode()
        assert " draft = " in server.banner
    assert status["info"]["draft"] == "tiny" and status["info"]["draft_bytes"] > 0
    assert status["memory"]["estimated"] > status["info"]["weights_bytes"] + status["info"]["draft_bytes"]
    engine = status["engine"]
    assert engine["guessed_tokens"] >= engine["drafted_tokens"] >= engine["right_drafts"]
    drafted = re.search(r'ocak_speculation_drafted_tokens_total\{model="model"\} (\S+)', metrics)
    assert drafted is not None and float(drafted[1]) == engine["drafted_tokens"] > 0
    assert engine["right_drafts"] > 0.8 * engine["drafted_tokens"] and engine["draft_s"] > 0


def test_a_draft_with_another_vocabulary_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "another.gguf", TinyModel(extra_tokens=("hearth",)))
    done = ocak("serve", tiny_model, "--port", "0", "--draft-model", draft)
    assert done.returncode != 0
    assert "another.gguf cannot guess for this model: its token" in done.stdout + done.stderr
    assert "leave out --draft-model" in done.stdout + done.stderr


def test_a_draft_that_is_not_there_is_said_before_anything_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    done = ocak("serve", tiny_model, "--port", "0", "--draft-model", tmp_path / "none.gguf")
    assert done.returncode and "there is no model file" in done.stderr and "none.gguf" in done.stderr
    done = ocak("serve", tiny_model, "--port", "0", "--draft-tokens", "16")
    assert done.returncode == 2 and "whole number from 1 to 15" in done.stderr
