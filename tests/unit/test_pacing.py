"""How large a prompt chunk may be."""

from hypothesis import given
from hypothesis import strategies as st

from ocak.engine.pacing import FLOOR, Pacer


def settle(token_s: float, decode_s: float, target_s: float = 0.2, ceiling: int = 512) -> int:
    """Feed the pacer a machine of a given speed until it has settled."""
    pacer = Pacer(target_s, ceiling)
    for _ in range(50):
        pacer.observe(0, decode_s)
        pacer.observe(pacer.prefill_tokens, token_s * pacer.prefill_tokens)
    return pacer.prefill_tokens


@given(st.floats(1e-5, 0.1), st.floats(0, 0.05))
def test_a_step_lasts_no_longer_than_the_target_unless_the_floor_is_longer(
    token_s: float, decode_s: float
) -> None:
    chunk = settle(token_s, decode_s)
    assert FLOOR <= chunk <= 512
    assert chunk == FLOOR or decode_s + chunk * token_s <= 0.2 * 1.1


def test_a_fast_machine_gets_whole_batches() -> None:
    assert settle(token_s=1e-5, decode_s=0.001) == 512


def test_a_slow_machine_gets_the_floor() -> None:
    assert settle(token_s=0.5, decode_s=0.1) == FLOOR


def test_one_slow_step_does_not_starve_the_next_ones() -> None:
    pacer = Pacer(0.2, 512)
    for _ in range(20):
        pacer.observe(128, 0.13)
    before = pacer.prefill_tokens
    pacer.observe(128, 1.3)
    for _ in range(10):
        pacer.observe(pacer.prefill_tokens, pacer.prefill_tokens * 0.001)
    assert pacer.prefill_tokens > before * 0.8


def test_a_chunk_leaves_time_for_the_steps_of_every_adapter_that_decodes() -> None:
    pacer = Pacer(0.2, 4096)
    for _ in range(50):
        pacer.observe(0, 0.03)
        pacer.observe(128, 0.128)
    among = [pacer.prefill_tokens_among(groups) for groups in range(1, 9)]
    assert among[0] == pacer.prefill_tokens
    assert among == sorted(among, reverse=True)
    assert all(n == FLOOR or groups * 0.03 + n * 0.001 <= 0.2 for groups, n in enumerate(among, start=1))


def test_a_prompt_that_is_alone_goes_in_tall_chunks_of_whole_tiles_up_to_a_second() -> None:
    pacer = Pacer(0.2, 512)
    for token_s, expected in ((1e-4, 512), (0.0015, 512), (0.004, 192), (0.1, 64)):
        for _ in range(60):
            pacer.observe(128, 128 * token_s)
        assert pacer.prefill_tokens_alone == expected
