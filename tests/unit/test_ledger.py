"""Who holds how many bytes, and what is said to who gets none."""

from hypothesis import given
from hypothesis import strategies as st

from ocak.fleet.refusal import refusal
from ocak.memory.ledger import Ledger
from ocak.memory.needs import Needs, largest_that_fit

GIB = 2**30
sizes = st.dictionaries(st.sampled_from(("cpu", "CUDA0")), st.integers(0, 70))
events = st.lists(st.tuples(st.sampled_from("abc"), sizes, sizes, st.booleans()), max_size=30)


def needs(parallel: int = 4, kv_bytes: int = GIB) -> Needs:
    return Needs(
        context=4096,
        parallel=parallel,
        kv_cells=4096 * parallel,
        trained_context=32768,
        weights_bytes=2 * GIB,
        kv_bytes=kv_bytes,
        compute_bytes=GIB // 4,
        work_bytes=0,
        touched_bytes=GIB // 4,
        vocabulary_bytes=GIB // 8,
        process_bytes=GIB // 8,
    )


@given(events)
def test_what_is_reserved_never_exceeds_the_limits_nor_what_others_leave(
    events: list[tuple[str, dict[str, int], dict[str, int], bool]],
) -> None:
    ledger, held = Ledger({"cpu": 100, "CUDA0": 60}), {}
    for key, needed, left, is_end in events:
        if is_end:
            ledger.release(key)
            held.pop(key, None)
            continue
        rest = {device: sum(h.get(device, 0) for k, h in held.items() if k != key) for device in ("cpu", "CUDA0")}
        free = {d: min(limit, left.get(d, limit)) - rest[d] for d, limit in (("cpu", 100), ("CUDA0", 60))}
        missing = ledger.missing(key, needed, left)
        assert missing == {d: size - free[d] for d, size in needed.items() if size > free[d]}
        if not missing:
            ledger.reserve(key, needed, left)
            held[key] = needed
        assert all(ledger.held(k) == h for k, h in held.items())
        assert ledger.total.get("cpu", 0) <= 100 and ledger.total.get("CUDA0", 0) <= 60


@given(st.integers(0, 6 * GIB), st.integers(1, 64))
def test_the_settings_that_are_offered_fit(budget: int, parallel: int) -> None:
    asked = needs(parallel)
    context, most = largest_that_fit(asked, budget)
    fixed = asked.total_bytes - asked.kv_bytes
    assert context % 256 == 0 and context <= asked.context and most <= asked.parallel
    if context:
        assert fixed + asked.kv_bytes * context / asked.context <= budget
    if most:
        assert fixed + asked.kv_bytes * most / parallel <= budget


def test_a_refusal_tells_the_shortfall_who_holds_the_rest_and_the_way_out() -> None:
    text = refusal(needs(), free=3 * GIB, limit=8 * GIB, holders={"chat": 4 * GIB})
    assert text == (
        "it needs 3.5 GiB (weights 2.0 GiB, KV cache 1.0 GiB, the rest 512 MiB), and 3.0 GiB of 8.0 GiB "
        "can be had, other models hold chat 4.0 GiB, other programs leave 7.0 GiB; "
        "--context 2048 or --parallel 2 would fit"
    )
    hopeless = refusal(needs(), free=GIB, limit=8 * GIB, holders={})
    assert hopeless.endswith("take a smaller model, --kv-type or --cache-ram")
