#!/usr/bin/env python3
"""Measure a GGUF through llama.cpp: held-out questions, code words by distance, and the case of no code word.

    python evaluate.py [--model ../src/ocak/embedded/ocak-embedded.gguf] [--write ../docs/embedded-model.md]

Greedy decoding. An answer is right when it is the fact's answer word for word (case and punctuation aside) and the
model ended it by itself. A distance counts the tokens from the code word to the end of the prompt.
"""

from __future__ import annotations

import argparse
import bisect
import random
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from chat import render_chat
from runner import MODEL_PATH, Answer, GreedyRunner
from texts import FOLDER, Question, Texts, normalise, read_texts

BUCKETS = ((20, 50), (51, 100), (101, 150), (151, 200), (201, 250), (251, 500), (501, 900))
PROMISED = 250
TRIES = 40
PLACES: dict[str, Callable[[str, str, str, str], list[tuple[str, str]]]] = {
    "same message": lambda told, between, asked, _: [("user", f"{told} {between} {asked}")],
    "system message": lambda told, between, asked, _: [("system", told), ("user", f"{between} {asked}")],
    "earlier turn": lambda told, between, asked, accepted: [
        ("user", told),
        ("assistant", accepted),
        ("user", f"{between} {asked}"),
    ],
}
BEGIN, FINISH = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(slots=True)
class Tally:
    """Right answers among tries."""

    right: int = 0
    tries: int = 0
    stopped: int = 0

    def add(self, expected: str, answer: Answer) -> bool:
        is_right = answer.stopped and normalise(answer.text) == normalise(expected)
        self.right += is_right
        self.stopped += answer.stopped
        self.tries += 1
        return is_right

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.right + other.right, self.tries + other.tries, self.stopped + other.stopped)

    def cells(self) -> tuple[str, str]:
        return f"{self.right} of {self.tries}", f"{100 * self.right / self.tries:.1f} %"


class RecallTrial:
    """Builds prompts that plant a code word at a wanted distance, out of texts that training never saw."""

    def __init__(self, texts: Texts, runner: GreedyRunner, rng: random.Random) -> None:
        self._phrases, self._runner, self._rng = texts.phrases, runner, rng
        data = tomllib.loads((FOLDER / "trials.toml").read_text(encoding="utf-8"))
        self._told, self._asked = data["told"], data["asked"]
        self._words = " ".join(data["passages"]).split()

    def prompt(self, word: str, distance: int, place: str, is_new: bool) -> str:
        """The chat prompt whose code word is `distance` tokens before its end, or as near below as words allow."""
        told = self._rng.choice(self._told if is_new else self._phrases.told).format(word)
        asked = self._rng.choice(self._asked if is_new else self._phrases.asked)
        words = self._passage(distance)

        def assemble(num_words: int) -> str:
            return render_chat(PLACES[place](told, " ".join(words[:num_words]), asked, self._phrases.accepted))

        fitting = bisect.bisect_right(range(distance), distance, key=lambda n: self._distance(word, assemble(n)))
        return assemble(max(0, fitting - 1))

    def without_word(self, num_words: int, is_new: bool) -> str:
        """A chat prompt that asks for a code word which was never given."""
        asked = self._rng.choice(self._asked if is_new else self._phrases.asked)
        return render_chat([("user", " ".join([*self._passage(num_words), asked]))])

    def _passage(self, num_words: int) -> list[str]:
        start = self._rng.randrange(len(self._words))
        return [self._words[(start + i) % len(self._words)] for i in range(num_words)]

    def _distance(self, word: str, prompt: str) -> int:
        return len(self._runner.tokenise(prompt.split(f" {word}", 1)[1]))


def measure_questions(
    runner: GreedyRunner,
    questions: Iterable[Question],
    write: Callable[[str], str],
    show: Callable[[str], None] = lambda _: None,
) -> Tally:
    """Ask each question in the form that `write` gives it; what was answered wrongly is shown."""
    tally = Tally()
    for question in questions:
        text = write(question.text)
        answer = runner.answer(render_chat([("user", text)]))
        if not tally.add(question.answer, answer):
            show(f"missed {question.fact_id}: {text}\n  -> {answer.text}")
    return tally


def as_written(text: str) -> str:
    return text


def with_mark(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}?"


def measure_recall(trial: RecallTrial, texts: Texts, runner: GreedyRunner) -> dict[tuple[int, int], list[Tally]]:
    """For each bucket of distances: with the phrasings of training, and with new ones."""
    rng = random.Random(5)
    results = {bucket: [Tally(), Tally()] for bucket in BUCKETS}
    for (near, far), tallies in results.items():
        for number in range(TRIES):
            word, is_new = rng.choice(texts.code_words), number % 2 == 1
            prompt = trial.prompt(word, rng.randint(near, far), "same message", is_new)
            tallies[is_new].add(texts.phrases.recalled.format(word), runner.answer(prompt))
    return results


def measure_places(trial: RecallTrial, texts: Texts, runner: GreedyRunner) -> dict[str, Tally]:
    """For each place a code word may be told in, at 60 to 250 tokens."""
    rng = random.Random(8)
    results = {place: Tally() for place in PLACES}
    for place, tally in results.items():
        for number in range(TRIES):
            word = rng.choice(texts.code_words)
            prompt = trial.prompt(word, rng.randint(60, PROMISED), place, number % 2 == 1)
            tally.add(texts.phrases.recalled.format(word), runner.answer(prompt))
    return results


def measure_missing(trial: RecallTrial, texts: Texts, runner: GreedyRunner) -> Tally:
    rng, tally = random.Random(6), Tally()
    for number in range(100):
        tally.add(texts.phrases.missing, runner.answer(trial.without_word(rng.randint(0, 180), number % 2 == 1)))
    return tally


def report(model: Path, texts: Texts, runner: GreedyRunner) -> str:
    """The tables, as Markdown; the questions missed go to the terminal."""
    trial = RecallTrial(texts, runner, random.Random(4))
    written = measure_questions(runner, texts.heldout, as_written, print)
    marked = measure_questions(runner, texts.heldout, with_mark, print)
    heldout = written + marked
    development = measure_questions(runner, texts.development, as_written)
    recall, places = measure_recall(trial, texts, runner), measure_places(trial, texts, runner)
    missing = measure_missing(trial, texts, runner)
    promised = sum((tally for (_, far), pair in recall.items() if far <= PROMISED for tally in pair), Tally())
    stopped = Tally(heldout.stopped, heldout.tries)
    rows = {
        "held-out questions, as in `heldout.toml`": written,
        "the same, first letter large and a question mark at the end": marked,
        "held-out questions, both forms": heldout,
        "development questions (not trained; they choose the checkpoint)": development,
        "held-out answers that the model ended by itself": stopped,
        f"code word recalled, up to {PROMISED} tokens earlier": promised,
        f'"{texts.phrases.missing}" when there was none': missing,
    }
    return "\n".join(
        [
            f"`{model.name}`, {model.stat().st_size:,} bytes, greedy decoding through llama.cpp:\n",
            *table(("what", "right", "part"), [(what, *tally.cells()) for what, tally in rows.items()]),
            "\nCode words by the tokens from the word to the end of the prompt:\n",
            *table(
                ("tokens", "phrasings of training", "new phrasings"),
                [distance_row(*item) for item in recall.items()],
            ),
            f"\nCode words by where they were told, at 60 to {PROMISED} tokens:\n",
            *table(("told in", "right", "part"), [(place, *tally.cells()) for place, tally in places.items()]),
        ]
    )


def distance_row(bucket: tuple[int, int], tallies: list[Tally]) -> tuple[str, ...]:
    return (f"{bucket[0]}-{bucket[1]}", *(f"{tally.right} of {tally.tries}" for tally in tallies))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """A Markdown table, a line a row."""
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]


def write_section(path: Path, section: str) -> None:
    """Replace what is between the marks of the document."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN, 1)
    after = rest.split(FINISH, 1)[1]
    path.write_text(f"{before}{BEGIN}\n{section}\n{FINISH}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL_PATH)
    parser.add_argument("--write", type=Path, help="document whose measured section is replaced")
    args = parser.parse_args()
    texts, runner = read_texts(), GreedyRunner(args.model)
    section = report(args.model, texts, runner)
    runner.close()
    print(section)
    if args.write:
        write_section(args.write, section)


if __name__ == "__main__":
    main()
