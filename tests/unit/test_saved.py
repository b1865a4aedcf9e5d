"""What is in host memory, against brute force."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.engine import saved
from ocak.engine.saved import Saved

BUDGET = 40
tokens = st.lists(st.integers(0, 1), min_size=1, max_size=20).map(tuple)


@pytest.fixture(autouse=True, scope="module")
def _short_runs_are_worth_saving() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saved, "WORTH_SAVING", 2)
        patch.setattr(saved, "MOST_SAVED", 9)
        yield


def in_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, pair in pairs if len(set(pair)) > 1), min(len(one), len(other)))


class Story:
    """Saves texts one after another, and keeps what is saved of each in the open."""

    def __init__(self, *, is_chained: bool) -> None:
        self.saved = Saved(BUDGET, takes_parts=True, is_chained=is_chained)
        self.paths: dict[int, tuple[int, ...]] = {}
        self.starts: dict[int, int] = {}

    def common(self, text: tuple[int, ...]) -> dict[int, int]:
        return {key: length for key, path in self.paths.items() if (length := in_common(text, path))}

    def save(self, key: int, text: tuple[int, ...], spared: frozenset[int] = frozenset()) -> None:
        reach = self.reach(text)
        saving = self.saved.save(key, len(text), self.common(text), spared & self.paths.keys())
        if saving is None:
            return
        assert not spared & set(saving.forgotten)
        for each in saving.forgotten:
            del self.paths[each], self.starts[each]
        assert saving.start == (reach if self.saved._is_chained else 0), "saved twice"
        self.paths[key], self.starts[key] = text, saving.start

    def reach(self, text: tuple[int, ...], start: int = 0) -> int:
        """How far the text is there without a gap."""
        there = {i for key, length in self.common(text).items() for i in range(self.starts[key], length)}
        return next(i for i in range(start, len(text) + 1) if i not in there)

    def check(self) -> None:
        self.saved.check_integrity({key: len(path) for key, path in self.paths.items()})
        assert self.saved.num_tokens == sum(len(p) - self.starts[k] for k, p in self.paths.items()) <= BUDGET


@settings(deadline=None, max_examples=500)
@given(st.lists(st.tuples(tokens, st.frozensets(st.integers(0, 30), max_size=2)), max_size=30), st.booleans())
def test_a_chain_reaches_as_far_as_what_is_saved_has_no_gap(
    texts: list[tuple[tuple[int, ...], frozenset[int]]], is_chained: bool
) -> None:
    story = Story(is_chained=is_chained)
    for key, (text, spared) in enumerate(texts):
        story.save(key, text, spared)
        story.check()
        for start in (0, len(text) // 2) if is_chained else (0,):
            chain = story.saved.chain(story.common(text), start)
            assert (chain[-1].end if chain else start) == max(story.reach(text, start), start)
            reached = start
            for piece in chain:
                assert story.starts[piece.key] <= reached < piece.end <= story.common(text)[piece.key]
                reached = piece.end


@settings(deadline=None, max_examples=500)
@given(st.lists(tokens, max_size=30))
def test_no_run_outlives_what_stands_before_it(texts: list[tuple[int, ...]]) -> None:
    story = Story(is_chained=True)
    for key, text in enumerate(texts):
        story.save(key, text)
        for path in story.paths.values():
            assert story.reach(path) == len(path)


def test_a_beginning_that_many_have_in_common_takes_its_place_once() -> None:
    story = Story(is_chained=True)
    for which in range(5):
        story.save(which, (*[1] * 10, *[0] * which, 1, 1, 1, which, which))
    assert story.saved.num_tokens < 10 + 5 * 10
    assert sum(start == 0 for start in story.starts.values()) == 1
