"""Questions about code words, for the state-leak benchmark: some with a word, some without.

Words and filler come from the texts the embedded model learned from. A question's answer
depends on nothing but its own prompt, so a word that turns up in another's answer came
from another's memory.
"""

import random
import tomllib
from dataclasses import dataclass

from bench import paths
from bench.completion import STAYS, Leaving

TEXTS = paths.ROOT / "training"
QUESTION = "What is the code word?"
WITHOUT_WORD = 0.25
MOST_SENTENCES = 20
ANSWER_CHUNKS = 6


@dataclass(frozen=True, slots=True)
class Question:
    """One request: its text, its code word if it has one, and when its client leaves."""

    number: int
    text: str
    word: str | None
    leaving: Leaving


def questions(count: int, seed: int = 0) -> list[Question]:
    """``count`` questions: a quarter without a word; every other client leaves at a random moment."""
    rng = random.Random(seed)
    words = (TEXTS / "code_words.txt").read_text().split()
    sentences = tomllib.loads((TEXTS / "phrases.toml").read_text())["filler"]["sentences"]
    return [_question(number, rng, words, sentences) for number in range(count)]


def _question(number: int, rng: random.Random, words: list[str], sentences: list[str]) -> Question:
    word = None if rng.random() < WITHOUT_WORD else rng.choice(words)
    opening = [f"The code word is {word}."] if word else []
    text = " ".join([*opening, *rng.sample(sentences, rng.randint(1, MOST_SENTENCES)), QUESTION])
    return Question(number, text, word, _leaving(rng) if number % 2 else STAYS)


def _leaving(rng: random.Random) -> Leaving:
    """A third before the first token (queued or in prefill), the others while reading."""
    if rng.random() < 1 / 3:
        return Leaving(after_s=rng.uniform(0, 0.03))
    return Leaving(after_chunks=rng.randint(1, ANSWER_CHUNKS))
