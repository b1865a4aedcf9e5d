"""Who makes room for another model: against an oracle that tries every set."""

import random
from itertools import combinations

from ocak.core.residence import Priority
from ocak.fleet.eviction import RANK, STAY_S, Order, Resident, expired, victims

NOW = 1000.0
PRIORITIES: tuple[Priority, ...] = ("low", "normal", "high", "pinned")
EVENTS = 100_000


def resident(key: str, size: int = 1, **rest: object) -> Resident:
    return Resident(**({"key": key, "held": {"cpu": size}, "used_at": 0.0, "loaded_at": 0.0} | rest))  # type: ignore[arg-type]


def any_resident(rng: random.Random, key: str) -> Resident:
    held = {device: rng.randrange(4) for device in ("cpu", "CUDA0") if rng.random() < 0.8}
    return Resident(
        key=key,
        held=held,
        used_at=NOW - rng.choice((0, 5, 50, 500)),
        loaded_at=NOW - rng.choice((1, 9, 11, 600)),
        priority=rng.choice(PRIORITIES),
        is_busy=rng.random() < 0.4,
        keep_alive_s=rng.choice((None, 0, 20, 700)),
        load_s=rng.choice((0.1, 1.0, 10.0)),
    )


def oracle(missing: dict[str, int], residents: list[Resident], order: Order) -> set[str] | None:
    """Of all sets that are enough, the one whose dearest member is cheapest, then the next dearest, and so on."""

    def price(one: Resident) -> tuple[object, ...]:
        worth = NOW - one.used_at
        if order == "cost":
            worth *= sum(one.held.values()) / one.load_s
        return (not one.is_expired(NOW), one.is_busy, RANK[one.priority], -worth, one.key)

    def is_enough(chosen: tuple[Resident, ...]) -> bool:
        return all(sum(one.held.get(device, 0) for one in chosen) >= size for device, size in missing.items())

    for may_be_busy in (False, True):
        able = [
            one
            for one in residents
            if one.priority != "pinned" and (not one.is_busy or (may_be_busy and NOW - one.loaded_at >= STAY_S))
        ]
        ordered = sorted(able, key=price)
        sets = [some for count in range(1, len(able) + 1) for some in combinations(range(len(able)), count)]
        enough = [some for some in sets if is_enough(tuple(ordered[i] for i in some))]
        if enough:
            return {ordered[i].key for i in min(enough, key=lambda some: some[::-1])}
    return None


def test_the_choice_is_the_oracles_and_never_a_pinned_model_nor_a_busy_one_in_vain() -> None:
    rng = random.Random(4)
    some = none = 0
    for _ in range(EVENTS):
        residents = [any_resident(rng, key) for key in "abcd"[: rng.randrange(1, 5)]]
        missing = {device: rng.randrange(1, 5) for device in rng.sample(("cpu", "CUDA0"), rng.choice((1, 1, 2)))}
        order: Order = rng.choice(("lru", "cost"))
        chosen = victims(missing, residents, NOW, order)
        assert (None if chosen is None else set(chosen)) == oracle(missing, residents, order)
        by_key = {one.key: one for one in residents}
        assert not any(by_key[key].priority == "pinned" for key in chosen or ())
        none, some = none + (chosen is None), some + (chosen is not None)
    assert min(none, some) > EVENTS / 10


def test_the_order_is_expired_then_low_priority_then_least_recently_used() -> None:
    residents = [
        resident("fresh", used_at=900.0),
        resident("old", used_at=100.0),
        resident("high", used_at=0.0, priority="high"),
        resident("low", used_at=950.0, priority="low"),
        resident("expired", used_at=990.0, priority="high", keep_alive_s=5),
    ]
    ordered = ["expired", "low", "old", "fresh", "high"]
    for count in range(1, 6):
        assert victims({"cpu": count}, residents, NOW) == ordered[:count]


def test_by_cost_the_large_and_quick_to_load_goes_before_the_least_recently_used() -> None:
    residents = [
        resident("slow", size=4, used_at=0.0, load_s=60.0),
        resident("quick", size=4, used_at=500.0, load_s=0.5),
    ]
    assert victims({"cpu": 4}, residents, NOW) == ["slow"]
    assert victims({"cpu": 4}, residents, NOW, "cost") == ["quick"]


def test_who_has_just_been_loaded_for_somebody_finishes_first() -> None:
    busy = resident("busy", is_busy=True, loaded_at=NOW - STAY_S + 1)
    assert victims({"cpu": 1}, [busy], NOW) is None
    assert victims({"cpu": 1}, [busy], NOW + 2) == ["busy"]


def test_what_is_kept_for_a_time_expires_once_idle_for_so_long() -> None:
    residents = [
        resident("at once", used_at=NOW, keep_alive_s=0),
        resident("later", used_at=NOW - 4, keep_alive_s=5),
        resident("busy", keep_alive_s=5, is_busy=True),
        resident("pinned", keep_alive_s=5, priority="pinned"),
        resident("for ever"),
    ]
    assert expired(residents, NOW) == ["at once"]
    assert expired(residents, NOW + 1) == ["at once", "later"]
