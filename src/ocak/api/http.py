"""The HTTP application: every route, what is public, and the limits. Knows no model and no engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from ocak import __version__
from ocak.api.completions import Completions
from ocak.api.conversations import ConversationAnswer, Conversations, RestoreBody, SaveBody
from ocak.api.docs import Docs
from ocak.api.embedding_wire import EmbeddingAnswer, EmbeddingBody, RerankAnswer, RerankBody
from ocak.api.embeddings import Embeddings
from ocak.api.exchange import BodyLimits, Exchange
from ocak.api.guard import Endpoint, Guard, Handler
from ocak.api.health import Health, HealthAnswer
from ocak.api.models import ModelCard, ModelCards, Models, ModelStatuses
from ocak.api.openai_wire import ChatAnswer, ChatBody, CompletionAnswer, CompletionBody
from ocak.api.openapi import Operation, document
from ocak.api.origins import Origins
from ocak.api.residence import Residences
from ocak.api.tokens import DetokenizeAnswer, DetokenizeBody, TokenizeAnswer, TokenizeBody, Tokens
from ocak.core.status import ModelStatus
from ocak.gateway.gateway import Gateway
from ocak.gateway.keys import KeyRing
from ocak.telemetry.exposition import MetricsPage

CONVERSATION = "/api/v1/models/{key:path}/conversations/{name}"
RERANK_PATHS = ("/v1/rerank", "/v2/rerank", "/rerank")  # what the clients of Cohere, Jina and vLLM ask
RERANK_EXAMPLE = {"query": "Who keeps the fire?", "documents": ["A hearth does.", "Rain falls."], "top_n": 1}
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "What does a hearth do?"}],
        "max_tokens": 64,
        "stream": False,
    },
    "/v1/completions": {"prompt": "A hearth keeps", "max_tokens": 32, "temperature": 0.7},
    "/v1/embeddings": {"input": ["A hearth keeps the fire.", "Who keeps the fire?"]},
    **dict.fromkeys(RERANK_PATHS, RERANK_EXAMPLE),
    "/tokenize": {"prompt": "A hearth keeps the fire."},
    "/detokenize": {"tokens": [1, 2, 3]},
    CONVERSATION: {"messages": [{"role": "user", "content": "What does a hearth do?"}]},
    f"{CONVERSATION}/restore": {},
}


@dataclass(frozen=True, slots=True)
class HttpOptions:
    max_body_bytes: int = 8 * 1024 * 1024
    body_idle_s: float = 30.0  # the longest wait for the next piece of a body
    stall_s: float = 60.0  # a client that reads nothing for so long has left
    drain_s: float = 30.0  # that answers may take to finish when their model is unloaded
    allowed_hosts: tuple[str, ...] = ()  # Host names besides localhost's on a loopback address; "*": any
    state_dir: Path | None = None  # where conversations are saved; None: nowhere
    cors_origins: tuple[str, ...] = ()  # web pages that may call, such as "https://chat.example.com"


@dataclass(frozen=True, slots=True)
class Entry:
    """A route: what the document says of it, and who answers."""

    operation: Operation
    handler: Handler


class Welcome(msgspec.Struct, frozen=True):
    """What `/` says."""

    name: str = "ocak"
    version: str = __version__
    docs: str = "/docs"
    models: str = "/v1/models"


def create_app(gateway: Gateway, *, keys: KeyRing, options: HttpOptions | None = None) -> ASGIApp:
    """Return the ASGI application that serves `gateway`."""
    options = options or HttpOptions()
    origins = Origins(options.allowed_hosts, options.cors_origins, trusts_pages=not keys.is_open)
    limits = BodyLimits(options.max_body_bytes, options.body_idle_s)
    return Guard(Router(routes(gateway, keys, options), redirect_slashes=False), origins, limits)


def routes(gateway: Gateway, keys: KeyRing, options: HttpOptions) -> list[Route]:
    """Return every route, the busiest first."""
    entries = [*_generation(gateway, options), *_models(gateway, options), *_conversations(gateway, options)]
    entries += _operations(gateway)
    entries += _docs([entry.operation for entry in entries])
    return [_route(entry, keys) for entry in entries]


def _route(entry: Entry, keys: KeyRing) -> Route:
    endpoint = Endpoint(entry.handler, keys, entry.operation.is_public)
    return Route(entry.operation.path, endpoint, methods=[entry.operation.method], name=entry.operation.path)


def _generation(gateway: Gateway, options: HttpOptions) -> Iterable[Entry]:
    completions = Completions(gateway, options.stall_s)
    embeddings = Embeddings(gateway, options.stall_s)
    tokens = Tokens(gateway, options.stall_s)
    yield Entry(_post("/v1/chat/completions", "Answer a conversation.", ChatBody, ChatAnswer), completions.chat)
    yield Entry(
        _post("/v1/completions", "Continue a text.", CompletionBody, CompletionAnswer), completions.completion
    )
    yield Entry(
        _post("/v1/embeddings", "Turn texts into vectors.", EmbeddingBody, EmbeddingAnswer), embeddings.embed
    )
    for path in RERANK_PATHS:
        yield Entry(_post(path, "Order documents by a query.", RerankBody, RerankAnswer), embeddings.rerank)
    yield Entry(_post("/tokenize", "Turn text into tokens.", TokenizeBody, TokenizeAnswer), tokens.tokenize)
    yield Entry(
        _post("/detokenize", "Turn tokens into text.", DetokenizeBody, DetokenizeAnswer), tokens.detokenize
    )


def _models(gateway: Gateway, options: HttpOptions) -> Iterable[Entry]:
    models, residences = Models(gateway), Residences(gateway, options.drain_s, options.stall_s)
    yield Entry(_get("/v1/models", "The models that can be asked.", ModelCards), models.list)
    yield Entry(_get("/v1/models/{id:path}", "One model.", ModelCard), models.retrieve)
    yield Entry(_get("/models/status", "State, memory and counters of each model.", ModelStatuses), models.status)
    for verb, summary, handler in (
        ("load", "Load a model, and answer when it is ready; ?wait=false answers at once.", residences.load),
        ("unload", "Unload a model once its answers are finished.", residences.unload),
        ("pin", "Never unload a model for another, or for being idle.", residences.pin),
        ("unpin", "Let a model go when its turn comes.", residences.unpin),
    ):
        operation = Operation("POST", f"/api/v1/models/{{key:path}}/{verb}", summary, False, None, ModelStatus)
        yield Entry(operation, handler)


def _conversations(gateway: Gateway, options: HttpOptions) -> Iterable[Entry]:
    conversations = Conversations(gateway, options.state_dir, options.stall_s)
    restore = f"{CONVERSATION}/restore"
    yield Entry(
        _post(restore, "Have a saved one cached again.", RestoreBody, ConversationAnswer), conversations.restore
    )
    yield Entry(
        _post(CONVERSATION, "Save what is cached of a conversation.", SaveBody, ConversationAnswer),
        conversations.save,
    )
    delete = Operation("DELETE", CONVERSATION, "Delete a saved one.", False, None, ConversationAnswer)
    yield Entry(delete, conversations.delete)


def _operations(gateway: Gateway) -> Iterable[Entry]:
    health = Health(gateway)
    page = MetricsPage(lambda: (model.provider.status() for model in gateway.models))
    yield Entry(_public("/health", "Whether requests would be answered.", HealthAnswer), health.ready)
    yield Entry(_public("/health/live", "Whether the process serves.", HealthAnswer), health.live)
    yield Entry(_public("/health/ready", "The same as /health; ?model= asks one.", HealthAnswer), health.ready)
    yield Entry(_public("/health/startup", "Whether every model has come up.", HealthAnswer), health.startup)
    metrics = Operation("GET", "/metrics", "Metrics for Prometheus.", False, answer_type="text/plain")
    yield Entry(metrics, _metrics(page))


def _docs(operations: list[Operation]) -> Iterable[Entry]:
    docs = Docs(lambda: document(operations))
    yield Entry(_public("/", "The name of the server.", Welcome), _welcome)
    yield Entry(_public("/docs", "This page."), docs.page)
    yield Entry(_public("/docs/{file}", "What the page is made of."), docs.file)
    yield Entry(_public("/openapi.json", "The API as a document."), docs.openapi)


def _metrics(page: MetricsPage) -> Handler:
    async def metrics(exchange: Exchange) -> None:
        text, kind = page.render(exchange.headers.get(b"accept", b"").decode("latin-1"))
        await exchange.answer(text, content_type=kind.encode())

    return metrics


async def _welcome(exchange: Exchange) -> None:
    await exchange.answer(msgspec.json.encode(Welcome()))


def _post(path: str, summary: str, body: type[msgspec.Struct], answer: type[msgspec.Struct]) -> Operation:
    return Operation("POST", path, summary, False, body, answer, example=EXAMPLES[path])


def _get(path: str, summary: str, answer: type[msgspec.Struct]) -> Operation:
    return Operation("GET", path, summary, False, None, answer)


def _public(path: str, summary: str, answer: type[msgspec.Struct] | None = None) -> Operation:
    return Operation("GET", path, summary, True, None, answer)
