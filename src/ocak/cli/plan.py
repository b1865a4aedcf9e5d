"""`ocak plan`: what a model would take with these settings, whether it fits, and what else would.

Exit status 0: it fits; 3: it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import typer

from ocak.cli.compose import other_bytes, plan_options
from ocak.cli.progress import bytes_text
from ocak.cli.settings import Settings
from ocak.cli.sizes import parse_size
from ocak.fleet.prober import Prober
from ocak.memory.devices import free_bytes
from ocak.memory.needs import DeviceBytes, Needs, Verdict
from ocak.memory.planner import Plan, Row, make_plan

EXIT_DOES_NOT_FIT = 3
MARGIN = 0.05  # of what is free now, left to everything else
COLORS = {Verdict.DOES_NOT_FIT: "red", Verdict.RISKY: "yellow", Verdict.SAFE: "green", Verdict.VERY_SAFE: "green"}
HEADING = ("context", "KV per sequence", "sequences", "KV", "total", "verdict")


@dataclass(frozen=True, slots=True)
class Told:
    """A plan, of which model it is, and where its budget comes from."""

    model: str
    plan: Plan
    source: str


def tell_plan(settings: Settings, memory: str | None, *, as_json: bool) -> None:
    """Measure, print, and exit by whether it fits."""
    if memory is None:
        budget, source = int(free_bytes() * (1 - MARGIN)), f"free memory less {MARGIN:.0%}"
    else:
        budget, source = parse_size("memory", memory), "--memory"
    all_fit = True
    with Prober() as prober:
        for key, model in settings.models.items():
            options = plan_options(model)
            besides = other_bytes(model, options)

            def measure(context: int = 0, parallel: int = 0) -> Needs:
                changed = {"context": context, "parallel": parallel} if context else {}
                needs = prober.measure(msgspec.structs.replace(options, **changed))  # noqa: B023 - used at once
                return msgspec.structs.replace(needs, besides_bytes=besides)  # noqa: B023

            told = Told(key, make_plan(measure, measure(), budget), source)
            all_fit &= told.plan.fits
            typer.echo(as_document(told) if as_json else "\n".join(as_table(told)))
    if not all_fit:
        raise typer.Exit(EXIT_DOES_NOT_FIT)


def as_document(told: Told) -> str:
    """The plan as one JSON object, sizes in bytes."""
    plan = told.plan
    document = {
        "model": told.model,
        "fits": plan.fits,
        "budget_bytes": plan.budget,
        "budget_from": told.source,
        "asked": _row_document(plan.asked),
        "rows": [_row_document(row) for row in plan.rows],
        "largest_context": None if plan.largest_context is None else plan.largest_context.context,
        "most_sequences": None if plan.most_sequences is None else plan.most_sequences.parallel,
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _row_document(row: Row) -> dict[str, object]:
    needs = row.needs
    document: dict[str, object] = msgspec.to_builtins(needs)
    return document | {
        "sequence_bytes": needs.sequence_bytes,
        "total_bytes": needs.total_bytes,
        "resident_bytes": needs.resident_bytes,
        "verdict": str(row.verdict),
    }


def as_table(told: Told) -> Iterator[str]:
    """The plan for people."""
    plan, asked = told.plan, told.plan.asked.needs
    yield typer.style(f"{told.model}: {bytes_text(plan.budget)} to fill ({told.source})", bold=True)
    yield "  " + " · ".join(f"{name} {bytes_text(size)}" for name, size in _parts(asked))
    yield f"  {bytes_text(asked.resident_bytes)} resident after the first answers: buffers for more wait untouched"
    yield from map(_device, asked.devices if len(asked.devices) > 1 else ())
    lines = [HEADING, *(_cells(row) for row in plan.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADING))]
    for line, row in zip(lines, [None, *plan.rows], strict=True):
        text = "  ".join(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False))
        mark = ">" if row is not None and row.needs is asked else " "
        shown = typer.style(line[-1], fg=COLORS[row.verdict]) if row is not None else line[-1]
        yield f"{mark} {text}  {shown}"
    yield f"  largest context with {_sequences(asked.parallel)}: {_or_none(plan.largest_context, 'context')}"
    yield f"  most sequences at context {asked.context}: {_or_none(plan.most_sequences, 'parallel')}"


def _parts(needs: Needs) -> Iterator[tuple[str, int]]:
    yield "weights", needs.weights_bytes
    yield "KV cache", needs.kv_bytes
    yield "compute buffers", needs.compute_bytes + needs.work_bytes
    if needs.besides_bytes:
        yield "adapters and draft", needs.besides_bytes
    if needs.saved_bytes:
        yield "saved prompts", needs.saved_bytes
    yield "vocabulary", needs.vocabulary_bytes
    yield "process", needs.process_bytes


def _device(device: DeviceBytes) -> str:
    weights, kv, compute = map(bytes_text, (device.weights_bytes, device.kv_bytes, device.compute_bytes))
    return f"  {device.name}: weights {weights} · KV cache {kv} · compute buffers {compute}"


def _cells(row: Row) -> tuple[str, ...]:
    needs = row.needs
    sizes = (needs.sequence_bytes, needs.kv_bytes, needs.total_bytes)
    each, kv, total = map(bytes_text, sizes)
    return (str(needs.context), each, str(needs.parallel), kv, total, str(row.verdict))


def _sequences(count: int) -> str:
    return f"{count} sequence{'s' * (count > 1)}"


def _or_none(needs: Needs | None, field: str) -> str:
    return "none fits; take a smaller model, or --kv-type q8_0" if needs is None else str(getattr(needs, field))
