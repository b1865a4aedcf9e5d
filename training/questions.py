"""Varies questions, so that what is learned is their meaning and not their wording.

A variation swaps synonyms, drops or disturbs words, adds politeness, and changes case and punctuation.
Pure but for the random numbers it is given. Invariant: a question that is held out is never returned.
"""

from __future__ import annotations

import random
import re

from texts import Fact, Phrases, Texts, normalise

OFF_TOPIC = "off-topic"


class QuestionMaker:
    """Makes training questions for facts."""

    def __init__(self, texts: Texts, rng: random.Random) -> None:
        self._phrases: Phrases = texts.phrases
        self._unseen = texts.unseen
        self._rng = rng
        self._swaps = _swap_table(texts.phrases.synonyms)
        self._swap_pattern = re.compile(
            r"\b("
            + "|".join(sorted((re.escape(phrase) for phrase in self._swaps), key=len, reverse=True))
            + r")\b"
        )
        self._frames = self._all_frames(texts)
        self._strange_words = sorted(
            {word for text in texts.phrases.sentences for word in normalise(text).split()}
        )

    def question(self, fact: Fact) -> str:
        """A new question about the fact."""
        while True:
            text = self._dress(self._disturb(self._swap(self._reframe(self._core(fact)))))
            if normalise(text) not in self._unseen:
                return text

    def _core(self, fact: Fact) -> str:
        """A written question, a definition of a topic, or words taken from the fact itself."""
        draw = self._rng.random()
        if fact.id == OFF_TOPIC and draw < 0.4:
            return self._about_nothing()
        if fact.topics and draw < 0.22:
            return self._rng.choice(self._phrases.definitions).format(self._rng.choice(fact.topics))
        if draw < 0.30 and fact.id != OFF_TOPIC:
            return self._from_answer(fact)
        if draw < 0.38 and fact.id != OFF_TOPIC:
            return self._blend(*self._rng.sample(fact.questions, 2))
        return self._rng.choice(fact.questions)

    def _about_nothing(self) -> str:
        """A question about everyday things, which no fact answers."""
        about = self._rng.choice(self._phrases.sentences).rstrip(".").split()
        kept = about[self._rng.randrange(len(about) - 2) :]
        return f"{self._rng.choice(self._phrases.everyday)} {' '.join(kept[: self._rng.randint(2, 8)])}"

    def _from_answer(self, fact: Fact) -> str:
        """A few words of the answer beside a piece of a question."""
        words = [word for word in normalise(fact.answer).split() if word not in self._phrases.small_words]
        kept = set(self._rng.sample(range(len(words)), min(len(words), self._rng.randint(3, 6))))
        picked = " ".join(word for place, word in enumerate(words) if place in kept)
        return f"{self._rng.choice(fact.questions)} {picked}" if self._rng.random() < 0.5 else picked

    def _blend(self, first: str, second: str) -> str:
        """The beginning of one question with the telling words of another."""
        words = [word for word in second.split() if word.lower() not in self._phrases.small_words]
        head = first.split()
        return " ".join(head[: self._rng.randint(min(2, len(head)), len(head))] + words)

    def _reframe(self, text: str) -> str:
        """Ask for the same telling words in another frame, in another order, or with nothing between them."""
        words = text.split()
        start = self._frame_length(words)
        telling = [word for word in words[start:] if word.lower() not in self._phrases.small_words]
        draw = self._rng.random()
        if len(telling) < 2 or draw > 0.5:
            return text
        if draw < 0.25:
            return " ".join([self._rng.choice(self._frames), *words[start:]])
        if draw < 0.33:
            return " ".join([self._rng.choice(self._frames), *telling])
        if draw < 0.40:
            return " ".join(telling)
        self._rng.shuffle(words)
        return " ".join(words)

    def _all_frames(self, texts: Texts) -> list[str]:
        """How questions begin, before their first telling word; the frequent ones often."""
        questions = [question.split() for fact in texts.facts for question in fact.questions]
        frames = [" ".join(words[: self._frame_length(words)]) for words in questions]
        return [frame for frame in frames if frame]

    def _frame_length(self, words: list[str]) -> int:
        """Number of small words at the beginning: `how do I`, `what is the`."""
        small = self._phrases.small_words
        return next((place for place, word in enumerate(words) if word.lower() not in small), len(words))

    def _swap(self, text: str) -> str:
        """Replace some phrases by synonyms."""
        rate = self._rng.choice((0.0, 0.3, 0.6))
        return self._swap_pattern.sub(
            lambda found: self._rng.choice(self._swaps[found[0]]) if self._rng.random() < rate else found[0], text
        )

    def _disturb(self, text: str) -> str:
        """Drop, replace, move or misspell a few words."""
        words = text.split()
        if len(words) < 4 or self._rng.random() < 0.4:
            return text
        kept = [word for word in words if self._rng.random() > self._drop_rate(word)] or words
        draw = self._rng.random()
        place = self._rng.randrange(len(kept))
        if draw < 0.12:
            kept[place] = self._rng.choice(self._strange_words)
        elif draw < 0.30:
            kept.insert(place, self._rng.choice(self._strange_words))
        elif draw < 0.36:
            kept[place] = _misspell(kept[place], self._rng)
        elif draw < 0.44:
            cut = self._rng.randrange(len(kept))
            kept = kept[cut:] + kept[:cut]
        return " ".join(kept)

    def _drop_rate(self, word: str) -> float:
        return 0.2 if word.lower() in self._phrases.small_words else 0.04

    def _dress(self, text: str) -> str:
        """Politeness around it, and the case and punctuation of the careful and the hasty."""
        if self._rng.random() < 0.3:
            text = f"{self._rng.choice(self._phrases.openings)} {text}"
        if self._rng.random() < 0.15:
            text = f"{text} {self._rng.choice(self._phrases.closings)}"
        case = self._rng.random()
        if case < 0.5:
            text = text[:1].upper() + text[1:]
        elif case < 0.58:
            text = text.lower()
        elif case < 0.6:
            text = text.upper()
        return text + self._rng.choice(("?", "?", "?", "", "", ".", " ?", "!", "??"))


def _swap_table(groups: tuple[tuple[str, ...], ...]) -> dict[str, list[str]]:
    """Phrase -> its synonyms, over all groups it is the first of."""
    table: dict[str, list[str]] = {}
    for group in groups:
        table.setdefault(group[0], []).extend(group[1:])
    return table


def _misspell(word: str, rng: random.Random) -> str:
    """Two letters swapped, or one left out."""
    if len(word) < 4:
        return word
    place = rng.randrange(len(word) - 1)
    if rng.random() < 0.5:
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return word[:place] + word[place + 1 :]
