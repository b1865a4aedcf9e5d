"""Examines the network while it trains: development questions, and code words by distance.

An answer counts when the network would write all of it, end included, by itself: each of its tokens is the most
likely one after those before it, which is what greedy decoding writes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from tokenizers import Tokenizer

from chat import END, render_chat
from filler import FillerMaker
from model import Network
from texts import Texts

DISTANCES = (10, 60, 130, 200, 250)
TRIES = 32


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt and the one right answer."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True, slots=True)
class Result:
    """Parts of right answers; `score` weighs what training must reach."""

    questions: float
    recall: dict[int, float]
    missing: float
    score: float = field(init=False)

    def __post_init__(self) -> None:
        recall = sum(self.recall.values()) / len(self.recall)
        object.__setattr__(self, "score", self.questions + recall + 0.5 * self.missing)

    def __str__(self) -> str:
        recall = " ".join(f"{distance}:{part:.2f}" for distance, part in self.recall.items())
        return f"questions {self.questions:.3f}  recall {recall}  missing {self.missing:.2f}"


class Probe:
    """Holds the same cases for the whole run."""

    def __init__(self, texts: Texts, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._questions = [self._case(question.text, question.answer) for question in texts.development]
        rng = random.Random(11)
        filler = FillerMaker(texts, rng)
        phrases = texts.phrases
        self._recall: dict[int, list[Case]] = {distance: [] for distance in DISTANCES}
        self._missing: list[Case] = []
        for distance, cases in self._recall.items():
            for word in rng.sample(texts.code_words, TRIES):
                between = filler.filler(int(distance / 1.3))
                asked = rng.choice(phrases.asked)
                cases.append(
                    self._case(f"The code word is {word}. {between} {asked}", phrases.recalled.format(word))
                )
        for _ in range(TRIES):
            self._missing.append(self._case(f"{filler.filler(80)} {rng.choice(phrases.asked)}", phrases.missing))

    def examine(self, network: Network) -> Result:
        network.eval()
        recall = {distance: self._part_right(network, cases) for distance, cases in self._recall.items()}
        result = Result(
            self._part_right(network, self._questions), recall, self._part_right(network, self._missing)
        )
        network.train()
        return result

    @torch.no_grad()
    def _part_right(self, network: Network, cases: list[Case]) -> float:
        return sum(self._is_right(network, case) for case in cases) / len(cases)

    @staticmethod
    def _is_right(network: Network, case: Case) -> bool:
        ids = torch.tensor([case.prompt + case.answer])
        scores = network.logits(network(ids)[0, len(case.prompt) - 1 : -1])
        return scores.argmax(-1).tolist() == case.answer

    def _case(self, text: str, answer: str) -> Case:
        prompt = self._tokenizer.encode(render_chat([("user", text)])).ids
        return Case(prompt, self._tokenizer.encode(answer + END).ids)
