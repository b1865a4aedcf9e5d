"""A closed-loop load on any OpenAI-compatible server: N clients, each one request after another.

Prompts are random token ids, so their length is exact and none shares more of a prefix with
another than the load says. Every request is greedy, ignores the end of text and opens a connection of its
own (llama-server closes idle ones under load, which would count as failures).
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np
import uvloop
from gguf import GGUFReader

from bench.servers import Server

FIRST_TOKEN_ID, LAST_TOKEN_ID = 1_000, 150_000  # ordinary words of the Qwen2 vocabulary
REQUEST_WITHIN_S = 1800
UNKNOWN = -1  # how many tokens the server read


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a server; equal seeds ask for equal prompts."""

    clients: int
    requests: int
    prompt_tokens: int = 128
    output_tokens: int = 64
    seed: int = 0
    prefixes: int = 0  # how many beginnings the prompts share, taking turns
    prefix_tokens: int = 0  # of each of those, before the prompt's own
    words: tuple[str, ...] = ()  # prompts are text of these, a token each, for servers that read nothing else

    def prompts(self) -> list[list[int]]:
        """The prompts, as token ids or as places in `words`."""
        rng = np.random.default_rng(self.seed)
        low, high = (0, len(self.words)) if self.words else (FIRST_TOKEN_ID, LAST_TOKEN_ID)
        shared = rng.integers(low, high, (max(1, self.prefixes), self.prefix_tokens))
        ids = rng.integers(low, high, (self.requests, self.prompt_tokens))
        return [[*shared[number % len(shared)].tolist(), *row.tolist()] for number, row in enumerate(ids)]


@dataclass(slots=True)
class Answer:
    """One streamed answer; all times in seconds from its request."""

    num_prompt: int = 0
    num_tokens: int = 0
    first_s: float = 0.0
    total_s: float = 0.0
    chunk_s: list[float] = field(default_factory=list)

    @property
    def token_s(self) -> float:
        """Mean time between tokens after the first chunk."""
        return (self.total_s - self.first_s) / max(1, self.num_tokens - 1)

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two chunks."""
        return max((b - a for a, b in pairwise(self.chunk_s)), default=0.0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a load."""

    wall_s: float
    answers: list[Answer]

    @property
    def num_tokens(self) -> int:
        """Tokens generated, as the server counted them."""
        return sum(answer.num_tokens for answer in self.answers)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second over the whole run, prefill included."""
        return self.num_tokens / self.wall_s

    @property
    def first_token_s(self) -> float:
        """Median time to the first token."""
        return median(answer.first_s for answer in self.answers)

    @property
    def token_s(self) -> float:
        """Median over the answers of the mean time between tokens."""
        return median(answer.token_s for answer in self.answers)

    def summary(self) -> dict[str, float]:
        """The figures kept as a sample."""
        return {
            "tokens_per_s": self.tokens_per_s,
            "wall_s": self.wall_s,
            "num_tokens": self.num_tokens,
            "first_token_s": self.first_token_s,
            "token_s": self.token_s,
            "longest_gap_s": median(answer.longest_gap_s for answer in self.answers),
        }


def words(model: Path) -> tuple[str, ...]:
    """Words that are one token each wherever they stand."""
    tokens = GGUFReader(model).fields["tokenizer.ggml.tokens"].contents()
    return tuple(f" {token[1:]}" for token in tokens if re.fullmatch("Ġ[a-z]{3,9}", token))


def run(server: Server, load: Load, *, strict: bool = True) -> Outcome:
    """Put the load on the server; raises when an answer is short or fails, or keeps what came of it."""
    return uvloop.run(_run(server, load, strict))


async def _run(server: Server, load: Load, strict: bool) -> Outcome:
    bodies = iter([json.dumps(body).encode() for body in _bodies(server.program.served_name, load)])
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_WITHIN_S)
    async with aiohttp.ClientSession(server.url, connector=connector, timeout=timeout) as session:
        started = time.perf_counter()
        clients = [_client(session, bodies, strict) for _ in range(load.clients)]
        answers = [answer for done in await asyncio.gather(*clients) for answer in done]
        outcome = Outcome(time.perf_counter() - started, answers)
    if strict:
        _expect_whole(outcome, load)
    return outcome


def _bodies(served_name: str, load: Load) -> Iterator[dict[str, Any]]:
    for ids in load.prompts():
        prompt = "".join(load.words[place] for place in ids) if load.words else ids
        yield greedy_body(served_name, prompt, load.output_tokens) | {"cache_prompt": load.prefixes > 0}


def greedy_body(served_name: str, prompt: list[int] | str, max_tokens: int, stream: bool = True) -> dict[str, Any]:
    """A completion request that is greedy and always ``max_tokens`` long."""
    body = {
        "model": served_name,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    }
    body |= {"ignore_eos": True, "cache_prompt": False}
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


async def _client(session: aiohttp.ClientSession, bodies: Iterator[bytes], strict: bool) -> list[Answer]:
    ask = _ask if strict else _try
    return [await ask(session, body) for body in bodies]


async def _try(session: aiohttp.ClientSession, body: bytes) -> Answer:
    """An answer that failed has no tokens."""
    try:
        return await _ask(session, body)
    except (aiohttp.ClientError, RuntimeError, LookupError):
        return Answer()


async def _ask(session: aiohttp.ClientSession, body: bytes) -> Answer:
    answer, started, last = Answer(), time.perf_counter(), b""
    headers = {"Content-Type": "application/json"}
    async with session.post("/v1/completions", data=body, headers=headers) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                answer.chunk_s.append(time.perf_counter() - started)
                last = line
    answer.total_s = answer.chunk_s[-1]
    answer.first_s = answer.chunk_s[0]
    end = json.loads(last[6:])
    usage = end.get("usage") or _untold_usage(end, answer, json.loads(body))
    answer.num_prompt, answer.num_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    return answer


def _untold_usage(end: dict[str, Any], answer: Answer, body: dict[str, Any]) -> dict[str, int]:
    """Of a server that streams no usage, and so may end at a token of its own choice: a chunk is a token."""
    is_whole = end["choices"][0]["finish_reason"] == "length"
    num_tokens = body["max_tokens"] if is_whole else len(answer.chunk_s) - 1
    return {"prompt_tokens": UNKNOWN, "completion_tokens": num_tokens}


def _expect_whole(outcome: Outcome, load: Load) -> None:
    lengths = {answer.num_prompt for answer in outcome.answers}
    if lengths == {UNKNOWN}:
        return
    expected = load.requests * load.output_tokens
    if outcome.num_tokens != expected:
        raise RuntimeError(f"{outcome.num_tokens} tokens were generated, {expected} were asked for")
    if lengths != {load.prefix_tokens + load.prompt_tokens}:
        raise RuntimeError(f"the server read prompts of {lengths} tokens")
