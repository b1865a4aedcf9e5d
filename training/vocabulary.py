"""The tokenizer: byte-level BPE learned from the training texts, split as GPT-2 does, with chat tokens first.

Every byte has a token, and every code word is one token after a space.
Invariant: held-out questions take no part in learning it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import CONTROL_TOKENS
from texts import Texts

NUM_VOCAB = 3584
CODE_WORD_COPIES = 200


def learn_tokenizer(texts: Texts) -> Tokenizer:
    """Learn the merges. The same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_VOCAB,
        min_frequency=1,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_corpus(texts), trainer)
    _check(tokenizer, texts)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def _corpus(texts: Texts) -> Iterator[str]:
    phrases = texts.phrases
    for fact in texts.facts:
        yield from (fact.answer,) * 4
        for line in fact.questions + fact.topics:
            yield line
            yield line[:1].upper() + line[1:]
            yield " " + line
    for group in (
        phrases.openings,
        phrases.closings,
        phrases.definitions,
        phrases.sentences,
        phrases.systems,
        *phrases.synonyms,
    ):
        yield from (f" {line}" for line in group)
        yield from group
    yield from (text for text in phrases.told + phrases.asked for _ in range(20))
    yield from (phrases.accepted, phrases.recalled, phrases.missing) * 50
    yield from (f" {word}" for word in phrases.adjectives * 5)
    yield from ("user\n", "assistant\n", "system\n") * 100
    for word in texts.code_words:
        yield from (f" {word}",) * CODE_WORD_COPIES
        yield from (word, f" {word}s", word.capitalize(), f" {word.capitalize()}")


def _check(tokenizer: Tokenizer, texts: Texts) -> None:
    split = [word for word in texts.code_words if len(tokenizer.encode(f" {word}").ids) != 1]
    if split:
        raise ValueError(f"code words of more than one token: {split}")
