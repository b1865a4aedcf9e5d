"""A draft model changes how many tokens come in a step, and none of them; it is asked only where that pays."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.limits import MOST_GUESSES
from ocak.core.request import Sampling
from ocak.core.status import EngineStats
from ocak.engine.draft_pay import DraftPay
from ocak.engine.drafting import Draft, FakeDrafter
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeCell, FakeRunner
from ocak.engine.outputs import Sampled
from ocak.engine.payoff import StepTimes
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.engine.speculation import Speculator
from ocak.engine.window import Window

CONTEXT = 96
NUM_VOCAB = 11
END = 5


class Dice(DraftPay):
    """Drafts any number of tokens, whether that pays or not, and reads any number at a time."""

    def __init__(self, seed: int, *, has_trials: bool) -> None:
        super().__init__(0.2, MOST_GUESSES)
        self._random = random.Random(seed)
        self._has_trials = has_trials

    def plan(self, times: StepTimes, num_behind: int, num_left: int, rival: float = 1.0) -> int:
        self.is_trial = self._has_trials and self._random.random() < 0.2
        return self._random.choice((0, 1, 2, 5, MOST_GUESSES))

    def chunk(self, times: StepTimes) -> int:
        return self._random.choice((1, 3, 16, 64))


def draft_of(runner: FakeRunner, sampling_seed: int, accuracy: float, dice: int, **limits: int) -> Draft:
    """One that says what the runner would say, for this share of all places."""

    def says(tokens: list[int]) -> int:
        cells = [FakeCell(token, runner.adapter) for token in tokens]
        is_right = zlib.crc32(repr(tokens).encode()) % 100 < 100 * accuracy
        return runner.next_token(cells, sampling_seed) if is_right else 0

    return Draft(FakeDrafter(says, **limits), Dice(dice, has_trials=accuracy < 1))


@dataclass(frozen=True, slots=True)
class Job:
    prompt: list[int]
    max_tokens: int
    adapter: str
    has_window: bool
    end: int = END

    def sequence(self, index: int, seed: int) -> Sequence:
        window = Window(48, 4) if self.has_window else None
        one = Sequence(
            index, list(self.prompt), Sampling(seed=seed), self.max_tokens, frozenset({self.end}), window=window
        )
        one.adapter = one.root = self.adapter
        return one


def serve(
    jobs: list[Job], seed: int, size: SchedulerLimits, draft: tuple[float, int, dict[str, int]] | None = None
) -> tuple[list[list[int]], EngineStats]:
    runner = FakeRunner(num_vocab=NUM_VOCAB, num_cells=size.num_cells, shares_cells=size.shares_cells)
    guessing = None if draft is None else draft_of(runner, seed, draft[0], draft[1], **draft[2])
    engine = Engine(runner, size, speculates=draft is not None, draft=guessing)
    answers: list[list[int]] = [[] for _ in jobs]
    sequences = [job.sequence(index, seed) for index, job in enumerate(jobs)]
    for one in sequences:
        engine.submit(one)
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Sampled):
                answers[output.sequence.id].append(output.token)
        engine.check_integrity()
        stats = engine.stats()
        assert stats.kv_cells_used + stats.kv_cells_cached == runner.num_used, "a wrong account"
        assert all(one.window is None or one.num_computed <= one.window.context for one in sequences)
    return answers, engine.stats()


job = st.builds(
    Job,
    prompt=st.lists(st.integers(0, NUM_VOCAB - 1), min_size=1, max_size=40),
    max_tokens=st.integers(1, 80),
    adapter=st.sampled_from(["", "a"]),
    has_window=st.booleans(),
)


drafts = st.tuples(
    st.sampled_from([0.0, 0.5, 0.9]),
    st.integers(0, 99),
    st.fixed_dictionaries(
        {
            "context": st.sampled_from([1, 20, 64, 1000]),
            "num_left": st.sampled_from([0, 7, 10_000]),
            "most_tokens": st.just(16),
        }
    ),
)


@settings(deadline=None)
@given(st.lists(job, min_size=1, max_size=3), st.integers(0, 5), st.booleans(), drafts)
def test_a_draft_never_changes_the_tokens(
    served: list[Job], seed: int, is_shared: bool, draft: tuple[float, int, dict[str, int]]
) -> None:
    num_cells = CONTEXT if is_shared else 2 * CONTEXT
    size = SchedulerLimits(2, CONTEXT, num_cells, 32, shares_cells=is_shared, keeps_prefixes=True)
    plain, _ = serve(served, seed, size)
    drafted, stats = serve(served, seed, size, draft)
    assert drafted == plain
    assert stats.generation_tokens == sum(map(len, plain))
    assert stats.right_drafts <= stats.drafted_tokens <= stats.guessed_tokens
    assert stats.right_drafts <= stats.right_guesses <= stats.guessed_tokens


@settings(deadline=None)
@given(st.lists(job, min_size=1, max_size=3), st.integers(0, 5), st.integers(0, 99))
def test_a_draft_that_knows_all_is_always_right_so_its_cells_are_in_step(
    served: list[Job], seed: int, dice: int
) -> None:
    """Through shifts, other sequences and the guesses of the look-up."""
    size = SchedulerLimits(2, CONTEXT, 2 * CONTEXT, 32, keeps_prefixes=True)
    _, stats = serve(served, seed, size, (1.0, dice, {}))
    assert stats.right_drafts == stats.drafted_tokens


def test_a_draft_saves_steps() -> None:
    size = SchedulerLimits(1, 512, 512, 32)
    [answer], stats = serve([Job([1, 2], 300, "", has_window=False, end=-1)], 1, size, (1.0, 1, {}))
    assert len(answer) == 300
    assert stats.steps < 150 and stats.right_drafts > 100


def test_a_draft_that_fails_is_not_asked_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    size = SchedulerLimits(1, 512, 512, 32)
    jobs = [Job([1, 2, index], 60, "", has_window=False) for index in range(4)]
    with caplog.at_level(logging.WARNING):
        drafted, _ = serve(jobs, 1, size, (0.5, 1, {"num_left": 3}))
    assert drafted == serve(jobs, 1, size)[0]
    assert [record.message for record in caplog.records] == [
        "the draft model failed and is not used any more: the draft's pass failed"
    ]


STEP_S, TARGET_S = 0.01, 0.1
ROWS_S = STEP_S / 32


@pytest.mark.parametrize(("root", "start"), [("mine", 39), ("another's", 0)])
def test_what_was_read_is_kept_for_the_same_tenant_alone(root: str, start: int) -> None:
    drafter = FakeDrafter(lambda _: 7)
    speculator = Speculator(Draft(drafter, DraftPay(TARGET_S, 1), lambda: 0.0))
    for number, name in enumerate(("mine", root)):
        drafter.starts.clear()
        sequence = Sequence(number, list(range(100, 140)), Sampling(), 10_000, frozenset(), root=name)
        speculator.observe(0, 0, STEP_S)
        while not speculator.guess_for(sequence, 100):
            pass
    assert drafter.starts[0] == start


@dataclass(slots=True)
class World:
    """A model that says a long cycle, and its draft, by a clock of their own."""

    accuracy: float = 1.0
    token_s: float = STEP_S / 8  # of the draft
    read_s: float = STEP_S / 32  # of the draft, for each of many tokens
    now_s: float = 0.0
    num_reads: int = 0
    steps_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # of the last answer, its prompt too
    changes: dict[int, float] = field(default_factory=dict)  # of the accuracy, at steps
    drafter: FakeDrafter = field(init=False)
    speculator: Speculator = field(init=False)

    def __post_init__(self) -> None:
        pay = DraftPay(TARGET_S, MOST_GUESSES)
        self.drafter = TimedDrafter(self._says, world=self)
        self.speculator = Speculator(Draft(self.drafter, pay, lambda: self.now_s))

    def spend(self, num_tokens: int) -> None:
        self.num_reads += 1
        self.now_s += self.token_s if num_tokens <= 2 else max(self.token_s, num_tokens * self.read_s)

    def _says(self, tokens: list[int]) -> int:
        is_right = zlib.crc32(repr(tokens[-3:]).encode()) % 1000 < 1000 * self.accuracy
        return following(tokens[-1]) if is_right else -7

    def answer(self, num_prompt: int, num_tokens: int, first: int, index: int = 0) -> float:
        """Return the answer's time, as a multiple of what it takes without guesses."""
        prompt = [first + 1_000_000 * place for place in range(num_prompt)]
        sequence = Sequence(index, prompt, Sampling(), num_tokens, frozenset())
        started = self.now_s
        while sequence.num_generated < num_tokens:
            before = self.now_s
            self.accuracy = self.changes.get(len(self.steps_s), self.accuracy)
            guesses = self.speculator.guess_for(sequence, 1000)
            self.now_s += STEP_S + ROWS_S * len(guesses)
            num_right = 0
            for guess in [*guesses, None]:
                sequence.tokens.append(following(sequence.tokens[-1]))
                if guess != sequence.tokens[-1]:
                    break
                num_right += 1
            self.steps_s.append(self.now_s - before)
            self.speculator.observe(len(guesses), num_right, self.now_s - before)
        self.speculator.forget(sequence)
        self.tokens = sequence.tokens
        return (self.now_s - started) / (num_tokens * STEP_S)


@dataclass(slots=True)
class TimedDrafter(FakeDrafter):
    """Takes its time by the clock of a world."""

    world: World | None = None

    def read(self, start: int, tokens: Tokens[int]) -> int:
        assert self.world is not None
        self.world.spend(len(tokens))
        return FakeDrafter.read(self, start, tokens)


def following(token: int) -> int:
    return (token * 48271 + 11) % (2**31 - 1)


@pytest.mark.parametrize(("accuracy", "gain"), [(0.6, 1.2), (0.8, 1.6), (0.95, 2.5)])
def test_a_draft_that_is_often_right_pays(accuracy: float, gain: float) -> None:
    assert World(accuracy).answer(128, 600, first=1) < 1 / gain


@pytest.mark.parametrize("token_s", [STEP_S / 8, STEP_S / 2, STEP_S])
def test_a_draft_that_is_never_right_costs_next_to_nothing(token_s: float) -> None:
    world = World(0.0, token_s)
    costs = [world.answer(128, 384, first, first) for first in range(1, 7)]
    assert sum(costs) / len(costs) < 1.03
    assert max(costs[1:]) < 1.03


def test_a_draft_as_slow_as_the_model_is_left_alone() -> None:
    world = World(1.0, token_s=2 * STEP_S)
    world.answer(16, 100, 1)
    assert world.answer(16, 600, 2, 1) < 1.03


def test_a_first_step_that_was_slow_does_not_make_guesses_look_cheap() -> None:
    world = World(1.0, token_s=2 * STEP_S)
    world.speculator.observe(0, 0, 20 * STEP_S)
    world.answer(16, 200, 1)
    assert world.answer(16, 600, 2, 1) < 1.03


def test_a_draft_that_was_wrong_is_tried_again_now_and_then() -> None:
    world = World(0.0)
    world.answer(64, 400, 1)
    num_reads = world.num_reads
    world.accuracy = 0.9
    world.answer(64, 3000, 2, 1)
    assert world.num_reads > num_reads
    assert world.answer(64, 600, 3, 2) < 0.6


def test_a_draft_that_is_right_again_reads_the_answer_from_its_beginning() -> None:
    """A trial is of the latest tokens alone."""
    world = World(0.9, changes={50: 0.0, 300: 0.95})
    world.answer(64, 6000, 1)
    assert world.drafter.cells[:5000] == world.tokens[:5000]
    assert len(world.steps_s) < 4000


def test_a_long_prompt_is_read_in_chunks_that_keep_the_gap_between_tokens() -> None:
    world = World(0.9)
    world.answer(64, 100, 1)
    world.steps_s.clear()
    assert world.answer(4000, 3000, 2, 1) < 0.7
    assert max(world.steps_s) <= TARGET_S * 1.01
    assert sum(seconds > TARGET_S / 2 for seconds in world.steps_s) > 5


def test_a_long_prompt_is_not_read_for_a_short_answer() -> None:
    world = World(0.9)
    world.answer(64, 200, 1)
    num_reads = world.num_reads
    assert world.answer(4000, 20, 2, 1) == pytest.approx(1.0)
    assert world.num_reads == num_reads


def test_a_guess_that_the_answer_ends_is_wrong_when_it_goes_on() -> None:
    drafter = FakeDrafter(lambda _: END, num_left=1000)
    clock = lambda: (1000 - drafter.num_left) * STEP_S / 8  # noqa: E731
    speculator = Speculator(Draft(drafter, DraftPay(TARGET_S, 3), clock))
    sequence = Sequence(0, [1, 2, 3], Sampling(), 10_000, frozenset({END}))
    speculator.observe(0, 0, STEP_S)
    for token in range(100, 300):
        started = clock()
        assert speculator.guess_for(sequence, 100) == []
        sequence.tokens.append(token)
        speculator.observe(0, 0, STEP_S + clock() - started)
    assert 3 < 1000 - drafter.num_left < 40


@given(st.integers(0, 30), st.integers(1, 20), st.integers(1, MOST_GUESSES), st.integers(1, 30))
def test_guesses_keep_within_every_room(room: int, left: int, most: int, context: int) -> None:
    draft = Draft(FakeDrafter(following_of_last, context=context), DraftPay(TARGET_S, most), lambda: 0.0)
    speculator = Speculator(draft)
    speculator.observe(0, 0, STEP_S)
    sequence = Sequence(0, list(range(1000, 1010)), Sampling(), left, frozenset())
    guesses = speculator.guess_for(sequence, room)
    assert len(guesses) <= max(0, min(room, left - 1, most, context - 10))


def following_of_last(tokens: list[int]) -> int:
    return following(tokens[-1])
