"""Everything at once: adapters, scored prompts, kept prefixes, those who leave, passes that fail."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.engine import Engine
from ocak.engine.fake_runner import FakeRunner
from ocak.engine.outputs import Broken, Scored
from ocak.engine.runner import Aborted, Chunk, Logprobs, NoRoom
from ocak.engine.scheduler import SchedulerLimits
from ocak.engine.sequence import Sequence

CONTEXT = 128
MAX_STEPS = 5000


@dataclass(frozen=True)
class Job:
    family: int  # who begins alike
    length: int
    adapter: str
    num_logprobs: int | None
    request: str  # answers of one share their prompt, whatever is kept
    arrives_at: int
    leaves_after: int | None

    def sequence(self, index: int) -> Sequence:
        tokens = [(self.family * 40 + i) % 90 + 1 for i in range(self.length)]
        return Sequence(
            index,
            tokens,
            Sampling(seed=0),
            6,
            frozenset({13}),
            adapter=self.adapter,
            root=self.adapter,
            family=self.request,
            num_prompt_logprobs=self.num_logprobs,
        )


@dataclass(slots=True)
class Unreliable(FakeRunner):
    """Some runs are cut short, or find no room."""

    troubles: list[str | None] = field(default_factory=list)

    def run(self, chunks: Rows[Chunk]) -> list[int]:
        trouble = self.troubles.pop() if self.troubles else None
        if trouble == "cut":
            raise Aborted("cut short")
        if trouble == "full" and len(chunks) > 1:
            raise NoRoom("full")
        return FakeRunner.run(self, chunks)


def serve(
    jobs: list[Job], limits: SchedulerLimits, troubles: list[str | None]
) -> tuple[list[list[int]], list[list[Logprobs]]]:
    """Return what followed each prompt, and what was told of it."""
    runner = Unreliable(
        num_cells=limits.num_cells,
        shares_cells=limits.shares_cells,
        takes_parts=limits.reuse == "parts",
        troubles=list(troubles),
    )
    engine = Engine(runner, limits)
    sequences = [job.sequence(index) for index, job in enumerate(jobs)]
    told: list[list[Logprobs]] = [[] for _ in jobs]
    left = set(range(len(jobs)))
    for step in range(MAX_STEPS):
        for index in sorted(left):
            if jobs[index].arrives_at <= step:
                left.remove(index)
                engine.submit(sequences[index])
        for index, job in enumerate(jobs):
            if index not in left and job.leaves_after is not None and step >= job.arrives_at + job.leaves_after:
                engine.finish(sequences[index])
        if not engine.has_work:
            if not left:
                break
            continue
        for output in engine.step():
            assert not isinstance(output, Broken)
            if isinstance(output, Scored):
                told[output.sequence.id] += output.logprobs
        engine.check_integrity()
    assert not engine.has_work and not left, "somebody waits for ever"
    return [one.tokens[one.num_prompt :] for one in sequences], told


jobs = st.lists(
    st.builds(
        Job,
        family=st.integers(0, 1),
        length=st.integers(1, 100),
        adapter=st.sampled_from(["", "", "a", "b"]),
        num_logprobs=st.sampled_from([None, None, 0, 2]),
        request=st.sampled_from(["", "", "f", "g"]),
        arrives_at=st.integers(0, 20),
        leaves_after=st.sampled_from([None, None, None, 0, 3, 9]),
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=200)
@given(
    jobs,
    st.integers(1, 4),
    st.integers(4, 80),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.lists(st.sampled_from([None, None, None, "cut", "full"]), max_size=30),
)
def test_each_gets_what_it_would_alone_or_the_beginning_of_it(
    wanted: list[Job], parallel: int, budget: int, kind: tuple[bool, bool, bool], troubles: list[str | None]
) -> None:
    is_shared, keeps, has_states = kind
    limits = SchedulerLimits(
        parallel=parallel,
        context=CONTEXT,
        num_cells=CONTEXT + 30 if is_shared else CONTEXT * parallel,
        batch_tokens=max(budget, parallel),
        num_slots=2 * parallel if is_shared else parallel,
        shares_cells=is_shared,
        reuse="wholes" if has_states else "parts",
        keeps_prefixes=keeps,
        host_tokens=150,
    )
    answers, told = serve(wanted, limits, troubles)
    for index, job in enumerate(wanted):
        alone = Engine(FakeRunner(), SchedulerLimits(1, CONTEXT, CONTEXT))
        one = job.sequence(index)
        alone.submit(one)
        scored: list[Logprobs] = []
        while alone.has_work:
            scored += [lp for output in alone.step() if isinstance(output, Scored) for lp in output.logprobs]
        full = one.tokens[one.num_prompt :]
        stays = job.leaves_after is None
        assert answers[index] == (full if stays else full[: len(answers[index])])
        assert told[index] == (scored if stays else scored[: len(told[index])])
