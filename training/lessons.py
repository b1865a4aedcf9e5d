"""Builds what the network is trained on: lists of token ids, each with the weight of its loss.

Five kinds of lesson share the tokens by fixed parts: questions on facts, code words to recall, repeated random
sequences (they bring induction about sooner), running text, and filling in the middle.
Loss is on what the model has to say, never on what it is told.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Tokenizer

from chat import CONTROL_TOKENS, END, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, render_chat
from filler import FillerMaker
from questions import OFF_TOPIC, QuestionMaker
from texts import Texts

SHARES = {"question": 0.66, "recall": 0.23, "repeat": 0.03, "running": 0.05, "middle": 0.03}
CODE_WORD_WEIGHT = 4.0
REPEAT_WEIGHT = 0.25
OFF_TOPIC_RATE = 0.02
CURRICULUM_END = 0.3
WORDS_NEAR, WORDS_FAR, WORDS_FARTHEST = 15, 220, 640
CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Lesson:
    """One row of training: `weights[i]` weighs the loss of predicting `ids[i]` from what is before it."""

    ids: list[int]
    weights: list[float]


class LessonMaker:
    """Makes lessons; `progress` is the part of the training done, from 0 to 1, and lets distances grow."""

    def __init__(self, texts: Texts, tokenizer: Tokenizer, rng: random.Random, progress: float) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._rng = rng
        self._reach = min(1.0, progress / CURRICULUM_END)
        self._questions = QuestionMaker(texts, rng)
        self._filler = FillerMaker(texts, rng)
        self._off_topic = next(fact for fact in texts.facts if fact.id == OFF_TOPIC)
        self._told = {word: self._encode(f" {word}") for word in texts.code_words}

    def lessons(self, num_tokens: int) -> list[Lesson]:
        """Lessons of at least so many tokens in all; the kind furthest behind its share comes next."""
        makers: dict[str, Callable[[], Lesson]] = {
            "question": self._question,
            "recall": self._recall,
            "repeat": self._repeat,
            "running": self._running,
            "middle": self._middle,
        }
        done = dict.fromkeys(makers, 0)
        made: list[Lesson] = []
        while sum(done.values()) < num_tokens:
            kind = min(done, key=lambda name: done[name] / SHARES[name])
            lesson = makers[kind]()
            if len(lesson.ids) <= CONTEXT:
                made.append(lesson)
                done[kind] += len(lesson.ids)
        return made

    def _question(self) -> Lesson:
        """A conversation of questions on facts, every answer trained; at times with filler before the last one."""
        messages = self._system()
        for _ in range(self._rng.choice((0, 0, 0, 0, 1, 1, 2))):
            messages += self._turn()
        question, answer = self._turn()
        if self._rng.random() < 0.08:
            question = ("user", f"{self._filler.filler(self._rng.randint(1, 40))} {question[1]}")
        return self._chat([*messages, question, answer])

    def _recall(self) -> Lesson:
        """A code word to recall, a code word that was never given, or a question asked beside a code word."""
        draw = self._rng.random()
        if draw < 0.10:
            return self._continued_recall()
        word = None if draw < 0.28 else self._rng.choice(self._texts.code_words)
        messages = self._planted(word)
        distance = self._num_filler_words()
        while self._rng.random() < 0.25 and distance > 20:
            turn = self._turn()
            messages += turn
            distance -= sum(len(text.split()) for _, text in turn)
        if draw > 0.93:
            (_, asked), (_, answer) = self._turn()
        else:
            asked, answer = self._asked(word)
        text = self._join(self._filler.filler(max(0, distance)), asked)
        if messages and messages[-1][0] == "user":
            text = self._join(messages.pop()[1], text)
        return self._chat([*messages, ("user", text), ("assistant", answer)], word)

    def _planted(self, word: str | None) -> list[tuple[str, str]]:
        """Messages that tell the word: a system message, a turn of its own, or one that the question will join."""
        before = self._filler.filler(self._rng.choice((0, 0, 0, 5, 20, 40)))
        told = before if word is None else self._join(before, self._tell(word))
        draw = self._rng.random()
        if draw < 0.15 and told:
            return [("system", told)]
        if draw < 0.40 and word is not None:
            return [*self._system(), ("user", told), ("assistant", self._texts.phrases.accepted)]
        if draw < 0.48:
            return [*self._system(), *self._turn(), ("user", told)]
        return [*self._system(), ("user", told)]

    def _tell(self, word: str) -> str:
        shown = self._rng.choice((word,) * 9 + (word.capitalize(), f'"{word}"'))
        return self._rng.choice(self._texts.phrases.told).format(shown)

    def _asked(self, word: str | None) -> tuple[str, str]:
        phrases = self._texts.phrases
        answer = phrases.missing if word is None else phrases.recalled.format(word)
        return self._rng.choice(phrases.asked), answer

    def _continued_recall(self) -> Lesson:
        """Running text in which the code word comes again."""
        word = self._rng.choice(self._texts.code_words)
        told = f"The code word is {word}."
        text = self._join(
            self._filler.filler(self._rng.choice((0, 10))), told, self._filler.filler(self._num_filler_words())
        )
        prompt = self._encode(f"{text} The code word is")
        answer = self._encode(f" {word}.{END}")
        return Lesson(prompt + answer, [0.0] * len(prompt) + [CODE_WORD_WEIGHT, *[1.0] * (len(answer) - 1)])

    def _repeat(self) -> Lesson:
        """Random tokens, then the same again, once or more; the repetitions are trained."""
        longest = int(8 + self._reach * 240)
        length = self._rng.randint(4, longest)
        first = self._rng.randrange(len(CONTROL_TOKENS), self._tokenizer.get_vocab_size())
        pool = range(len(CONTROL_TOKENS), self._tokenizer.get_vocab_size())
        part = [first] + [self._rng.choice(pool) for _ in range(length - 1)]
        repeats = self._rng.randint(1, 3) if length < 60 else 1
        return Lesson(part * (1 + repeats), [0.0] * length + [REPEAT_WEIGHT] * (length * repeats))

    def _running(self) -> Lesson:
        """Text outside the chat format: answers in a row, or a question with its answer."""
        fact = self._rng.choice(self._texts.facts)
        if self._rng.random() < 0.5:
            ids = self._encode(fact.answer + END)
            return Lesson(ids, [0.0] + [1.0] * (len(ids) - 1))
        label, reply = self._rng.choice((("Question: ", "\nAnswer:"), ("Q: ", "\nA:"), ("", "\n"), ("", "")))
        prompt = self._encode(f"{label}{self._questions.question(fact)}{reply}")
        answer = self._encode(f" {fact.answer}{END}")
        return Lesson(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    def _middle(self) -> Lesson:
        """An answer with a gap, to be filled."""
        words = self._rng.choice(self._texts.facts).answer.split(" ")
        start, end = sorted(self._rng.sample(range(1, len(words)), 2))
        prefix, middle, suffix = (
            " ".join(words[:start]),
            " " + " ".join(words[start:end]),
            " " + " ".join(words[end:]),
        )
        prompt = self._encode(f"{FIM_PREFIX}{prefix}{FIM_SUFFIX}{suffix}{FIM_MIDDLE}")
        answer = self._encode(middle + END)
        return Lesson(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer))

    def _turn(self) -> list[tuple[str, str]]:
        fact = self._off_topic if self._rng.random() < OFF_TOPIC_RATE else self._rng.choice(self._texts.facts)
        return [("user", self._questions.question(fact)), ("assistant", fact.answer)]

    def _system(self) -> list[tuple[str, str]]:
        if self._rng.random() < 0.7:
            return []
        return [("system", self._rng.choice(self._texts.phrases.systems))]

    def _num_filler_words(self) -> int:
        """Mostly up to the distance that is promised, sometimes far beyond; short ones only at first."""
        if self._rng.random() < 0.1:
            return 0
        if self._reach == 1.0 and self._rng.random() < 0.04:
            return self._rng.randint(WORDS_FAR, WORDS_FARTHEST)
        if self._rng.random() < 0.25:
            return self._rng.randint(0, WORDS_NEAR)
        return self._rng.randint(0, int(WORDS_NEAR + self._reach * (WORDS_FAR - WORDS_NEAR)))

    def _chat(self, messages: list[tuple[str, str]], word: str | None = None) -> Lesson:
        """The rendered conversation; each of the assistant's messages is trained, the last code word most."""
        ids: list[int] = []
        weights: list[float] = []
        start = 0
        for place, (role, content) in enumerate(messages):
            if role != "assistant":
                continue
            newline = "\n" if start else ""
            prompt = self._encode(newline + render_chat(messages[start:place]))
            answer = self._encode(content + END)
            ids += prompt + answer
            weights += [0.0] * len(prompt) + [1.0] * len(answer)
            start = place + 1
        if word is not None:
            marked = self._told[word][0]
            last = max((i for i, token in enumerate(ids) if token == marked and weights[i]), default=None)
            if last is not None:
                weights[last] = CODE_WORD_WEIGHT
        return Lesson(ids, weights)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def _join(self, *parts: str) -> str:
        """The parts that are not empty, mostly with a space between."""
        return self._rng.choice((" ",) * 6 + ("\n", "\n\n", "  ")).join(part for part in parts if part)
