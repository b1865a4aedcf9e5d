"""Writes text that stands between a code word and the question for it: as varied as possible, about anything.

Nouns of the filler come from the code words too, so that only the phrase around a word tells that it is the code
word.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from texts import Texts, normalise


class FillerMaker:
    """Makes filler of a wanted number of words."""

    def __init__(self, texts: Texts, rng: random.Random) -> None:
        self._texts = texts
        self._rng = rng
        self._words = sorted(
            {word for text in texts.phrases.sentences for word in normalise(text).split()}
            | {word for fact in texts.facts for word in normalise(fact.answer).split()}
        )

    def filler(self, num_words: int) -> str:
        """Pieces of one or several styles until there are enough words; empty for none."""
        pieces: list[str] = []
        missing, styles = num_words, self._styles()
        while missing > 0:
            piece = self._rng.choice(styles)(missing)
            pieces.append(piece)
            missing -= len(piece.split())
        return " ".join(pieces)

    def _styles(self) -> list[Callable[[int], str]]:
        every: list[Callable[[int], str]] = [
            self._sentence,
            self._pattern,
            self._fact,
            self._random_words,
            self._numbers,
            self._same_word,
        ]
        weights = [4, 4, 3, 2, 0.5, 0.5]
        return self._rng.choices(every, weights, k=self._rng.choice((1, 2, 4)))

    def _sentence(self, _: int) -> str:
        return self._rng.choice(self._texts.phrases.sentences)

    def _fact(self, _: int) -> str:
        fact = self._rng.choice(self._texts.facts)
        return self._rng.choice((fact.answer, fact.answer, self._rng.choice(fact.questions)))

    def _pattern(self, _: int) -> str:
        nouns = iter(self._rng.sample(self._texts.code_words, 5))
        adjectives = iter(self._rng.sample(self._texts.phrases.adjectives, 2))
        names = {name: next(nouns) for name in ("n", "m", "o", "n2", "m2")}
        return self._rng.choice(self._texts.phrases.patterns).format(
            a=next(adjectives), b=next(adjectives), **names
        )

    def _random_words(self, missing: int) -> str:
        source = self._words if self._rng.random() < 0.7 else self._texts.code_words
        return " ".join(self._rng.choice(source) for _ in range(self._rng.randint(1, min(missing, 25))))

    def _numbers(self, missing: int) -> str:
        return " ".join(str(self._rng.randrange(1000)) for _ in range(self._rng.randint(1, min(missing, 10))))

    def _same_word(self, missing: int) -> str:
        word = self._rng.choice(self._words)
        return " ".join([word] * self._rng.randint(1, min(missing, 20)))
