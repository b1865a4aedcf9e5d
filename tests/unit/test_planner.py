"""What fits: verdicts, the largest settings, sizes as people write them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocak.cli.sizes import parse_size
from ocak.core.errors import ConfigError
from ocak.memory.needs import Needs, Verdict, verdict
from ocak.memory.planner import GRAIN, MOST_SEQUENCES, make_plan

GB = 10**9
TRAINED = 32 * GRAIN


def needs(context: int, parallel: int, base: int = 28 * GB // 10, token: int = 16 * GB // 81920) -> Needs:
    """A model of 2.8 GB whose sequences take 1.6 GB for 8,192 tokens."""
    return Needs(
        context=context,
        parallel=parallel,
        kv_cells=context * parallel,
        trained_context=TRAINED,
        weights_bytes=base,
        kv_bytes=context * parallel * token,
        compute_bytes=0,
        work_bytes=0,
        touched_bytes=0,
        vocabulary_bytes=0,
        process_bytes=0,
    )


@pytest.mark.parametrize(
    ("context", "parallel", "total", "expected"),
    [
        (8192, 2, 6.0, Verdict.RISKY),
        (8192, 1, 4.4, Verdict.SAFE),
        (4096, 3, 5.2, Verdict.SAFE),
        (4096, 2, 4.4, Verdict.VERY_SAFE),
        (8192, 3, 7.6, Verdict.DOES_NOT_FIT),
    ],
)
def test_the_worked_table_of_a_4b_model_on_6_gb(
    context: int, parallel: int, total: float, expected: Verdict
) -> None:
    one = needs(context, parallel)
    assert one.total_bytes == pytest.approx(total * GB, rel=0.001)
    assert verdict(one, 6 * GB) is expected


def test_a_budget_must_hold_what_is_reserved_though_less_is_resident() -> None:
    one = msgspec.structs.replace(needs(4096, 1), compute_bytes=2 * GB, work_bytes=GB, touched_bytes=GB // 10)
    assert one.total_bytes - one.resident_bytes == 29 * GB // 10
    assert verdict(one, one.resident_bytes) is Verdict.DOES_NOT_FIT
    assert verdict(one, one.total_bytes) is Verdict.RISKY


@given(
    st.integers(1, 100),
    st.integers(1, 64),
    st.integers(1, 10**6),
    st.integers(1, 10**4),
    st.integers(1, 10**9),
)
def test_the_largest_settings_fit_and_the_next_ones_do_not(
    grains: int, parallel: int, base: int, token: int, budget: int
) -> None:
    num_measured = 0

    def measure(context: int, sequences: int) -> Needs:
        nonlocal num_measured
        num_measured += 1
        return needs(context, sequences, base, token)

    asked = needs(min(grains * GRAIN, TRAINED), parallel, base, token)
    plan = make_plan(measure, asked, budget)
    assert num_measured < 60
    assert plan.fits == (asked.total_bytes <= budget) == (plan.asked.verdict is not Verdict.DOES_NOT_FIT)
    assert plan.asked in plan.rows
    longest, most = plan.largest_context, plan.most_sequences
    if longest is None:
        assert measure(GRAIN, parallel).total_bytes > budget
    else:
        assert longest.total_bytes <= budget
        is_last = longest.context == TRAINED
        assert is_last or measure(longest.context + GRAIN, parallel).total_bytes > budget
    if most is None:
        assert measure(asked.context, 1).total_bytes > budget
    else:
        assert most.total_bytes <= budget
        is_last = most.parallel == MOST_SEQUENCES
        assert is_last or measure(asked.context, most.parallel + 1).total_bytes > budget
    for row in plan.rows:
        further = needs(row.needs.context, row.needs.parallel + 1, base, token).total_bytes <= budget
        assert (row.verdict in (Verdict.SAFE, Verdict.VERY_SAFE)) == further


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6GB", 6 * GB), ("6 GB", 6 * GB), ("1.5g", 3 * GB // 2), ("512MiB", 512 * 2**20), ("1000", 1000)],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size("memory", text) == expected


@pytest.mark.parametrize("text", ["", "lots", "-1GB", "6XB", "1e9"])
def test_a_size_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="--memory"):
        parse_size("memory", text)
