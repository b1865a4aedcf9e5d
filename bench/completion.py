"""One completion request whose client may leave before its end."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import aiohttp


@dataclass(frozen=True, slots=True)
class Leaving:
    """When a client leaves: after some seconds, or once it has read some chunks, whichever is first."""

    after_s: float | None = None
    after_chunks: int | None = None


@dataclass(slots=True)
class Said:
    """What a client got to hear; moments are readings of ``time.perf_counter``."""

    text: str = ""
    left: bool = False
    chunks: int = 0
    began: float = 0.0
    ended: float = 0.0
    error: str = ""


STAYS = Leaving()


def session(url: str) -> aiohttp.ClientSession:
    """A session that opens a connection for each request, so that leaving closes just that one."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=600))


async def ask(http: aiohttp.ClientSession, body: dict[str, Any], leaving: Leaving = STAYS) -> Said:
    """Ask, and leave by closing the connection when it is time."""
    said = Said(began=time.perf_counter())
    try:
        async with asyncio.timeout(leaving.after_s):
            await _listen(http, body, leaving, said)
    except TimeoutError:
        said.left = True
    except aiohttp.ClientError as error:
        said.error = repr(error)
    said.ended = time.perf_counter()
    return said


async def _listen(http: aiohttp.ClientSession, body: dict[str, Any], leaving: Leaving, said: Said) -> None:
    async with http.post("/v1/completions", json=body) as response:
        if response.status != 200:
            said.error = f"{response.status}: {await response.text()}"
        elif body["stream"]:
            await _read_chunks(response, leaving, said)
        else:
            said.text = _text(await response.json())


async def _read_chunks(response: aiohttp.ClientResponse, leaving: Leaving, said: Said) -> None:
    async for line in response.content:
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            said.error = str(chunk["error"])
        said.text += _text(chunk)
        said.chunks += 1
        if said.chunks == leaving.after_chunks:
            said.left = True
            response.close()
            return


def _text(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["text"] or "") if answer.get("choices") else ""
