"""How large a prompt chunk may be."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from ocak.engine.pacing import DEEP_FLOOR, DEPTH, FLOOR, GAIN, SLACK, Pacer
from ocak.engine.padding import TALL, TILE, full


@dataclass(frozen=True, slots=True)
class Machine:
    """What a row of a chunk costs: by itself, and at `DEPTH` in addition, in tall and in short ones."""

    row_s: float
    tall_s: float = 0.0
    short_s: float = 0.0

    def seconds(self, rows: int, depth: int) -> float:
        rows = full(rows, depth)
        return rows * (self.row_s + depth / DEPTH * (self.tall_s if rows >= TALL else self.short_s))


def settle(machine: Machine, decode_s: float, depths: tuple[int, ...] = (0,), num_rounds: int = 60) -> Pacer:
    """A pacer that has seen a machine of a given speed for a while."""
    pacer = Pacer(0.2, 512)
    for _ in range(num_rounds):
        for depth in depths:
            pacer.observe_decode(decode_s)
            rows = pacer.prefill_tokens(depth)
            pacer.observe_prefill([(full(rows, depth), depth)], machine.seconds(rows, depth))
    return pacer


@given(st.floats(1e-5, 0.1), st.floats(0, 0.05))
def test_a_step_lasts_no_longer_than_the_target_unless_the_floor_is_longer(
    token_s: float, decode_s: float
) -> None:
    chunk = settle(Machine(token_s), decode_s).prefill_tokens(0)
    assert FLOOR <= chunk <= 512
    assert chunk == FLOOR or decode_s + chunk * token_s <= 0.2 * 1.1


def test_a_fast_machine_gets_whole_batches() -> None:
    assert settle(Machine(1e-5), 0.001).prefill_tokens(0) == 512


def test_a_slow_machine_gets_the_floor() -> None:
    assert settle(Machine(0.5), 0.1).prefill_tokens(0) == FLOOR


def test_behind_many_tokens_short_chunks_become_shorter_still() -> None:
    machine = Machine(0.0015, 0.0015, 0.0015)
    pacer = settle(machine, 0.05, (0, 4000, 8000))
    assert DEEP_FLOOR <= pacer.prefill_tokens(8000) < FLOOR <= pacer.prefill_tokens(0)
    assert settle(Machine(0.02), 0.05, (0, 4000, 8000)).prefill_tokens(8000) == FLOOR  # slow for other reasons


def test_a_machine_that_changes_its_speed_is_followed_within_three_chunks() -> None:
    """Attention has two speeds on some machines, and goes from one to the other in a moment."""
    quick, slow = Machine(0.0015, 0.0008, 0.0008), Machine(0.0015, 0.0016, 0.0016)
    for before, after in ((quick, slow), (slow, quick)):
        pacer, depth = settle(before, 0.05, (2000, 4000)), 4000
        for _ in range(3):
            rows = pacer.prefill_tokens(depth)
            pacer.observe_prefill([(rows, depth)], after.seconds(rows, depth))
        taken_s = 0.05 + after.seconds(pacer.prefill_tokens(depth), depth)
        assert 0.13 <= taken_s <= 0.24


def test_one_slow_step_does_not_starve_the_next_ones() -> None:
    machine = Machine(0.001)
    pacer = settle(machine, 0.0)
    before = pacer.prefill_tokens(0)
    pacer.observe_prefill([(128, 0)], 1.3)
    assert pacer.prefill_tokens(0) > before * 0.6


@given(st.floats(5e-4, 0.002), st.floats(5e-4, 0.002), st.floats(0, 0.05))
def test_a_prompt_that_grows_deep_beside_answers_keeps_to_the_target(
    row_s: float, deep_s: float, decode_s: float
) -> None:
    """With plain attention, where tall chunks are no quicker; 8,000 tokens in one go."""
    machine, pacer, depth = Machine(row_s, deep_s, deep_s), Pacer(0.2, 512), 0
    late = []
    while depth < 8000:
        pacer.observe_decode(decode_s)
        rows = pacer.prefill_tokens(depth)
        rows -= rows % (FLOOR if rows >= FLOOR else TILE)
        seconds = machine.seconds(rows, depth)
        pacer.observe_prefill([(full(rows, depth), depth)], seconds)
        late.append(rows > DEEP_FLOOR and decode_s + seconds > 0.2 * (1 + SLACK))
        depth += rows
    learnt = late[len(late) // 10 :]
    assert sum(learnt) <= 0.01 * len(learnt)


machines = st.builds(Machine, st.floats(5e-4, 0.002), st.floats(0, 0.002), st.floats(0.002, 0.006))


@given(machines, st.floats(0, 0.06))
def test_prompts_of_all_depths_at_once_get_chunks_that_end_in_time(machine: Machine, decode_s: float) -> None:
    """What is learnt of deep prompts neither starves new ones nor has them overrun the target."""
    depths = (0, 3000, 256, 1500, 700)
    pacer = settle(machine, decode_s, depths)
    for depth in depths:
        rows = pacer.prefill_tokens(depth)
        assert rows == DEEP_FLOOR or decode_s + machine.seconds(rows, depth) <= 0.2 * (1 + SLACK) * 1.1
        affordable = (0.2 - decode_s) / machine.seconds(TALL, depth) * TALL
        if affordable > TALL * 1.15:
            assert rows >= min(512, affordable * 0.8)


def test_the_shortest_tall_chunk_may_miss_the_target_a_little_if_short_ones_take_far_longer() -> None:
    for short_s, is_tall in ((0.004, True), (0.001 * GAIN, False)):
        machine = Machine(0.001, 0.001, short_s)
        pacer = Pacer(0.2, 512)
        for _ in range(60):
            pacer.observe_decode(0.1)
            for rows, depth in ((TALL, DEPTH), (32, DEPTH), (TALL, 0)):
                pacer.observe_prefill([(rows, depth)], machine.seconds(rows, depth))
        rows = pacer.prefill_tokens(DEPTH)
        assert (rows == TALL) == is_tall
        assert 0.1 + machine.seconds(TALL, DEPTH) <= 0.2 * (1 + SLACK)


def test_with_a_quick_kernel_for_tall_chunks_short_ones_need_not_be_tried_first() -> None:
    """All that is known is tall, and just too dear; at little depth short chunks cost no more."""
    machine = Machine(0.001, 0.001)
    for fills_tall, rows_at_depth in ((True, TALL), (False, 47)):
        pacer = Pacer(0.2, 512, fills_tall=fills_tall)
        for _ in range(60):
            pacer.observe_decode(0.1)
            for depth in (0, DEPTH):
                pacer.observe_prefill([(TALL, depth)], machine.seconds(TALL, depth))
        assert pacer.prefill_tokens(DEPTH) == rows_at_depth
        assert pacer.prefill_tokens(0) > TALL


def test_prompts_that_share_a_chunk_are_as_tall_as_the_shortest_of_them() -> None:
    machine = Machine(0.001, 0.0005, 0.004)
    pacer = Pacer(0.2, 512)
    for _ in range(60):
        pacer.observe_decode(0.05)
        pacer.observe_prefill([(TALL, DEPTH)], machine.seconds(TALL, DEPTH))
        pacer.observe_prefill([(32, DEPTH), (32, DEPTH)], 2 * machine.seconds(32, DEPTH))
        pacer.observe_prefill([(TALL, 0)], machine.seconds(TALL, 0))
    assert 90 <= pacer.prefill_tokens(DEPTH) <= 110


def test_a_chunk_leaves_time_for_the_steps_of_every_adapter_that_decodes() -> None:
    pacer = Pacer(0.2, 4096)
    for _ in range(50):
        pacer.observe_decode(0.03)
        pacer.observe_prefill([(128, 0)], 0.128)
    among = [pacer.prefill_tokens(0, groups) for groups in range(1, 9)]
    assert among == sorted(among, reverse=True)
    assert all(n == FLOOR or groups * 0.03 + n * 0.001 <= 0.2 for groups, n in enumerate(among, start=1))


def test_a_prompt_that_is_alone_goes_in_tall_chunks_of_whole_tiles_up_to_a_second() -> None:
    for token_s, expected in ((1e-4, 512), (0.0015, 512), (0.004, 192), (0.1, 64)):
        pacer = settle(Machine(token_s), 0.0)
        assert abs(pacer.prefill_tokens_alone(0) - expected) <= TALL
        assert pacer.prefill_tokens_alone(0) % TALL == 0
