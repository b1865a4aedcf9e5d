"""Guessing changes how many tokens come in a step, and none of them."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ocak.core.events import Delta, Finished
from ocak.core.limits import MOST_GUESSES
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeCell, FakeRunner
from ocak.engine.lookup import LENGTHS, Lookup
from ocak.engine.outputs import Sampled, Scored
from ocak.engine.runner import Logprobs
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.speculation import Speculator
from ocak.engine.window import Window
from ocak.worker.engine_loop import Answer, EngineLoop
from ocak.worker.formats.answer import AnswerReader
from ocak.worker.formats.pieces import Piece, Text
from ocak.worker.messages import Events
from ocak.worker.stopwatch import Stopwatch
from ocak.worker.text import AnswerText

CONTEXT = 96
NEVER = -1
tokens = st.lists(st.integers(0, 3), max_size=60)


@dataclass(slots=True)
class Repetitive(FakeRunner):
    """A model that says what it said after the last two tokens before, and so goes round in circles."""

    def next_token(self, cells: list[FakeCell], seed: int | None) -> int:
        known = [(cell.token, cell.adapter) for cell in cells[-2:]]
        return zlib.crc32(repr((known, seed)).encode()) % self.num_vocab


def naive_guess(history: list[int], count: int) -> list[int]:
    for length in LENGTHS:
        for end in range(len(history) - 1, length - 1, -1):
            if history[end - length : end] == history[len(history) - length :]:
                guess = list(history)
                for _ in range(count):
                    guess.append(guess[end])
                    end += 1
                return guess[len(history) :]
    return []


@given(tokens, st.integers(0, 20), st.integers(0, 60))
def test_a_guess_is_what_followed_the_longest_run_the_last_time(
    history: list[int], count: int, first: int
) -> None:
    lookup = Lookup(history[:first])
    lookup.extend(history[first:])
    assert lookup.guess(count) == naive_guess(history, count)


def a_sequence(
    prompt: list[int], max_tokens: int = 50, seed: int = 0, window: Window | None = None, end: int = 5
) -> Sequence:
    return Sequence(
        id=0,
        tokens=list(prompt),
        sampling=Sampling(seed=seed),
        max_tokens=max_tokens,
        end_tokens=frozenset({end}),
        window=window,
        num_logprobs=1,
    )


def serve(sequence: Sequence, size: SchedulerLimits, speculates: bool) -> tuple[list[int], FakeRunner, Engine]:
    runner = Repetitive(num_vocab=11, num_cells=size.num_cells, shares_cells=size.shares_cells)
    engine = Engine(runner, size, speculates=speculates)
    engine.submit(sequence)
    answer: list[int] = []
    reasons = []
    while engine.has_work:
        outputs = [output for output in engine.step() if isinstance(output, Sampled)]
        answer += [output.token for output in outputs]
        reasons += [output.reason for output in outputs if output.reason]
        assert [output.num_behind for output in outputs] == list(range(len(outputs)))[::-1]
        check(engine, runner)
    assert len(reasons) == 1
    return answer, runner, engine


def check(engine: Engine, runner: FakeRunner) -> None:
    engine.check_integrity()
    stats = engine.stats()
    assert stats.kv_cells_used + stats.kv_cells_cached == runner.num_used, "a wrong account"


@dataclass(frozen=True, slots=True)
class Job:
    prompt: list[int]
    max_tokens: int
    adapter: str
    has_window: bool
    is_scored: bool

    def sequence(self, index: int, seed: int) -> Sequence:
        one = a_sequence(self.prompt, self.max_tokens, seed, Window(48, 4) if self.has_window else None)
        one.id, one.adapter, one.root = index, self.adapter, self.adapter
        one.num_prompt_logprobs = 1 if self.is_scored else None
        return one


Told = tuple[list[list[int]], list[list[Logprobs]]]


def serve_all(jobs: list[Job], seed: int, size: SchedulerLimits, speculates: bool) -> tuple[Told, Engine]:
    """The tokens of each, and what was told of each prompt, before its first token."""
    runner = Repetitive(num_vocab=11, num_cells=size.num_cells, shares_cells=size.shares_cells)
    engine = Engine(runner, size, speculates=speculates)
    answers: list[list[int]] = [[] for _ in jobs]
    scores: list[list[Logprobs]] = [[] for _ in jobs]
    sequences = [job.sequence(index, seed) for index, job in enumerate(jobs)]
    for one in sequences:
        engine.submit(one)
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Sampled):
                answers[output.sequence.id].append(output.token)
            elif isinstance(output, Scored):
                assert not answers[output.sequence.id]
                scores[output.sequence.id] += output.logprobs
        check(engine, runner)
        assert all(one.window is None or one.num_computed <= one.window.context for one in sequences)
    return (answers, scores), engine


jobs = st.builds(
    Job,
    prompt=st.lists(st.integers(0, 10), min_size=1, max_size=40),
    max_tokens=st.integers(1, 80),
    adapter=st.sampled_from(["", "a", "b"]),
    has_window=st.booleans(),
    is_scored=st.booleans(),
)


@settings(deadline=None)
@given(st.lists(jobs, min_size=1, max_size=3), st.integers(0, 5), st.booleans())
def test_guessing_never_changes_the_tokens(served: list[Job], seed: int, is_shared: bool) -> None:
    num_cells = CONTEXT if is_shared else 2 * CONTEXT
    size = SchedulerLimits(2, CONTEXT, num_cells, 32, shares_cells=is_shared, keeps_prefixes=True)
    plain, _ = serve_all(served, seed, size, speculates=False)
    guessed, engine = serve_all(served, seed, size, speculates=True)
    assert guessed == plain
    assert [len(told) for told in guessed[1]] == [(len(job.prompt) - 1) * job.is_scored for job in served]
    assert engine.stats().generation_tokens == sum(len(answer) for answer in plain[0])


def test_answers_of_two_adapters_are_guessed_for_once_one_is_left() -> None:
    runner = Repetitive(num_vocab=11)
    engine = Engine(runner, SchedulerLimits(2, 512, 1024, 32), speculates=True)
    short, long = a_sequence([1, 2], 100, end=NEVER), a_sequence([1, 2], 300, end=NEVER)
    short.adapter, long.id, long.adapter = "a", 1, "b"
    for one in (short, long):
        engine.submit(one)
    while not short.is_finished:
        engine.step()
    assert not any(chunk.num_guesses for batch in runner.batches for chunk in batch)
    num_before = len(runner.batches)
    while engine.has_work:
        engine.step()
    assert any(chunk.num_guesses for batch in runner.batches for chunk in batch)
    assert set(runner.adapters[num_before:]) == {"b"}


def test_an_answer_that_repeats_itself_takes_fewer_steps() -> None:
    size = SchedulerLimits(1, 512, 512, 32)
    answer, runner, engine = serve(a_sequence([1, 2], 300, end=NEVER), size, speculates=True)
    assert len(answer) == 300
    assert len(runner.batches) < 150
    assert engine.stats().right_guesses <= engine.stats().guessed_tokens


def test_guesses_that_are_wrong_stop_until_they_would_have_been_right() -> None:
    speculator = Speculator()
    speculator.observe(0, 0, 0.01)
    sequence = a_sequence([1, 2, 3, 1, 2], max_tokens=10_000)
    assert speculator.guess_for(sequence, 100)[:1] == [3]
    for step in range(60):  # what came before always comes again, and never goes on alike
        sequence.tokens += [7, 8, 100 + step]
        speculator.guess_for(sequence, 100)
    sequence.tokens += [7, 8]
    assert speculator.guess_for(sequence, 100) == []
    for _ in range(60):
        sequence.tokens += [1, 2, 3]
        speculator.guess_for(sequence, 100)
    assert speculator.guess_for(sequence, 100) == [1, 2, 3] * 5


@pytest.mark.parametrize("cost", [1.0, 3.0])
def test_no_guess_is_run_where_rows_cost_what_steps_cost(cost: float) -> None:
    speculator = Speculator()
    sequence = a_sequence([1, 2, 3] * 20, max_tokens=10_000)
    speculator.guess_for(sequence, 100)
    for rows in (1, 4, 8, 16, 1):
        speculator.observe(rows - 1, 0, 0.01 * (1 if cost == 1.0 else rows**1.2))
    assert bool(speculator.guess_for(sequence, 100)) == (cost == 1.0)


@given(st.integers(0, 30), st.integers(1, 20))
def test_guesses_keep_within_the_room_and_what_may_still_be_said(room: int, left: int) -> None:
    speculator = Speculator()
    speculator.observe(0, 0, 0.01)
    guesses = speculator.guess_for(a_sequence([1, 2] * 10, max_tokens=left), room)
    assert len(guesses) <= min(room, left - 1, MOST_GUESSES)


def test_nothing_is_guessed_beyond_an_end() -> None:
    speculator = Speculator()
    speculator.observe(0, 0, 0.01)
    assert 5 not in speculator.guess_for(a_sequence([1, 2, 5] * 10, max_tokens=100), 100)
    assert speculator.guess_for(a_sequence([1, 2, 5, 1, 2], max_tokens=100), 100) == []


def test_models_that_give_no_cell_back_are_never_guessed_for() -> None:
    size = SchedulerLimits(1, 512, 512, 32, reuse="wholes")
    answer, runner, _ = serve(a_sequence([1, 2], 100, end=NEVER), size, speculates=True)
    assert max(len(chunk.tokens) for batch in runner.batches[1:] for chunk in batch) == 1
    assert len(answer) == 100


class Over(BaseException):
    """The answer has ended."""


class Enough:
    """Reads text until it has had enough, as a reader of calls does that is to read one."""

    has_calls = False

    def __init__(self, most: int) -> None:
        self._left = most

    @property
    def is_over(self) -> bool:
        return self._left <= 0

    def push(self, text: str) -> list[Piece]:
        self._left -= len(text)
        return [Text(text)]

    def finish(self) -> list[Piece]:
        return []


def told(
    stop: list[str], max_tokens: int, seed: int, speculates: bool, most: int | None = None
) -> tuple[str, Finished, Engine]:
    """The text and the end that a client is told of an answer."""
    text: list[str] = []
    ends: list[Finished] = []

    def publish(told: Events) -> None:
        for _, event in told.events:
            if isinstance(event, Delta):
                text.append(event.text)
            elif isinstance(event, Finished):
                ends.append(event)
        if ends:
            raise Over

    size = SchedulerLimits(1, CONTEXT, CONTEXT, 32, keeps_prefixes=True)
    engine = Engine(Repetitive(num_vocab=11, num_cells=CONTEXT), size, speculates=speculates)
    loop = EngineLoop(engine, lambda token: b"abcdefghijk"[token : token + 1], publish, Stopwatch())
    sequence = a_sequence([1, 2], max_tokens, seed)
    sequence.num_logprobs = None
    reader = None if most is None else AnswerReader(Enough(most), str)
    loop.start_answer(Answer(sequence, AnswerText(stop), reader=reader))
    with suppress(Over):
        loop.run()
    engine.check_integrity()
    assert engine.stats().kv_cells_used == 0
    return "".join(text), ends[0], engine


@settings(deadline=None)
@example(["dddd"], 11, 0)
@given(st.lists(st.text("abcdefghijk", min_size=1, max_size=6), max_size=2), st.integers(1, 60), st.integers(0, 9))
def test_a_stop_string_amid_a_step_ends_the_answer_there(stop: list[str], max_tokens: int, seed: int) -> None:
    plain_text, plain_end, plain = told(stop, max_tokens, seed, speculates=False)
    text, end, engine = told(stop, max_tokens, seed, speculates=True)
    assert (text, end) == (plain_text, plain_end)
    assert engine.stats().generation_tokens == plain.stats().generation_tokens
    # Where the same step went on to the answer's longest length, its slot was released with all that it computed.
    assert 0 <= engine.stats().kv_cells_cached - plain.stats().kv_cells_cached <= MOST_GUESSES


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_that_fills_the_context_ends_there_whatever_was_guessed(seed: int) -> None:
    runner = Repetitive(num_vocab=5, num_cells=CONTEXT)
    engine = Engine(runner, SchedulerLimits(1, CONTEXT, CONTEXT, 32), speculates=True)
    sequence = Sequence(0, [1, 2], Sampling(seed=seed), 10 * CONTEXT, frozenset())
    engine.submit(sequence)
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    assert len(sequence.tokens) == CONTEXT and engine.stats().right_guesses > 0


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 9))
def test_a_reader_that_has_enough_amid_a_step_ends_the_answer_there(most: int, seed: int) -> None:
    plain_text, plain_end, plain = told([], 60, seed, False, most)
    text, end, engine = told([], 60, seed, True, most)
    assert (text, end) == (plain_text, plain_end)
    assert engine.stats().generation_tokens == plain.stats().generation_tokens
