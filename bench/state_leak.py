"""No request sees another's memory: 500 questions about code words through 4 slots.

First every question is asked alone, one after another, on an idle server. Then, on a
restarted server, a sample again, and all of them sixteen at a time, every other client
leaving midway. Each answer must equal the one given alone; where it does not, the gap of
the logits at the parting token is computed in this process, and only a near-tie passes.
"""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
import uvloop

from bench import paths, scrape
from bench.code_words import Question, questions
from bench.completion import Said, ask, session
from bench.reference_model import NEAR_TIE, Parting, ReferenceModel
from bench.report import Report, Row, say
from bench.servers import MODEL_NAME, Program, Server, ocak, running

SLOTS, CLIENTS, CONTEXT = 4, 16, 512
MAX_TOKENS = 32
NUM_REPEATED = 20
SETTLE_S = 2.0
HELD = ("ocak_slots_used", "ocak_kv_cells_used", "ocak_requests_running", "ocak_requests_waiting")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, its prompt as token ids, what it was answered alone and what in the crowd."""

    question: Question
    prompt: list[int]
    alone: str
    crowded: Said

    @property
    def differs(self) -> bool:
        """Whether what was heard is not (the beginning of) the answer given alone."""
        if self.crowded.left:
            return not self.alone.startswith(self.crowded.text)
        return self.alone != self.crowded.text


@dataclass(slots=True)
class Findings:
    """Everything that was compared; ``repeated`` pairs answers given alone before and after a restart."""

    exchanges: list[Exchange]
    repeated: list[tuple[Exchange, str]]
    held: dict[str, float]
    in_crowd: list[Parting] = field(default_factory=list)
    after_restart: list[Parting] = field(default_factory=list)


def measure(short: bool = False) -> Report:
    """Ask everything alone, then in a crowd, and compare."""
    program = ocak("embedded", SLOTS, CONTEXT)
    return measure_on(program, str(paths.embedded_model()), 60 if short else 500)


def measure_on(program: Program, model_path: str, count: int) -> Report:
    """The same for any server of the model."""
    model, asked = ReferenceModel(model_path), questions(count)
    bodies = [_body(model.prompt(question.text)) for question in asked]
    every = count // NUM_REPEATED
    with running(program) as (server,):
        alone = uvloop.run(_one_by_one(server, bodies))
    with running(program) as (server,):
        again = uvloop.run(_one_by_one(server, bodies[::every]))
        crowded = uvloop.run(_crowd(server, asked, bodies))
        held = uvloop.run(_held_at_the_end(server))
    rows = zip(asked, bodies, alone, crowded, strict=True)
    exchanges = [Exchange(question, body["prompt"], text, said) for question, body, text, said in rows]
    found = Findings(exchanges, list(zip(exchanges[::every], again, strict=True)), held)
    _explain(model, found)
    return _report(found)


def _body(prompt: list[int]) -> dict[str, Any]:
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
    return body | {"stream": True, "cache_prompt": False}


async def _one_by_one(server: Server, bodies: list[dict[str, Any]]) -> list[str]:
    async with session(server.url) as http:
        answers = [await ask(http, body) for body in bodies]
    failures = [said.error for said in answers if said.error]
    if failures:
        raise RuntimeError(f"{len(failures)} requests failed on an idle server: {failures[0]}")
    say(f"state leak: {len(answers)} questions asked alone")
    return [said.text for said in answers]


async def _crowd(server: Server, asked: list[Question], bodies: list[dict[str, Any]]) -> list[Said]:
    heard: list[Said] = [Said()] * len(asked)
    turns = iter(range(len(asked)))

    async def client(http: aiohttp.ClientSession, turns: Iterator[int]) -> None:
        for turn in turns:
            heard[turn] = await ask(http, bodies[turn], asked[turn].leaving)

    async with session(server.url) as http:
        await asyncio.gather(*(client(http, turns) for _ in range(CLIENTS)))
    say(f"state leak: {len(asked)} questions asked {CLIENTS} at a time, {sum(said.left for said in heard)} left")
    return heard


async def _held_at_the_end(server: Server) -> dict[str, float]:
    """Slots and cells in use once everyone has gone."""
    await asyncio.sleep(SETTLE_S)
    now = scrape.metrics(server)
    return {name.removeprefix("ocak_"): now[name] for name in HELD if name in now}


def _explain(model: ReferenceModel, found: Findings) -> None:
    """Find where differing answers part, and by how little."""
    for exchange in found.exchanges:
        if exchange.differs and not exchange.crowded.error:
            found.in_crowd.append(model.explain(exchange.prompt, exchange.alone, exchange.crowded.text))
    for exchange, text in found.repeated:
        if text != exchange.alone:
            found.after_restart.append(model.explain(exchange.prompt, exchange.alone, text))


def _report(found: Findings) -> Report:
    count = len(found.exchanges)
    failed = [e for e in found.exchanges if e.crowded.error]
    whole = [e for e in found.exchanges if not e.crowded.left]
    leaks = [e for e in found.exchanges if not e.question.word and _foreign_words(e, found.exchanges)]
    told = [e for e in whole if e.question.word]
    recalled = sum(str(e.question.word) in _words(e.crowded.text) for e in told)
    held = ", ".join(f"{name} {value:.0f}" for name, value in found.held.items())
    equal = f"{count - len(failed) - len(found.in_crowd)} of {count}"
    unequal, equal_again = len(found.after_restart), len(found.repeated) - len(found.after_restart)
    rows = [
        Row("answers in a crowd that equal the one given alone", "all but near-ties", equal),
        _parting_row("the others: gap of the logits where they part", found.in_crowd),
        Row("questions without a word that name one in flight", "0", str(len(leaks)), not leaks),
        Row("held at the end", "0 slots, 0 cells", held, not any(found.held.values())),
        Row("failed requests", "0", str(len(failed)), not failed),
        Row("the same after a restart, alone", "reported", f"{equal_again} of {equal_again + unequal}"),
        _parting_row("the others: gap of the logits where they part", found.after_restart),
        Row("clients that left midway", "half", str(count - len(whole))),
        Row("code words recalled by those who stayed", "reported", f"{recalled} of {len(told)}"),
    ]
    notes = [f"{SLOTS} slots, {CLIENTS} at a time, greedy; a near-tie is a gap of at most {NEAR_TIE}"]
    title = f"State leak: {count} requests with code words through {SLOTS} slots"
    return Report("state_leak", title, rows, notes, asdict(found))


def _parting_row(what: str, partings: list[Parting]) -> Row:
    """Only near-ties may part; the figure is the largest gap of all."""
    if not partings:
        return Row(what, f"≤ {NEAR_TIE}", "none differ", True)
    largest = max(parting.gap for parting in partings)
    measured = f"{len(partings)} differ, by {largest:.4f} at most"
    return Row(what, f"≤ {NEAR_TIE}", measured, all(parting.is_near_tie for parting in partings))


def _foreign_words(exchange: Exchange, exchanges: list[Exchange]) -> set[str]:
    """Code words in the answer that only other requests, in flight at the same time, can have brought.

    A word that the same question was answered with alone, with nothing in flight, is the model's own.
    """
    said = exchange.crowded
    others = (
        other for other in exchanges if other.crowded.began < said.ended and said.began < other.crowded.ended
    )
    brought = {other.question.word for other in others if other.question.word}
    return (brought - _words(exchange.question.text) - _words(exchange.alone)) & _words(said.text)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))
