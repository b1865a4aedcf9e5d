"""Which prompts get how much of a step."""

from hypothesis import given
from hypothesis import strategies as st

from ocak.core.request import Sampling
from ocak.engine.chunks import STRETCH, Chunks
from ocak.engine.padding import TALL
from ocak.engine.sequence import Sequence

BATCH_TOKENS = 512


def prompts(*lengths: int) -> dict[int, Sequence]:
    """Prompts by their slots, in the order of their turns."""
    by_slot = {}
    for slot, length in enumerate(lengths):
        sequence = Sequence(slot, [7] * length, Sampling(), 8, frozenset())
        sequence.slot, sequence.prefill_turn = slot, slot
        by_slot[slot] = sequence
    return by_slot


def new_chunks() -> Chunks:
    return Chunks(BATCH_TOKENS, is_uniform=False)


def counts(rows: list[tuple[Sequence, int]]) -> list[tuple[int, int]]:
    return [(sequence.id, count) for sequence, count in rows]


lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=16)


@given(lengths, st.integers(16, 512))
def test_every_prompt_is_computed_and_no_chunk_is_much_longer_than_is_affordable(
    lengths: list[int], affordable: int
) -> None:
    chunks, left = new_chunks(), prompts(*lengths)
    is_first_served = True
    while left:
        first = min(left)
        rows = chunks.pick(left, lambda _: affordable)
        assert 0 < sum(count for _, count in rows) <= min(BATCH_TOKENS, affordable * STRETCH)
        for sequence, count in rows:
            sequence.num_computed += count
            assert count > 0 and sequence.num_pending >= 0
            if not sequence.num_pending:
                del left[sequence.id]
        was_served, is_first_served = is_first_served, any(sequence.id == first for sequence, _ in rows)
        assert was_served or is_first_served, "the first waited twice in a row"


def test_a_long_prompt_lets_those_pass_that_one_chunk_completes() -> None:
    chunks, waiting = new_chunks(), prompts(1000, 64, 900, 60)
    assert counts(chunks.pick(waiting, lambda _: 140)) == [(1, 64), (3, 60)]
    assert counts(chunks.pick(waiting, lambda _: 140)) == [(0, 128)]
    assert counts(chunks.pick(waiting, lambda _: 140)) == [(1, 64), (3, 60)]


def test_a_part_beside_other_prompts_is_tall_or_not_taken() -> None:
    """llama.cpp would run what they have in common first, and their rests each by itself."""
    assert counts(new_chunks().pick(prompts(64, 300), lambda _: 100)) == [(0, 64)]
    assert counts(new_chunks().pick(prompts(64, 300), lambda _: 140)) == [(0, 64), (1, TALL)]
    assert counts(new_chunks().pick(prompts(300), lambda _: 100)) == [(0, TALL)]
    assert counts(new_chunks().pick(prompts(300), lambda _: 60)) == [(0, 48)]


def test_how_much_is_affordable_depends_on_what_is_computed_already() -> None:
    waiting = prompts(3000)
    waiting[0].num_computed = 2000
    assert counts(new_chunks().pick(waiting, lambda depth: 400 - depth // 10)) == [(0, 192)]
