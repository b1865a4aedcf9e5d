"""Prompts that outgrow their context: does memory stay flat, is the count exact, is what stays still remembered?

A prompt of 20,000 tokens goes through a context of 4,096 while the worker's resident memory is
read. Then the embedded model is told a code word in prompts of 2,000 tokens, at a context of 256:
at the beginning, which is kept, near the end, and in what is dropped. Beside each stands the same
question in a prompt that fits, with the code word at the distance that it has after the shifts.
"""

import asyncio
import random
import threading
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from bench import paths, scrape
from bench.code_words import QUESTION, TEXTS
from bench.completion import session
from bench.load import greedy_body
from bench.reference_model import ReferenceModel
from bench.report import Report, Row, say
from bench.servers import MODEL_NAME, NO_PREFIXES, Server, ocak, running

CONTEXT, PROMPT_TOKENS, SHORT_PROMPT_TOKENS = 4096, 20_000, 9_000
RSS_TOLERANCE, RSS_EVERY_S = 0.02, 0.05
SMALL, KEPT, LONG_TOKENS = 256, 64, 2000
QUESTIONS, MAX_TOKENS, CLIENTS = 100, 24, 4
NOISE = 0.05  # of a share of a hundred answers
SHIFT = ("--context-policy", "shift")


@dataclass(frozen=True, slots=True)
class Flatness:
    """Resident MiB of the worker: after a prompt as long as the context, at most while shifting, and after it."""

    before: float
    peak: float
    after: float
    dropped: int
    counted: float  # by the metric
    expected: int


@dataclass(frozen=True, slots=True)
class Recall:
    """How many code words were told back: with shifts, and in prompts that fit."""

    place: str
    shifted: int
    fitting: int
    count: int

    @property
    def is_as_good(self) -> bool:
        return self.shifted >= self.fitting - NOISE * self.count


def measure(short: bool = False) -> Report:
    """One long prompt, then the questions."""
    with running(ocak(str(paths.model()), 1, CONTEXT, *SHIFT, NO_PREFIXES)) as (server,):
        flat = asyncio.run(_shift_through(server, SHORT_PROMPT_TOKENS if short else PROMPT_TOKENS))
    recalls = asyncio.run(_recalls(20 if short else QUESTIONS))
    return _report(flat, recalls)


def dropped(num_tokens: int, context: int, kept: int) -> int:
    """What is dropped until so many tokens are computed: half of what is behind the kept ones, each time."""
    step = (context - kept) // 2
    return -(-max(0, num_tokens - context) // step) * step


async def _shift_through(server: Server, num_tokens: int) -> Flatness:
    tokens = [1000 + i * 7919 % 100_000 for i in range(num_tokens)]
    async with session(server.url) as http:
        await _complete(http, tokens[: CONTEXT - 1], 1)
        before, counted = server.rss_mib()[1], _counted(server)
        say(f"shift: {num_tokens} tokens through a context of {CONTEXT}")
        with Readings(lambda: server.rss_mib()[1]) as readings:
            usage = await _complete(http, tokens, 2)
    assert usage["prompt_tokens"] == num_tokens, usage
    return Flatness(
        before=before,
        peak=readings.highest,
        after=server.rss_mib()[1],
        dropped=usage["prompt_tokens_details"]["dropped_tokens"],
        counted=_counted(server) - counted,
        expected=dropped(num_tokens + 1, CONTEXT, CONTEXT // 4),
    )


class Readings:
    """Reads a figure again and again, beside whatever goes on in the block."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.highest = read()

    def __enter__(self) -> "Readings":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(RSS_EVERY_S):
            self.highest = max(self.highest, self._read())


async def _complete(http: aiohttp.ClientSession, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    async with http.post(
        "/v1/completions", json=greedy_body(MODEL_NAME, prompt, max_tokens, stream=False)
    ) as response:
        answer: dict[str, Any] = await response.json()
    assert response.status == 200, answer
    usage: dict[str, Any] = answer["usage"]
    return usage


def _counted(server: Server) -> float:
    return scrape.metrics(server).get("ocak_context_shift_tokens_total", 0.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """A long prompt with a code word, and one that fits with the word at the same distance from its end."""

    word: str
    long: list[int]
    fitting: list[int]


async def _recalls(count: int) -> list[Recall]:
    maker = PairMaker()
    places = {
        "at the beginning": [maker.beginning() for _ in range(count)],
        "near the end": [maker.end() for _ in range(count)],
        "in what is dropped": [maker.middle() for _ in range(count)],
    }
    sizes = ("--n-keep", str(KEPT), NO_PREFIXES)
    with running(ocak("embedded", CLIENTS, SMALL, *SHIFT, *sizes), ocak("embedded", CLIENTS, 1024)) as servers:
        recalls = []
        for place, pairs in places.items():
            prompts = [pair.long for pair in pairs], [pair.fitting for pair in pairs]
            words = [pair.word for pair in pairs]
            heard = [await _recalled(server, lists, words) for server, lists in zip(servers, prompts, strict=True)]
            recalls.append(Recall(place, heard[0], heard[1], count))
            say(f"shift: {recalls[-1]}")
        return recalls


async def _recalled(server: Server, prompts: list[list[int]], words: list[str]) -> int:
    turns = iter(range(len(prompts)))
    found = [False] * len(prompts)

    async def client(http: aiohttp.ClientSession) -> None:
        for turn in turns:
            body = {"model": MODEL_NAME, "prompt": prompts[turn], "max_tokens": MAX_TOKENS, "temperature": 0}
            async with http.post("/v1/completions", json=body) as response:
                answer = await response.json()
            assert response.status == 200, answer
            found[turn] = words[turn] in answer["choices"][0]["text"]

    async with session(server.url) as http:
        await asyncio.gather(*(client(http) for _ in range(CLIENTS)))
    return sum(found)


class PairMaker:
    """Writes the prompts, from the texts the embedded model learned from."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._model = ReferenceModel(str(paths.embedded_model()))
        self._words = (TEXTS / "code_words.txt").read_text().split()
        self._sentences = tomllib.loads((TEXTS / "phrases.toml").read_text())["filler"]["sentences"]

    def beginning(self) -> Pair:
        word, filler = self._word(), self._filler()
        long = self._prompt(self._told(word), *filler)
        room = len(long) - dropped(len(long), SMALL, KEPT)
        behind = next(i for i in range(len(filler)) if len(self._prompt(self._told(word), *filler[i:])) <= room)
        return Pair(word, long, self._prompt(self._told(word), *filler[behind:]))

    def end(self) -> Pair:
        """So near the end that any shift leaves it."""
        word, filler = self._word(), self._filler()
        near = filler[-self._random.randint(0, 5) or len(filler) :]
        fitting = self._prompt(self._told(word), *near)
        assert len(fitting) < (SMALL - KEPT) // 2, "it would not surely stay"
        return Pair(word, self._prompt(*filler[: len(filler) - len(near)], self._told(word), *near), fitting)

    def middle(self) -> Pair:
        word, filler = self._word(), self._filler()
        half = len(filler) // 2
        return Pair(
            word, self._prompt(*filler[:half], self._told(word), *filler[half:]), self._prompt(*filler[:8])
        )

    def _word(self) -> str:
        return self._random.choice(self._words)

    def _told(self, word: str) -> str:
        return f"The code word is {word}."

    def _filler(self) -> list[str]:
        """Sentences of about as many tokens as are wanted."""
        chosen: list[str] = []
        while len(chosen) % 10 or len(self._prompt(*chosen)) < LONG_TOKENS - 40:
            chosen.append(self._random.choice(self._sentences))
        return chosen

    def _prompt(self, *sentences: str) -> list[int]:
        return self._model.prompt(" ".join([*sentences, QUESTION]))


def _report(flat: Flatness, recalls: list[Recall]) -> Report:
    growth = flat.peak / flat.before - 1
    kept, lost = recalls[:-1], recalls[-1]
    rows = [
        Row(
            "resident memory while shifting, beside a full context without",
            f"± {RSS_TOLERANCE:.0%}",
            f"{growth:+.2%} at most ({flat.before:.1f}, peak {flat.peak:.1f}, after {flat.after:.1f} MiB)",
            abs(growth) <= RSS_TOLERANCE,
        ),
        Row(
            "dropped tokens: usage, metric",
            f"{flat.expected}",
            f"{flat.dropped}, {flat.counted:.0f}",
            flat.dropped == flat.counted == flat.expected,
        ),
        *(
            Row(
                f"code word {recall.place}: recalled with shifts",
                f"{recall.fitting} of {recall.count} without, at that distance",
                f"{recall.shifted} of {recall.count}",
                recall.is_as_good,
            )
            for recall in kept
        ),
        Row(f"code word {lost.place}: recalled with shifts", "none", f"{lost.shifted} of {lost.count}"),
    ]
    notes = [
        f"a prompt at a context of {CONTEXT}, 0.5B Q4_0; the embedded model at a context of {SMALL}, {KEPT} "
        f"tokens kept, prompts of {LONG_TOKENS} tokens",
        f"as often: at most {NOISE:.0%} of the answers fewer, which is the noise of so many",
    ]
    samples = {"flatness": asdict(flat), "recalls": [asdict(recall) for recall in recalls]}
    return Report("shift", "Prompts that outgrow the context", rows, notes, samples)
