"""A running server, as commands reach it: its address, the key, and what its errors say."""

from __future__ import annotations

from dataclasses import dataclass

import aiohttp
import msgspec

from ocak.core.errors import ConfigError, GenerationFailed, ModelUnavailable, OcakError

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_S = 10
SILENCE_S = 600  # a long prompt, or a large model's load, says nothing for minutes


class Problem(msgspec.Struct):
    message: str = "the server gave no reason"


class _Failure(msgspec.Struct):
    error: Problem | None = None


@dataclass(frozen=True, slots=True)
class RemoteServer:
    url: str
    headers: dict[str, str]

    @classmethod
    def at(cls, url: str, api_key: str | None) -> RemoteServer:
        """Raises `ConfigError`."""
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url} must start with http:// or https://", param="url")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        return cls(url.rstrip("/").removesuffix("/v1"), headers)

    def session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S)
        return aiohttp.ClientSession(headers=self.headers, timeout=timeout)

    async def ask(self, method: str, path: str) -> bytes:
        """Return one answer's body. Raises `OcakError`."""
        try:
            async with self.session() as session, session.request(method, f"{self.url}{path}") as response:
                await check(response)
                return await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self.unreachable(error) from error

    def unreachable(self, error: Exception) -> OcakError:
        return ModelUnavailable(f"cannot reach {self.url}: {error or type(error).__name__}")


async def check(response: aiohttp.ClientResponse) -> None:
    """Raise what an answer that is no success says."""
    if response.ok:
        return
    try:
        problem = msgspec.json.decode(await response.read(), type=_Failure).error or Problem()
    except msgspec.DecodeError:
        problem = Problem(response.reason or "no reason given")
    raise GenerationFailed(f"{response.url}: {response.status}: {problem.message}")
