"""The texts the embedded model learns from, read from the data files beside this module.

Knows no tokens. Invariant, checked on reading: no question of `heldout.toml` or `development.toml`
is among the training questions, and each belongs to a fact.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Fact:
    """One answer, the things it defines, and questions that lead to it."""

    id: str
    answer: str
    topics: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the answer it should get."""

    fact_id: str
    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Phrases:
    """How people ask, how a code word is told and asked, and what stands in between."""

    openings: tuple[str, ...]
    closings: tuple[str, ...]
    definitions: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    small_words: frozenset[str]
    everyday: tuple[str, ...]
    systems: tuple[str, ...]
    told: tuple[str, ...]
    asked: tuple[str, ...]
    accepted: str
    recalled: str
    missing: str
    sentences: tuple[str, ...]
    patterns: tuple[str, ...]
    adjectives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything that is read; `heldout` measures, `development` chooses between checkpoints."""

    facts: tuple[Fact, ...]
    heldout: tuple[Question, ...]
    development: tuple[Question, ...]
    code_words: tuple[str, ...]
    phrases: Phrases

    @property
    def unseen(self) -> frozenset[str]:
        """The questions that training must never contain, normalised."""
        return frozenset(normalise(question.text) for question in self.heldout + self.development)


def read_texts() -> Texts:
    """Read all data files and check that what is held out stays out."""
    facts = tuple(_fact(entry) for entry in _toml("facts.toml")["fact"])
    answers = {fact.id: fact.answer for fact in facts}
    texts = Texts(
        facts=facts,
        heldout=_questions("heldout.toml", answers),
        development=_questions("development.toml", answers),
        code_words=tuple((FOLDER / "code_words.txt").read_text(encoding="utf-8").split()),
        phrases=_phrases(_toml("phrases.toml")),
    )
    leaked = texts.unseen & {normalise(question) for fact in facts for question in fact.questions}
    if leaked:
        raise ValueError(f"held-out questions are among the training questions: {sorted(leaked)}")
    return texts


def normalise(text: str) -> str:
    """Lower case, words only: two texts that differ in punctuation or case are the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _toml(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def _fact(entry: dict[str, Any]) -> Fact:
    return Fact(entry["id"], entry["answer"], tuple(entry.get("topics", ())), tuple(entry["questions"]))


def _questions(name: str, answers: dict[str, str]) -> tuple[Question, ...]:
    """Raises KeyError for a question whose fact does not exist."""
    return tuple(
        Question(fact_id, text, answers[fact_id])
        for fact_id, entry in _toml(name).items()
        for text in entry["questions"]
    )


def _phrases(data: dict[str, Any]) -> Phrases:
    questions, code_word, filler = data["questions"], data["code_word"], data["filler"]
    return Phrases(
        openings=tuple(questions["openings"]),
        closings=tuple(questions["closings"]),
        definitions=tuple(questions["definitions"]),
        synonyms=tuple(tuple(group) for group in questions["synonyms"]),
        small_words=frozenset(questions["small_words"].split()),
        everyday=tuple(questions["everyday"]),
        systems=tuple(data["system"]["prompts"]),
        told=tuple(code_word["told"]),
        asked=tuple(code_word["asked"]),
        accepted=code_word["accepted"],
        recalled=code_word["answer"],
        missing=code_word["missing"],
        sentences=tuple(filler["sentences"]),
        patterns=tuple(filler["patterns"]),
        adjectives=tuple(filler["adjectives"]),
    )
