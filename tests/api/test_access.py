"""Who may call what: keys, hosts, pages of other sites."""

import pytest
from starlette.routing import Route

from ocak.api.guard import Endpoint
from ocak.api.http import HttpOptions, routes
from ocak.gateway.gateway import Gateway
from ocak.gateway.keys import KeyRing
from tests.api.serving import raw, serving_echo

PUBLIC = {
    "/",
    "/docs",
    "/docs/{file}",
    "/openapi.json",
    "/health",
    "/health/live",
    "/health/ready",
    "/health/startup",
}
ALL_ROUTES = routes(Gateway([]), KeyRing(["key"]), HttpOptions())
GUARDED = [route for route in ALL_ROUTES if route.path not in PUBLIC]


def test_every_route_is_guarded_or_named_public():
    for route in ALL_ROUTES:
        assert isinstance(route, Route)
        assert isinstance(route.app, Endpoint)
        assert route.app.is_public == (route.path in PUBLIC), route.path
    assert {route.path for route in ALL_ROUTES} >= PUBLIC


@pytest.mark.parametrize("key", [None, "wrong", "", "right ", "RIGHT", "ri\u00e9ght"])
async def test_no_guarded_route_answers_without_the_right_key(key):
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with serving_echo(keys=["rightkey"]) as served:
        for route in GUARDED:
            (method,) = route.methods - {"HEAD"}
            path = route.path.replace("{id:path}", "echo")
            async with served.http.request(method, path, headers=headers, json={"prompt": "x"}) as answer:
                assert answer.status == 401, route.path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert (await answer.json())["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "path",
    [
        "//metrics",
        "/metrics/",
        "/%6detrics",
        "/health/../metrics",
        "/METRICS",
        "http://localhost/metrics",
        "/metrics?x",
    ],
)
async def test_no_spelling_of_a_path_slips_past_the_key(path):
    async with serving_echo(keys=["key"]) as served:
        status, answer = await raw(served, f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        assert (status, "error" in answer) in ((401, True), (404, True))


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer rightkey"}, {"authorization": "bearer  rightkey"}, {"x-api-key": "rightkey"}],
)
async def test_the_right_key_opens(headers):
    keys = ["other", "rightkey"]
    async with serving_echo(keys=keys) as served, served.http.get("/v1/models", headers=headers) as answer:
        assert answer.status == 200


async def test_public_routes_say_nothing_of_the_models_to_strangers():
    async with serving_echo(keys=["key"]) as served:
        served.echo.state, served.echo.error = "failed", "/secret/path is missing"
        for path in (
            "/health",
            "/health/ready",
            "/health/startup",
            "/health/ready?model=echo",
            "/health?model=no",
        ):
            async with served.http.get(path) as answer:
                text = await answer.text()
                assert "echo" not in text and "secret" not in text
        async with served.http.get("/health", headers={"x-api-key": "key"}) as answer:
            assert (await answer.json())["models"]["echo"]["error"] == "/secret/path is missing"


@pytest.mark.parametrize(
    "host", ["evil.com", "evil.com:80", "localhost.evil.com", "127.0.0.1.nip.io", "", "[::2]"]
)
async def test_a_strange_host_is_refused_on_a_loopback_address(served, host):
    async with served.http.get("/v1/models", headers={"host": host}) as answer:
        assert answer.status == 421
        assert (await answer.json())["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "[::1]:80", "box.local:1"])
async def test_known_hosts_are_welcome(host):
    options = HttpOptions(allowed_hosts=("box.local",))
    async with serving_echo(options=options) as served, get_as(served, host) as answer:
        assert answer.status == 200


async def test_any_host_may_be_allowed():
    options = HttpOptions(allowed_hosts=("*",))
    async with serving_echo(options=options) as served, get_as(served, "any.where") as answer:
        assert answer.status == 200


def get_as(served, host):
    return served.http.get("/v1/models", headers={"host": host})


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "http://localhost:1", "garbage"])
async def test_a_page_of_another_site_cannot_post(served, origin):
    async with served.http.post("/v1/completions", data="{}", headers={"origin": origin}) as answer:
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers


async def test_a_page_of_this_server_can_post(served):
    async with served.http.post("/v1/completions", json={"prompt": "x"}, headers={"origin": served.url}) as answer:
        assert answer.status == 200


async def test_a_page_on_the_list_is_named_and_never_with_credentials():
    page = "https://chat.example.com"
    async with serving_echo(keys=["key"], options=HttpOptions(cors_origins=(page,))) as served:
        preflight = {"origin": page, "access-control-request-method": "POST"}
        async with served.http.options("/v1/completions", headers=preflight) as answer:
            assert answer.status == 204
            assert answer.headers["access-control-allow-origin"] == page
            assert "authorization" in answer.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        async with served.http.get("/v1/models", headers={"origin": page}) as answer:
            assert answer.status == 401
            assert answer.headers["access-control-allow-origin"] == page
        preflight["origin"] = "https://evil.com"
        async with served.http.options("/v1/completions", headers=preflight) as answer:
            assert answer.status == 405
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("given", ["x" * 129, "a b", "ü", "", "a\tb"])
async def test_an_odd_request_id_is_replaced(served, given):
    async with served.http.get("/nope", headers={"x-request-id": given}) as answer:
        assert answer.headers["x-request-id"] != given
        assert len(answer.headers["x-request-id"]) == 32
