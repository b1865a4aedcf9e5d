"""Speaks the hub's protocol: lists a repository, opens a file's bytes. Knows no folder and hashes nothing.

aiohttp rather than `huggingface_hub`: that library deletes the partial file when a download breaks, never
hashes what it received, and fixes its endpoint when it is imported.
Invariant: the token is sent to the endpoint's own origin only, whatever a redirect says; every failure is a
`DownloadError`, and those that may pass by themselves are `HubUnreachable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import quote

import aiohttp
from yarl import URL

from ocak.core.errors import DownloadError
from ocak.hub.listing import Listing, parse_listing, parse_names
from ocak.hub.reference import nearest
from ocak.hub.settings import HubSettings

_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "ocak"}
_MAX_REDIRECTS: Final = 5
_MAX_LISTING_BYTES: Final = 32 << 20
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_BAD_TOKEN: Final = "Invalid credentials in Authorization header"  # the hub's own words


class HubUnreachable(DownloadError):
    """The hub has a bad moment: trying again, or using what is already here, may help."""


class NoNetwork(HubUnreachable):
    """The hub cannot even be connected to."""


class _NotFound(DownloadError):
    """No such repository or file, or one that this token may not see."""


@asynccontextmanager
async def connect(settings: HubSettings) -> AsyncIterator[HubClient]:
    """A client for the time of one pull; proxies come from the environment, cookies are not kept."""
    jar = aiohttp.DummyCookieJar()
    session = aiohttp.ClientSession(timeout=_TIMEOUT, headers=_HEADERS, cookie_jar=jar, trust_env=True)
    async with session:
        yield HubClient(settings, session)


class HubClient:
    """One connection pool to one hub."""

    def __init__(self, settings: HubSettings, session: aiohttp.ClientSession) -> None:
        self._settings = settings
        self._session = session
        self._endpoint = settings.endpoint
        self._origin = URL(settings.endpoint).origin()

    async def listing(self, repository: str) -> Listing:
        """The repository's files with sizes and digests; when it is not there, names the nearest that are."""
        try:
            body = await self._body_insisting(f"{self._endpoint}/api/models/{repository}?blobs=true")
        except _NotFound as error:
            close = await self._nearest_repositories(repository)
            raise DownloadError(
                f"The hub shows no repository {repository}{close}. {error.message}",
                param="source",
            ) from error
        return parse_listing(body, repository)

    @asynccontextmanager
    async def content(
        self, repository: str, commit: str, path: str, start: int
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A file's bytes: from `start` on when the answer is 206, from 0 when 200, none left when 416."""
        url = f"{self._endpoint}/{repository}/resolve/{commit}/{quote(path)}"
        headers = {"Range": f"bytes={start}-"} if start else {}
        with _translated(self._endpoint):
            async with self._get(url, headers) as response:
                yield response

    async def _nearest_repositories(self, repository: str) -> str:
        """The owner's repositories that are named alike, for an error message."""
        owner = repository.partition("/")[0]
        try:
            body = await self._body(f"{self._endpoint}/api/models?author={owner}&limit=500")
        except DownloadError:
            return ""
        close = nearest(repository, parse_names(body))
        return f" (there is {close})" if close else ""

    async def _body_insisting(self, url: str) -> bytes:
        """GET a listing; a hub that answers with a passing error is asked again, an absent network is not."""
        retry = self._settings.retry
        for attempt in range(retry.attempts - 1):
            try:
                return await self._body(url)
            except NoNetwork:
                raise
            except HubUnreachable as error:
                await asyncio.sleep(max(retry.wait_s(attempt), error.retry_after_s or 0))
        return await self._body(url)

    async def _body(self, url: str) -> bytes:
        body = bytearray()
        with _translated(self._endpoint):
            async with self._get(url, {}) as response:
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_LISTING_BYTES:
                        raise DownloadError(f"{self._endpoint} sent over {_MAX_LISTING_BYTES} bytes as a listing.")
        return bytes(body)

    @asynccontextmanager
    async def _get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET with redirects followed by hand, so that the token stays at home."""
        target = URL(url, encoded=True)
        for _ in range(_MAX_REDIRECTS):
            sent = {**headers, **self._authorization(target)}
            async with self._session.get(target, headers=sent, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if location is None or response.status not in {301, 302, 303, 307, 308}:
                    self._check(response)
                    yield response
                    return
            target = _redirected(target, location)
        raise DownloadError(f"{url} redirects more than {_MAX_REDIRECTS} times.")

    def _authorization(self, target: URL) -> dict[str, str]:
        token = self._settings.token
        return {"Authorization": f"Bearer {token}"} if token and target.origin() == self._origin else {}

    def _check(self, response: aiohttp.ClientResponse) -> None:
        """Turn a refusal into an error that says what to do."""
        status = response.status
        if status < 300 or status == 416:
            return
        where = f"{response.url.origin()} answered {status}."
        if status in {401, 403} and response.url.origin() != self._origin:
            raise HubUnreachable(f"{where} The address that the hub gave has expired.")
        if status == 403 or response.headers.get("X-Error-Code") == "GatedRepo":
            raise DownloadError(f"{where} Access is gated: accept the model's terms there, then {self._login()}.")
        if status == 401 and response.headers.get("X-Error-Message") == _BAD_TOKEN:
            raise DownloadError(f"{where} HF_TOKEN was refused: set a valid one.")
        if status in {401, 404}:
            raise _NotFound(f"{where} It is not there or is private: check the name, or {self._login()}.")
        kind = HubUnreachable if status in _PASSING else DownloadError
        raise kind(where, retry_after_s=_retry_after_s(response, self._settings.retry.longest_wait_s))

    def _login(self) -> str:
        return "use another HF_TOKEN" if self._settings.token else "set HF_TOKEN"


def _redirected(current: URL, location: str) -> URL:
    try:
        target = current.join(URL(location, encoded=True))
        target.origin()
    except ValueError as error:
        raise DownloadError(f"{current.host} redirects to {location!r}, which is no address.") from error
    if target.scheme not in {"https", current.scheme}:
        raise DownloadError(f"{current.host} redirects from {current.scheme} to {target.scheme}: refused.")
    return target


def _retry_after_s(response: aiohttp.ClientResponse, longest_s: float) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), longest_s) if value.isascii() and value.isdigit() else None


@contextmanager
def _translated(endpoint: str) -> Iterator[None]:
    """Map what aiohttp raises to our tree; errors of the file system pass through."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ServerTimeoutError) as error:
        raise NoNetwork(f"{endpoint} cannot be reached ({error}): check the network or HF_ENDPOINT.") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise HubUnreachable(f"The connection to {endpoint} broke ({reason}).") from error
