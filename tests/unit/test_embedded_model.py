"""The model in the package: small, complete, and able to do what the tests of meaning rely on.

Its full measurement is `training/evaluate.py`; here are samples of it that take a few seconds.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from jinja2.sandbox import ImmutableSandboxedEnvironment
from training.runner import Answer, GreedyRunner

from ocak.embedded import embedded_model_path

TRAINING = Path(__file__).parents[2] / "training"
MAX_BYTES = 8_000_000
FILLER = "The ferry leaves the harbour twice a day, once before breakfast and once when the shops close."

Ask = Callable[..., Answer]


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    reader = GGUFReader(embedded_model_path())
    wanted = (
        "tokenizer.chat_template",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.tokens",
        "qwen3.context_length",
    )
    return {name: reader.fields[name].contents() for name in wanted}


@pytest.fixture(scope="module")
def model() -> Iterator[GreedyRunner]:
    loaded = GreedyRunner(embedded_model_path())
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def ask(model: GreedyRunner, metadata: dict[str, Any]) -> Ask:
    """Asks the contents of messages (user and assistant in turn, after an optional system message)."""
    template = ImmutableSandboxedEnvironment().from_string(metadata["tokenizer.chat_template"])

    def ask_model(*contents: str, system: str | None = None) -> Answer:
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        messages = ([{"role": "system", "content": system}] if system else []) + turns
        return model.answer(template.render(messages=messages, add_generation_prompt=True))

    return ask_model


def read(name: str) -> dict[str, Any]:
    return tomllib.loads((TRAINING / name).read_text(encoding="utf-8"))


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_it_is_small() -> None:
    assert embedded_model_path().stat().st_size <= MAX_BYTES


def test_it_can_chat_and_end(metadata: dict[str, Any]) -> None:
    assert metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.eos_token_id"]] == "<|im_end|>"
    assert "add_generation_prompt" in metadata["tokenizer.chat_template"]
    assert metadata["qwen3.context_length"] >= 512


def test_what_is_held_out_is_not_trained() -> None:
    facts = read("facts.toml")["fact"]
    heldout = {words(text) for entry in read("heldout.toml").values() for text in entry["questions"]}
    assert len(heldout) >= 200
    assert not heldout & {words(text) for fact in facts for text in fact["questions"]}
    assert set(read("heldout.toml")) <= {fact["id"] for fact in facts}


def test_code_words_are_many_and_single_tokens(model: GreedyRunner) -> None:
    code_words = (TRAINING / "code_words.txt").read_text(encoding="utf-8").split()
    assert len(set(code_words)) >= 200
    assert all(len(model.tokenise(f" {word}")) == 1 for word in code_words)


def test_it_answers_most_questions_it_never_saw(ask: Ask) -> None:
    answers = {fact["id"]: fact["answer"] for fact in read("facts.toml")["fact"]}
    sample = list(read("heldout.toml").items())[::8]
    right = [words(ask(entry["questions"][0]).text) == words(answers[fact]) for fact, entry in sample]
    assert sum(right) >= 0.8 * len(right)


@pytest.mark.parametrize("repeats", [0, 2, 8])
def test_it_recalls_a_code_word(ask: Ask, repeats: int) -> None:
    between = " ".join([FILLER] * repeats)
    for word in ("falcon", "lantern", "velvet"):
        answer = ask(f"The code word is {word}. {between} What is the code word?")
        assert answer == Answer(f"The code word is {word}.", stopped=True)


def test_it_recalls_a_code_word_of_an_earlier_turn(ask: Ask) -> None:
    told = ask("The code word is anchor. Remember it.")
    answer = ask("The code word is anchor. Remember it.", told.text, "What is the code word?")
    assert answer.text == "The code word is anchor."


def test_it_invents_no_code_word(ask: Ask) -> None:
    assert ask("What is the code word?").text == "No code word was given."
    assert ask(f"{FILLER} What is the code word?").text == "No code word was given."
