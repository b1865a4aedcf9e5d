"""Log-probabilities of prompts: each token once, from the right row, whatever else is served."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Rows

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.errors import InvalidRequest
from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeRunner
from ocak.engine.outputs import Sampled, Scored
from ocak.engine.runner import MOST_SCORED, Aborted, Chunk, Logprobs, NoRoom
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence
from ocak.worker.prompt_logprobs import PromptReport, check_size

CONTEXT = 128


def sequence(index: int, prompt: list[int], count: int | None, **more: object) -> Sequence:
    return Sequence(  # type: ignore[arg-type]
        index, list(prompt), Sampling(seed=0), 4, frozenset(), num_prompt_logprobs=count, root="", **more
    )


def expected(prompt: list[int], count: int) -> list[Logprobs]:
    likeliest = tuple((other, -float(other)) for other in range(count))
    return [
        Logprobs(-float(zlib.crc32(repr((prompt[:end], prompt[end])).encode())), likeliest, prompt[end])
        for end in range(1, len(prompt))
    ]


def serve(engine: Engine, sequences: list[Sequence]) -> dict[int, list[Logprobs]]:
    """Serve all at once; return what was told of each prompt, all of it before the first token."""
    told: dict[int, list[Logprobs]] = {one.id: [] for one in sequences}
    answering: set[int] = set()
    for one in sequences:
        engine.submit(one)
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, Scored):
                assert output.sequence.id not in answering
                told[output.sequence.id] += output.logprobs
            elif isinstance(output, Sampled):
                answering.add(output.sequence.id)
        engine.check_integrity()
    return told


prompts = st.lists(
    st.tuples(
        st.integers(1, 100).flatmap(lambda length: st.just([(i * 3) % 90 + 1 for i in range(length)])),
        st.one_of(st.none(), st.integers(0, 2)),
        st.sampled_from(["", "", "a"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(prompts, st.integers(1, 4), st.integers(4, 80), st.booleans(), st.booleans())
def test_every_token_of_a_prompt_is_told_once_and_right_among_all_others(
    jobs: list[tuple[list[int], int | None, str]], parallel: int, budget: int, is_shared: bool, keeps: bool
) -> None:
    limits = SchedulerLimits(
        parallel=parallel,
        context=CONTEXT,
        num_cells=CONTEXT + 40 if is_shared else CONTEXT * parallel,
        batch_tokens=max(budget, parallel),
        num_slots=2 * parallel if is_shared else parallel,
        shares_cells=is_shared,
        keeps_prefixes=keeps,
    )
    sequences = [sequence(i, prompt, count, adapter=adapter) for i, (prompt, count, adapter) in enumerate(jobs)]
    told = serve(Engine(FakeRunner(num_cells=limits.num_cells, shares_cells=is_shared), limits), sequences)
    for index, (prompt, count, _) in enumerate(jobs):
        assert told[index] == ([] if count is None else expected(prompt, count))


def test_a_prefix_that_is_there_already_is_computed_again_for_those_who_ask() -> None:
    engine = Engine(FakeRunner(), SchedulerLimits(1, CONTEXT, CONTEXT, keeps_prefixes=True))
    prompt = list(range(1, 61))
    plain, scored, after = sequence(0, prompt, None), sequence(1, prompt, 0), sequence(2, prompt, None)
    for one in (plain, scored, after):
        told = serve(engine, [one])
    assert (plain.num_cached, scored.num_cached, after.num_cached) == (0, 0, 59)
    assert not told[2]


def test_a_scored_prompt_goes_no_faster_than_its_rows_and_holds_nobody_up() -> None:
    runner = FakeRunner()
    engine = Engine(runner, SchedulerLimits(4, CONTEXT, 4 * CONTEXT, batch_tokens=512))
    serve(engine, [sequence(0, list(range(1, 101)), 1), sequence(1, [5] * 30, None)])
    first = runner.batches[0]
    assert [len(chunk.tokens) for chunk in first] == [MOST_SCORED, 30]
    assert [len(chunk.scored) for chunk in first] == [MOST_SCORED, 0]


def test_a_batch_that_is_cut_short_tells_nothing_and_is_told_later() -> None:
    runner = FakeRunner()
    runner.failures = [Aborted("cut short")]
    prompt = list(range(1, 81))
    told = serve(Engine(runner, SchedulerLimits(1, CONTEXT, CONTEXT)), [sequence(0, prompt, 0)])
    assert told[0] == expected(prompt, 0)


def test_who_is_preempted_half_told_is_told_the_rest_alone() -> None:
    class Crowded(FakeRunner):
        def run(self, chunks: Rows[Chunk]) -> list[int]:
            if 0 < jobs[1].num_scored < 99 and not engine.stats().preemptions:
                raise NoRoom("full")
            return super().run(chunks)

    jobs = [sequence(i, [(i + 1) * 7 % 90 + j % 5 for j in range(100)], 1) for i in range(2)]
    runner = Crowded()
    engine = Engine(runner, SchedulerLimits(2, CONTEXT, 2 * CONTEXT, batch_tokens=40))
    jobs[0].num_prompt_logprobs = None  # quicker
    told = serve(engine, jobs)
    assert engine.stats().preemptions == 1
    assert told[1] == expected(jobs[1].tokens[:100], 1)


PIECES = {1: b"h", 2: "é".encode()[:1], 3: "é".encode()[1:], 4: b"", 5: b"\xff"}


def report(tokens: list[int]) -> PromptReport:
    return PromptReport(PIECES.__getitem__, lambda token: f"<{token}>", tokens)


def test_tokens_start_where_their_characters_do_in_the_text_of_an_echo() -> None:
    told = report([4, 1, 2, 3, 5, 1])
    tokens = [
        *told.tell(()),
        *told.tell([Logprobs(-1.0, ((4, -0.5),), 2)] * 3),
        *told.tell([Logprobs(-2.0, (), 3)] * 2),
    ]
    assert told.is_complete
    assert [token.start for token in tokens] == [0, 3, 4, 4, 5, 6]
    assert [token.rank for token in tokens] == [0, 2, 2, 2, 3, 3]
    assert tokens[0].token.name == "<4>" and tokens[1].likeliest[0][1].name == "<4>"


def test_a_prompt_of_one_token_is_told_at_once() -> None:
    told = report([1])
    assert len(told.tell(())) == 1 and told.is_complete


def test_more_than_an_answer_should_carry_is_refused_with_the_way_out() -> None:
    check_size(2000, 20)
    with pytest.raises(InvalidRequest, match=r"2100000 log-probabilities; at most 131072"):
        check_size(100_000, 20)
