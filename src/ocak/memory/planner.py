"""Finds the settings of a model that fit into a budget. Pure: it is given what measures the needs of settings.

Needs grow with the context and with the number of sequences, so the largest that fit are found by halving. Few are
asked for at a time: every measure is a dry run of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ocak.memory.needs import GRAIN, Needs, Verdict, verdict

MOST_SEQUENCES = 256  # LLAMA_MAX_SEQ
Measure = Callable[[int, int], Needs]  # of a context and a number of sequences


@dataclass(frozen=True, slots=True)
class Row:
    """One set of settings and what becomes of it."""

    needs: Needs
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for, what could be had instead, and the largest that fit: None where nothing does."""

    budget: int
    asked: Row
    rows: tuple[Row, ...]  # asked for or not, by context and sequences, the largest first
    largest_context: Needs | None  # with as many sequences as were asked for
    most_sequences: Needs | None  # with as long a context

    @property
    def fits(self) -> bool:
        return self.asked.verdict is not Verdict.DOES_NOT_FIT


def make_plan(measure: Measure, asked: Needs, budget: int) -> Plan:
    """Judge what was asked for, and look around it: at this context and at half of it, with fewer and more."""
    known = {(asked.context, asked.parallel): asked}

    def needs(context: int, parallel: int) -> Needs:
        if (context, parallel) not in known:
            known[context, parallel] = measure(context, parallel)
        return known[context, parallel]

    longest = _largest(lambda n: needs(n * GRAIN, asked.parallel), max(1, asked.trained_context // GRAIN), budget)
    most = _largest(lambda n: needs(asked.context, n), MOST_SEQUENCES, budget)
    shown = {(asked.context, asked.parallel)}
    for context in (asked.context, max(GRAIN, asked.context // 2)):
        best = _largest(lambda n, context=context: needs(context, n), MOST_SEQUENCES, budget)  # type: ignore[misc]
        if best is not None:
            fewest = best.parallel - (0 if best.parallel == MOST_SEQUENCES else 2)  # then all are very safe
            shown |= {(context, n) for n in range(max(1, fewest), best.parallel + 1)}
    rows = [needs(*sizes) for sizes in sorted(shown, reverse=True)]
    return Plan(
        budget=budget,
        asked=_row(asked, budget),
        rows=tuple(_row(one, budget) for one in rows),
        largest_context=longest,
        most_sequences=most,
    )


def _row(needs: Needs, budget: int) -> Row:
    return Row(needs, verdict(needs, budget))


def _largest(measure: Callable[[int], Needs], most: int, budget: int) -> Needs | None:
    """Return the needs of the largest number, up to `most`, that fit."""
    low, high = 0, most + 1  # the first fits or is none, the second does not or is not asked
    best: Needs | None = None
    while high - low > 1:
        middle = most if low == 0 and high == most + 1 else (low + high) // 2
        needs = measure(middle)
        if needs.total_bytes <= budget:
            low, best = middle, needs
        else:
            high = middle
    return best
