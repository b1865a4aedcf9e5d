"""`/docs`: Swagger UI out of an installed package, without a network; `/openapi.json`: what it shows.

The page runs its own scripts alone and may call this server alone. Files are read at the first request for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from ocak.api.errors import Header, PathNotFound
from ocak.api.exchange import Exchange

FILES = {
    "swagger-ui.css": b"text/css; charset=utf-8",
    "swagger-ui-bundle.js": b"text/javascript; charset=utf-8",
    "favicon-32x32.png": b"image/png",
}
START = b"""window.onload = () => SwaggerUIBundle({
  url: "openapi.json", dom_id: "#ui", presets: [SwaggerUIBundle.presets.apis], validatorUrl: null,
});
"""
PAGE = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>ocak API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
HEADERS: tuple[Header, ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),
)


class Docs:
    def __init__(self, document: Callable[[], bytes]) -> None:
        self._document = cache(document)

    async def openapi(self, exchange: Exchange) -> None:
        await exchange.answer(self._document())

    async def page(self, exchange: Exchange) -> None:
        await exchange.answer(PAGE, content_type=b"text/html; charset=utf-8", headers=HEADERS)

    async def file(self, exchange: Exchange) -> None:
        name = exchange.path_parameter("file")
        if name == "start.js":
            data, kind = START, FILES["swagger-ui-bundle.js"]
        elif name in FILES:
            data, kind = _read(name), FILES[name]
        else:
            raise PathNotFound(f"there is no file {name[:100]!r} in /docs")
        await exchange.answer(data, content_type=kind, headers=((b"cache-control", b"max-age=3600"), *HEADERS))


@cache
def _read(name: str) -> bytes:
    from swagger_ui_bundle import swagger_ui_path  # a page that few open: not worth its import at start

    return (Path(swagger_ui_path) / name).read_bytes()
