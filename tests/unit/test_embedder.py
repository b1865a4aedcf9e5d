"""The embedder on a fake model whose vectors tell every token that was computed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.embedder import EmbeddedOutput, Embedder, EmbedderLimits
from ocak.engine.embedding_runner import FakeEmbeddingRunner, fake_vector
from ocak.engine.outputs import Admitted, Broken
from ocak.engine.runner import Aborted, RunFailed
from ocak.engine.sequence import Sequence

CONTEXT = 40


@dataclass(frozen=True)
class Job:
    length: int
    tenant: str = ""
    arrives_at: int = 0  # step
    leaves_at: int | None = None


jobs = st.lists(
    st.builds(
        Job,
        length=st.integers(1, CONTEXT),
        tenant=st.sampled_from("abc"),
        arrives_at=st.integers(0, 6),
        leaves_at=st.none() | st.integers(0, 12),
    ),
    max_size=20,
)
failures = st.lists(st.sampled_from([None, None, Aborted("asked for"), RunFailed("no")]), max_size=8)
sizes = st.builds(dict, batch_tokens=st.integers(1, 50), slots=st.integers(1, 6), can_split=st.booleans())


def sequence(index: int, length: int, tenant: str = "") -> Sequence:
    tokens = [(index * 31 + place) % 97 for place in range(length)]
    return Sequence(index, tokens, Sampling(), 1, frozenset(), tenant)


def embedder(
    batch_tokens: int = 16, slots: int = 4, *, can_split: bool = False
) -> tuple[Embedder, FakeEmbeddingRunner]:
    runner = FakeEmbeddingRunner(num_cells=max(batch_tokens, CONTEXT), can_split=can_split)
    return Embedder(runner, EmbedderLimits(slots, CONTEXT, batch_tokens, runner.num_cells, can_split)), runner


def vectors(engine: Embedder) -> dict[int, list[float]]:
    """Run until nothing is left; return the vectors by id, in the order they came."""
    found: dict[int, list[float]] = {}
    while engine.has_work:
        for output in engine.step():
            if isinstance(output, EmbeddedOutput):
                found[output.sequence.id] = output.vector.tolist()
        engine.check_integrity()
    return found


@settings(max_examples=400, deadline=None)
@given(jobs, sizes, failures)
def test_everybody_ends_once_with_the_vector_of_its_own_tokens_or_a_reason(
    todo: list[Job], size: dict[str, int], failing: list[RunFailed | None]
) -> None:
    engine, runner = embedder(**size)
    runner.failures = list(failing)
    made = [sequence(i, job.length, job.tenant) for i, job in enumerate(todo)]
    ends: dict[int, list[float]] = {}
    left, broken = set[int](), set[int]()
    for step in range(1000):
        for each, job in zip(made, todo, strict=True):
            if job.arrives_at == step:
                engine.submit(each)
            if job.leaves_at is not None and job.leaves_at == step >= job.arrives_at and not each.is_finished:
                engine.finish(each)
                left.add(each.id)
        if engine.has_work:
            for output in engine.step():
                assert output.sequence.id not in ends.keys() | left | broken
                if isinstance(output, Broken):
                    broken.add(output.sequence.id)
                if isinstance(output, EmbeddedOutput):
                    ends[output.sequence.id] = output.vector.tolist()
        engine.check_integrity()
    assert not engine.has_work and not runner.cells
    assert sorted([*ends, *left, *broken]) == list(range(len(made)))
    assert not broken or any(type(failure) is RunFailed for failure in failing)
    assert all(ends[i] == fake_vector(made[i].tokens).tolist() for i in ends)
    budget = size["batch_tokens"]
    assert all(sum(len(c.tokens) for c in chunks) <= budget or len(chunks) == 1 for chunks in runner.passes)
    assert all(len(chunks) <= size["slots"] for chunks in runner.passes)


def test_short_texts_share_a_pass() -> None:
    engine, runner = embedder(batch_tokens=16)
    for i in range(4):
        engine.submit(sequence(i, 4))
    assert len(vectors(engine)) == 4
    assert [len(chunks) for chunks in runner.passes] == [4]


def test_a_text_beyond_the_budget_is_computed_whole_and_alone_where_it_cannot_be_split() -> None:
    engine, runner = embedder(batch_tokens=16)
    for i, length in enumerate((4, 30, 4)):
        engine.submit(sequence(i, length))
    vectors(engine)
    assert [[len(chunk.tokens) for chunk in chunks] for chunks in runner.passes] == [[4], [30], [4]]


def test_a_long_text_in_parts_lets_short_ones_pass() -> None:
    engine, runner = embedder(batch_tokens=8, can_split=True)
    for i, length in enumerate((40, 2, 3)):
        engine.submit(sequence(i, length))
    assert list(vectors(engine)) == [1, 2, 0]
    assert [sum(len(chunk.tokens) for chunk in chunks) for chunks in runner.passes] == [8, 8, 8, 8, 8, 5]


def test_a_tenant_with_a_long_list_does_not_hold_up_another() -> None:
    engine, _ = embedder(batch_tokens=16, slots=4)
    for i in range(20):
        engine.submit(sequence(i, 4, "many"))
    engine.submit(sequence(20, 4, "one"))
    outputs = engine.step()
    assert 20 in {output.sequence.id for output in outputs}


def test_a_pass_that_fails_ends_those_in_it_and_nobody_else() -> None:
    engine, runner = embedder(batch_tokens=8)
    runner.failures = [RunFailed("no")]
    for i in range(3):
        engine.submit(sequence(i, 4))
    outputs = engine.step()
    assert [type(output) for output in outputs] == [Admitted, Admitted, Broken, Broken]
    assert list(vectors(engine)) == [2]
    assert not runner.cells


def test_a_pass_that_nobody_wants_any_more_is_cut_short_and_holds_nothing() -> None:
    engine, runner = embedder(batch_tokens=8)
    two = [sequence(0, 4), sequence(1, 4)]
    for each in two:
        engine.submit(each)

    def leave() -> None:
        engine.abort(0)
        assert runner.num_aborts == 0, "another still waits for it"
        engine.abort(1)
        assert runner.num_aborts == 1
        runner.failures = [Aborted("asked for")]

    runner.before = leave
    assert [type(output) for output in engine.step()] == [Admitted, Admitted]
    assert not runner.cells
    for each in two:
        engine.finish(each)
    assert not engine.has_work


def test_one_that_was_cut_short_by_mistake_is_computed_again_and_not_admitted_twice() -> None:
    engine, runner = embedder(batch_tokens=8, can_split=True)
    engine.submit(sequence(0, 20))
    engine.step()
    runner.failures = [Aborted("another was meant")]
    assert engine.step() == []
    assert vectors(engine) == {0: fake_vector(sequence(0, 20).tokens).tolist()}


@pytest.mark.parametrize("can_split", [False, True])
def test_ending_a_sequence_twice_does_nothing(can_split: bool) -> None:
    engine, _ = embedder(batch_tokens=8, can_split=can_split)
    each = sequence(0, 20)
    engine.submit(each)
    engine.step()
    engine.finish(each)
    engine.finish(each)
    assert not engine.has_work


def test_the_snapshot_counts_what_waits_and_what_was_computed() -> None:
    engine, _ = embedder(batch_tokens=8)
    for i in range(5):
        engine.submit(sequence(i, 4))
    engine.step()
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.steps, stats.prompt_tokens) == (3, 2, 1, 8)
    vectors(engine)
    assert (engine.stats().waiting, engine.stats().running, engine.stats().prompt_tokens) == (0, 0, 20)
