"""From sampled tokens to events: log-probabilities come with their text, whatever holds it back."""

from __future__ import annotations

import codecs
from contextlib import suppress

from hypothesis import example, given
from hypothesis import strategies as st

from ocak.core.events import Delta, Finished, Started, TokenLogprob
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeRunner
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.worker.engine_loop import Answer, EngineLoop
from ocak.worker.logprobs import HeldLogprobs
from ocak.worker.messages import Events
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.text import AnswerText

END = 13
MAX_TOKENS = 30
Shown = list[tuple[str, tuple[TokenLogprob, ...]]]


class Over(BaseException):
    """Ends the loop, which otherwise serves for ever."""


def answer(
    pieces: list[bytes], stop: list[str], prompt: tuple[int, ...], *, end: int | None = END, count: int | None = 2
) -> tuple[Shown, list[int]]:
    """Serve one sequence; return the deltas, and the tokens that were sampled, without the end of turn."""
    shown: Shown = []

    def piece(token: int) -> bytes:
        return pieces[token % len(pieces)]

    def publish(told: Events) -> None:
        for _, event in told.events:
            if isinstance(event, Delta):
                shown.append((event.text, event.logprobs))
            elif isinstance(event, Finished):
                raise Over
            else:
                assert isinstance(event, Started)

    loop = EngineLoop(Engine(FakeRunner(), SchedulerLimits(1, 64, 64, 32)), piece, publish, Stopwatch())
    ends = frozenset() if end is None else frozenset({end})
    sequence = Sequence(1, list(prompt), Sampling(seed=1), MAX_TOKENS, ends, num_logprobs=count)
    held = None if count is None else HeldLogprobs(piece, lambda token: f"<{token}>")
    loop.start_answer(Answer(sequence, AnswerText(stop), logprobs=held))
    with suppress(Over):
        loop.run()
    tokens = sequence.tokens[len(prompt) :]
    return shown, tokens[:-1] if tokens[-1] == end else tokens


def starts(tokens: list[int], pieces: list[bytes]) -> list[int]:
    """The whole characters before each token."""
    decoder, at, found = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
    for token in tokens:
        found.append(at)
        at += len(decoder.decode(pieces[token % len(pieces)]))
    return found


some_pieces = st.lists(
    st.sampled_from(
        [b"a", b"b", b"ab", b"ba ", b"", b"\xf0\x9f", b"\x98\x80", b"\xf0", b"\xc3", b"\xa9", b"b\xc3"]
    ),
    min_size=1,
    max_size=9,
)
prompts = st.lists(st.integers(0, 96), min_size=1, max_size=4).map(tuple)


@given(some_pieces, prompts, st.lists(st.text("abé ", min_size=1, max_size=4), max_size=2))
@example([b"a", b"b"], (1,), ["bbbb"])
@example([b"\xc3", b"\xa9"], (1,), [])
def test_each_token_is_told_once_in_order_and_with_its_text(
    pieces: list[bytes], prompt: tuple[int, ...], stop: list[str]
) -> None:
    shown, tokens = answer(pieces, stop, prompt)
    at = starts(tokens, pieces)
    text, num_told = "", 0
    for piece, logprobs in shown:
        text += piece
        for told in logprobs:
            assert told.token.logprob == -float(tokens[num_told])
            assert told.token.piece == pieces[tokens[num_told] % len(pieces)]
            assert told.token.name == ("" if told.token.piece else f"<{tokens[num_told]}>")
            assert told.start == at[num_told]
            assert [likely.logprob for likely in told.likeliest] == [0.0, -1.0]
            num_told += 1
        if (piece, logprobs) is not shown[-1]:
            assert num_told >= sum(start < len(text) for start in at), "later than its text"
    written = b"".join(pieces[token % len(pieces)] for token in tokens).decode("utf-8", "replace")
    is_stopped = any(string in written for string in stop)
    assert num_told == (sum(start < len(text) for start in at) if is_stopped else len(tokens))
    assert is_stopped or text == written


@given(some_pieces, prompts, st.lists(st.text("abé ", min_size=1, max_size=4), max_size=2))
def test_the_text_is_the_same_without_them(pieces: list[bytes], prompt: tuple[int, ...], stop: list[str]) -> None:
    with_them, tokens = answer(pieces, stop, prompt)
    without, same = answer(pieces, stop, prompt, count=None)
    assert tokens == same
    assert [text for text, _ in with_them if text] == [text for text, _ in without]
    assert all(not logprobs for _, logprobs in without)


def test_a_token_of_which_a_part_is_shown_is_told_and_one_that_is_cut_off_is_not() -> None:
    shown, _ = answer([b"ab"], ["ba"], (1,), end=None)
    assert [(text, len(logprobs)) for text, logprobs in shown] == [("a", 1)]


def test_special_tokens_that_do_not_end_the_answer_are_told_by_name() -> None:
    shown, tokens = answer([b""], [], (1,), end=None)
    assert [text for text, _ in shown] == [""]
    assert [told.token.name for told in shown[0][1]] == [f"<{token}>" for token in tokens]
    assert len(tokens) == MAX_TOKENS
