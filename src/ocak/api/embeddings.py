"""`/v1/embeddings` and `/v1/rerank`: from the body to the vectors, or the order of documents.

Each input is a request of its own to the gateway, a bounded number of them at a time; the engine puts many into
one pass. The first failure ends them all.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence

import msgspec

from ocak.api.choices import UNKNOWN_SLOTS, run_all
from ocak.api.embedding_wire import (
    DocumentBody,
    EmbeddingAnswer,
    EmbeddingBody,
    EmbeddingItem,
    EmbeddingUsage,
    RerankAnswer,
    RerankBody,
    RerankResult,
)
from ocak.api.exchange import Exchange
from ocak.api.json_body import decode
from ocak.api.presence import present
from ocak.api.prompt_shapes import TextField
from ocak.api.unsupported import check_others, ignored_header
from ocak.core.embedding import Embedded, EmbedInput, EmbedRequest, Pair, floats
from ocak.core.errors import InvalidRequest
from ocak.core.limits import MAX_INPUTS, check_text
from ocak.core.request import DEFAULT_TENANT
from ocak.gateway.gateway import Gateway

VECTORS_IN_A_TURN = 16
LISTS = ("input", "documents")
INPUT = TextField("input", MAX_INPUTS)


class Embeddings:
    """Handlers of both paths."""

    def __init__(self, gateway: Gateway, stall_s: float) -> None:
        self._gateway = gateway
        self._stall_s = stall_s

    async def embed(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), EmbeddingBody)
        ignored = check_others(others)
        made = await self._run(exchange, body, INPUT.read(body.input), body.dimensions)
        answer = EmbeddingAnswer(
            data=await _items(made, _base64 if body.encoding_format == "base64" else _numbers),
            model=body.model or exchange.note.model or "",
            usage=_usage(exchange, made),
        )
        await exchange.answer(msgspec.json.encode(answer), headers=ignored_header(ignored))

    async def rerank(self, exchange: Exchange) -> None:
        body, others = decode(await exchange.body(), RerankBody)
        ignored = check_others(others)
        texts = _documents(body)
        made = await self._run(exchange, body, [Pair(body.query, text) for text in texts], None)
        scores = [floats(each.vector)[0] for each in made]
        order = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n]
        answer = RerankAnswer(
            id=f"rerank-{exchange.request_id}",
            model=body.model or exchange.note.model or "",
            results=[_result(i, scores[i], texts[i] if body.return_documents else None) for i in order],
            usage=_usage(exchange, made),
        )
        await exchange.answer(msgspec.json.encode(answer), headers=ignored_header(ignored))

    async def _run(
        self,
        exchange: Exchange,
        body: EmbeddingBody | RerankBody,
        inputs: Sequence[EmbedInput],
        dimensions: int | None,
    ) -> list[Embedded]:
        key = exchange.note.model = self._gateway.resolve(body.model).key
        requests = [
            EmbedRequest(
                id=exchange.request_id,
                model=key,
                input=each,
                dimensions=dimensions,
                tenant=exchange.tenant or DEFAULT_TENANT,
                priority=body.priority or 0,
                is_patient=i > 0,
            )
            for i, each in enumerate(inputs)
        ]
        async with present(exchange, self._stall_s):
            if len(requests) == 1:
                return [await self._gateway.embed(requests[0])]
            return await run_all(self._ask, list(enumerate(requests)), self._places(key))

    async def _ask(self, numbered: tuple[int, EmbedRequest]) -> Embedded:
        """Embed one of several inputs; what is wrong with it is told with its place in the list."""
        index, request = numbered
        try:
            return await self._gateway.embed(request)
        except InvalidRequest as error:
            if error.param in LISTS:
                place = f"{error.param}[{index}]"
                raise type(error)(f"{place}: {error.message}", param=place) from error
            raise

    def _places(self, key: str) -> int:
        """How many inputs of one list may be in the queue at once: a pass's worth."""
        model = self._gateway.resolve(key)
        return min(model.provider.status().engine.slots or UNKNOWN_SLOTS, model.admission.patient_places)


def _documents(body: RerankBody) -> list[str]:
    """Return the texts, checked."""
    if not body.query:
        raise InvalidRequest("query is empty: send the question that the documents may answer", param="query")
    if not 1 <= len(body.documents) <= MAX_INPUTS:
        raise InvalidRequest(
            f"documents holds {len(body.documents)} texts; send 1 to {MAX_INPUTS}", param="documents"
        )
    if body.top_n is not None and body.top_n < 1:
        raise InvalidRequest(f"top_n must be 1 or more, not {body.top_n}; leave it out for all", param="top_n")
    check_text(body.query, "query")
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    for i, text in enumerate(texts):
        check_text(text, f"documents[{i}]")
    return texts


def _result(index: int, score: float, text: str | None) -> RerankResult:
    return RerankResult(index, score, None if text is None else DocumentBody(text))


def _usage(exchange: Exchange, made: Sequence[Embedded]) -> EmbeddingUsage:
    tokens = sum(each.usage.prompt_tokens for each in made)
    exchange.note.prompt_tokens = tokens
    return EmbeddingUsage(tokens, tokens)


async def _items(made: Sequence[Embedded], write: Callable[[bytes], bytes]) -> list[EmbeddingItem]:
    """Write the vectors; a long list takes a second, in which others have their turns."""
    items: list[EmbeddingItem] = []
    for index, each in enumerate(made):
        items.append(EmbeddingItem(index=index, embedding=msgspec.Raw(write(each.vector))))
        if index % VECTORS_IN_A_TURN == VECTORS_IN_A_TURN - 1:
            await asyncio.sleep(0)
    return items


def _numbers(vector: bytes) -> bytes:
    return msgspec.json.encode(floats(vector))


def _base64(vector: bytes) -> bytes:
    return b'"%b"' % base64.b64encode(vector)
