"""Answers that follow JSON schemas: are they valid, do they end, and what do they cost?

Fifty bounded schemas, ten answers each, from random weights that know nothing of JSON. Then the CPU of the worker
for each token under a schema that never ends, beside free text of the same length for the same prompts.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import aiohttp
import jsonschema
import uvloop

from bench import paths
from bench.load import Load
from bench.report import Report, Row, say
from bench.schemas import Schema, bounded_schemas
from bench.servers import MODEL_NAME, NO_PREFIXES, Server, ocak, running
from bench.throughput import abba

CLIENTS, CONTEXT = 16, 2048
ANSWERS, MAX_TOKENS = 10, 1024
OUTPUT_TOKENS = 64
ENDLESS: Schema = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "kind": {"enum": ["one", "two", "three"]},
            "size": {"type": "integer", "minimum": 0, "maximum": 10000},
        },
        "required": ["name", "kind", "size"],
        "additionalProperties": False,
    },
}
# RFC 3339 has a year 0, Python has none.
FORMATS = jsonschema.FormatChecker(sorted(set(jsonschema.FormatChecker.checkers) - {"date", "date-time"}))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one answer."""

    schema: int
    reason: str
    is_valid: bool
    num_tokens: int


def measure(short: bool = False) -> Report:
    """Judge all answers, then compare what tokens cost, in ABBA order."""
    with running(ocak(str(paths.model()), CLIENTS, CONTEXT, NO_PREFIXES)) as (server,):
        verdicts = _judge(server, 1 if short else ANSWERS)
        costs = {clients: _costs(server, clients, 1 if short else 3) for clients in (1, CLIENTS)}
    return _report(verdicts, costs)


def _judge(server: Server, answers: int) -> list[Verdict]:
    schemas = bounded_schemas()
    asked = [(number, seed) for seed in range(answers) for number in range(len(schemas))]
    bodies = [_body(schemas[number], seed * 1000 + number) for number, seed in asked]
    choices = uvloop.run(_ask_all(server, CLIENTS, bodies))
    verdicts = [
        Verdict(number, choice["finish_reason"], _is_valid(choice["text"], schemas[number]), choice["tokens"])
        for (number, _), choice in zip(asked, choices, strict=True)
    ]
    say(f"structured: {Counter((verdict.reason, verdict.is_valid) for verdict in verdicts)}")
    return verdicts


def _is_valid(text: str, schema: Schema) -> bool:
    checker = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    try:
        return bool(checker.is_valid(json.loads(text)))
    except ValueError:
        return False


def _costs(server: Server, clients: int, rounds: int) -> dict[str, list[float]]:
    """CPU of the worker for each token, in ms, of both kinds."""
    costs: dict[str, list[float]] = {"schema": [], "free": []}
    load = Load(clients, max(4, clients), output_tokens=OUTPUT_TOKENS)
    for kind in ("schema", "free", *abba(["schema", "free"], rounds)):  # the first of each warms up
        before = server.children_cpu_s()
        choices = uvloop.run(_ask_all(server, clients, list(_bodies(load, kind))))
        num_tokens = sum(choice["tokens"] for choice in choices)
        assert num_tokens == load.requests * OUTPUT_TOKENS, "an answer ended early"
        costs[kind].append((server.children_cpu_s() - before) / num_tokens * 1e3)
        say(f"structured: {clients} at a time, {kind}: {costs[kind][-1]:.2f} ms CPU a token")
    return {kind: values[1:] for kind, values in costs.items()}


def _bodies(load: Load, kind: str) -> Iterator[dict[str, Any]]:
    for seed, prompt in enumerate(load.prompts()):
        body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "seed": seed}
        yield body | ({"structured_outputs": {"json": ENDLESS}} if kind == "schema" else {"ignore_eos": True})


def _body(schema: Schema, seed: int) -> dict[str, Any]:
    kind = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"model": MODEL_NAME, "prompt": f"Answer {seed}:", "max_tokens": MAX_TOKENS, "seed": seed}
    return body | {"response_format": kind}


async def _ask_all(server: Server, clients: int, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the choices, in the order of the bodies."""
    turns = iter(enumerate(bodies))
    choices: dict[int, dict[str, Any]] = {}

    async def client() -> None:
        for turn, body in turns:
            choices[turn] = await _ask(session, body)

    async with aiohttp.ClientSession(server.url, connector=aiohttp.TCPConnector(limit=clients)) as session:
        await asyncio.gather(*(client() for _ in range(clients)))
    return [choices[turn] for turn in range(len(bodies))]


async def _ask(session: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post("/v1/completions", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer} for {body}")
    return answer["choices"][0] | {"tokens": answer["usage"]["completion_tokens"]}


def _report(verdicts: list[Verdict], costs: dict[int, dict[str, list[float]]]) -> Report:
    ended = [verdict for verdict in verdicts if verdict.reason == "stop"]
    share = sum(verdict.is_valid for verdict in ended) / max(1, len(ended))
    wrong = sorted({verdict.schema for verdict in ended if not verdict.is_valid})
    rows = [
        Row("valid, of those that ended with `stop`", "100 %", f"{share:.1%} of {len(ended)}", share == 1),
        Row("ended, of all", "≥ 95 %", f"{len(ended)} of {len(verdicts)}", len(ended) >= 0.95 * len(verdicts)),
        *(_cost_row(clients, values) for clients, values in costs.items()),
    ]
    notes = [f"{len({v.schema for v in verdicts})} schemas; tokens an answer: median {_median_tokens(verdicts)}"]
    notes += [f"schemas with invalid answers: {wrong}"] if wrong else []
    samples = {"verdicts": [[v.schema, v.reason, v.is_valid, v.num_tokens] for v in verdicts], "costs": costs}
    return Report(
        "structured", "Structured output: JSON schemas on random weights, 0.5B Q4_0", rows, notes, samples
    )


def _cost_row(clients: int, costs: dict[str, list[float]]) -> Row:
    schema, free = median(costs["schema"]), median(costs["free"])
    more = schema / free - 1
    shown = f"{more:+.1%} ({schema:.2f} ms, free text {free:.2f} ms)"
    return Row(f"CPU of the worker a token, {clients} at a time", "≤ 10 % more", shown, more <= 0.1)


def _median_tokens(verdicts: list[Verdict]) -> int:
    return int(median(verdict.num_tokens for verdict in verdicts))
