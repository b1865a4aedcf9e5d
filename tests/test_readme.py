"""The README's requests, run as a newcomer would paste them, against the embedded model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.processes import RunningServer, environ, serving

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.tr.md"]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serving("embedded") as running:
        yield running


def block(readme: str, language: str, word: str) -> str:
    """Return the readme's code block of a language that holds `word`."""
    text = (ROOT / readme).read_text()
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    (found,) = [code for code in blocks if word in code]
    return str(found)


def run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environ()).stdout


@pytest.mark.parametrize("readme", READMES)
def test_the_curl_request_streams_an_answer(readme: str, server: RunningServer) -> None:
    command = block(readme, "sh", "curl").replace("http://127.0.0.1:8080", server.url)
    answer = run(["bash", "-c", command])
    *chunks, end = [line.removeprefix("data: ") for line in answer.splitlines() if line]
    deltas = [json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "hearth" in "".join(deltas) and end == "[DONE]"


@pytest.mark.parametrize("readme", READMES)
def test_the_openai_example_prints_an_answer(readme: str, server: RunningServer) -> None:
    code = block(readme, "python", "OpenAI").replace("http://127.0.0.1:8080", server.url)
    assert len(run([sys.executable, "-c", code])) > 10


@pytest.mark.parametrize("readme", READMES)
def test_the_terminal_example_prints_an_answer(readme: str) -> None:
    (question,) = re.findall(r'ocak run "(.*?)"', block(readme, "sh", "ocak run"))
    answer = run([sys.executable, "-m", "ocak", "run", question, "--temperature", "0"])
    assert "slot" in answer.lower()


@pytest.mark.parametrize("readme", READMES)
def test_every_link_leads_somewhere(readme: str) -> None:
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / readme).read_text())
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert targets and not missing
