"""GraphQL over HTTP: status codes, content negotiation, and protection against requests from pages of other sites."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import strawberry
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from headwater.errors import PublicError
from headwater.graphql.engine import Engine
from headwater.graphql.http import GraphQLHTTP
from headwater.graphql.media import preferred

JSON = "application/json"
GRAPHQL = "application/graphql-response+json"
MAX_BODY = 2_000

renamed: list[str] = []


@strawberry.type
class Query:
    @strawberry.field
    def hello(self, name: str = "world") -> str:
        return f"hello {name}"

    @strawberry.field
    def context(self, info: strawberry.Info[Any, Any]) -> str:
        return str(info.context)

    @strawberry.field
    def broken(self) -> str | None:
        raise RuntimeError("secret")

    @strawberry.field
    def broken_root(self) -> str:
        raise RuntimeError("secret")


@strawberry.type
class Mutation:
    @strawberry.mutation
    def rename(self, name: str) -> str:
        renamed.append(name)
        return name


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def ticks(self) -> AsyncGenerator[int, None]:
        yield 1


class Unauthenticated(PublicError):
    """The request needs credentials."""

    code = "UNAUTHENTICATED"


class Forbidden(PublicError):
    """The credentials do not allow the request."""

    code = "FORBIDDEN"


def context(connection: HTTPConnection, payload: Mapping[str, object] | None) -> object:
    """Admit or refuse a request by its Authorization header."""
    match connection.headers.get("authorization"):
        case "nobody":
            raise Unauthenticated("Who are you?")
        case "stranger":
            raise Forbidden("Not you.")
        case "bug":
            raise RuntimeError("secret")
        case who:
            return f"{who} {payload}"


async def explorer(request: Request) -> Response:
    return HTMLResponse("<title>Explorer</title>")


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    renamed.clear()
    engine = Engine(strawberry.Schema(Query, Mutation, Subscription))
    endpoint = GraphQLHTTP(engine, context, max_body=MAX_BODY, explorer=explorer)
    transport = httpx.ASGITransport(Starlette(routes=[Route("/graphql", endpoint)]))
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
        yield client


async def post(client: httpx.AsyncClient, body: object, accept: str = JSON, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fixed = {"content-type": "application/json", "accept": accept}
    return await client.post("/graphql", content=content, headers={**fixed, **_names(headers)})


async def get(
    client: httpx.AsyncClient, accept: str = JSON, parameters: object = None, **headers: str
) -> httpx.Response:
    query = urlencode(parameters or {})  # type: ignore[arg-type]
    return await client.get(f"/graphql?{query}", headers={"accept": accept, "x-headwater": "1", **_names(headers)})


def _names(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def code(response: httpx.Response) -> str:
    (error,) = response.json()["errors"]
    return str(error["extensions"]["code"])


MALFORMED = {
    "not JSON": b"{",
    "not UTF-8": b'{"query": "\xff"}',
    "nested too deep": b"[" * 1_900,
    "empty": b"",
    "a string": b'"{ hello }"',
    "null": b"null",
    "no query": b"{}",
    "query null": b'{"query": null}',
    "query a number": b'{"query": 1}',
    "operationName a number": b'{"query": "{ hello }", "operationName": 1}',
    "variables a list": b'{"query": "{ hello }", "variables": []}',
    "variables a string": b'{"query": "{ hello }", "variables": "{}"}',
    "extensions a list": b'{"query": "{ hello }", "extensions": []}',
    "a batch": b'[{"query": "{ hello }"}]',
}

REFUSED = {
    "does not parse": {"query": "{ hello"},
    "does not validate": {"query": "{ nothing }"},
    "operation not found": {"query": "query A { hello }", "operationName": "B"},
    "which operation": {"query": "query A { hello } query B { hello }"},
    "variables do not coerce": {"query": "query ($n: String!) { hello(name: $n) }", "variables": {"n": 1}},
}

EXECUTED: dict[str, tuple[dict[str, object], object]] = {
    "without errors": ({"query": "{ hello }"}, {"hello": "hello world"}),
    "variables": ({"query": "query ($n: String!) { hello(name: $n) }", "variables": {"n": "x"}}, {"hello": "hello x"}),
    "operation name": (
        {"query": "query A { hello } query B { a: hello }", "operationName": "A"},
        {"hello": "hello world"},
    ),
    "unknown extensions": ({"query": "{ hello }", "extensions": {"new": [1]}}, {"hello": "hello world"}),
    "unknown entries": ({"query": "{ hello }", "id": 7}, {"hello": "hello world"}),
    "with errors": ({"query": "{ broken hello }"}, {"broken": None, "hello": "hello world"}),
    "data null": ({"query": "{ brokenRoot }"}, None),
}

both_media_types = pytest.mark.parametrize("accept", [JSON, GRAPHQL])


@both_media_types
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_body_is_400(client: httpx.AsyncClient, body: bytes, accept: str) -> None:
    response = await post(client, body, accept)
    assert (response.status_code, code(response)) == (400, "BAD_REQUEST")
    assert response.headers["content-type"] == f"{accept}; charset=utf-8"


@pytest.mark.parametrize(("accept", "status"), [(JSON, 200), (GRAPHQL, 400)])
@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
async def test_the_response_to_a_request_refused_before_execution_has_no_data(
    client: httpx.AsyncClient, body: dict[str, object], accept: str, status: int
) -> None:
    response = await post(client, body, accept)
    assert response.status_code == status
    assert response.json().keys() == {"errors"}
    assert response.headers["content-type"] == f"{accept}; charset=utf-8"


@both_media_types
@pytest.mark.parametrize(("body", "data"), EXECUTED.values(), ids=EXECUTED.keys())
async def test_an_executed_operation_is_200_even_with_errors(
    client: httpx.AsyncClient, body: object, data: object, accept: str
) -> None:
    response = await post(client, body, accept)
    assert (response.status_code, response.json()["data"]) == (200, data)
    assert response.headers["content-type"] == f"{accept}; charset=utf-8"
    assert (response.headers["vary"], response.headers["cache-control"]) == ("accept", "no-store")


@both_media_types
@pytest.mark.parametrize(
    ("who", "status", "expected"), [("nobody", 401, "UNAUTHENTICATED"), ("stranger", 403, "FORBIDDEN")]
)
async def test_a_context_that_refuses_admission_is_401_or_403(
    client: httpx.AsyncClient, who: str, status: int, expected: str, accept: str
) -> None:
    response = await post(client, {"query": "{ hello }"}, accept, authorization=who)
    assert (response.status_code, code(response)) == (status, expected)
    assert response.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


async def test_the_error_of_a_context_that_fails_is_masked(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await post(client, {"query": "{ hello }"}, authorization="bug")
    assert (response.status_code, code(response)) == (500, "INTERNAL")
    assert "secret" not in response.text
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["headwater.graphql.result"]


async def test_the_context_comes_from_the_request_and_has_no_init_payload(client: httpx.AsyncClient) -> None:
    response = await post(client, {"query": "{ context }"}, authorization="me")
    assert response.json() == {"data": {"context": "me None"}}


@both_media_types
async def test_a_mutation_by_get_is_405_and_never_run(client: httpx.AsyncClient, accept: str) -> None:
    response = await get(client, accept, {"query": 'mutation { rename(name: "x") }'})
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert renamed == []


async def test_a_mutation_chosen_by_name_is_not_run_by_get_either(client: httpx.AsyncClient) -> None:
    document = 'query A { hello } mutation B { rename(name: "x") }'
    assert (await get(client, parameters={"query": document, "operationName": "B"})).status_code == 405
    assert (await get(client, parameters={"query": document, "operationName": "A"})).status_code == 200
    assert renamed == []


async def test_a_mutation_by_post_is_run(client: httpx.AsyncClient) -> None:
    assert (await post(client, {"query": 'mutation { rename(name: "x") }'})).json() == {"data": {"rename": "x"}}
    assert renamed == ["x"]


@pytest.mark.parametrize("accept", ["text/plain", "image/*", f"{JSON};q=0", f"{JSON};q=0, {GRAPHQL};q=0", "*/*;q=0"])
async def test_no_acceptable_media_type_is_406(client: httpx.AsyncClient, accept: str) -> None:
    response = await post(client, {"query": "{ hello }"}, accept)
    assert (response.status_code, code(response)) == (406, "NOT_ACCEPTABLE")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (JSON, JSON),
        (GRAPHQL, GRAPHQL),
        (GRAPHQL.upper(), GRAPHQL),
        (f"{JSON}; charset=utf-8", JSON),
        (f"{GRAPHQL}, {JSON};q=0.9", GRAPHQL),
        (f"{GRAPHQL};q=0.8, {JSON};q=0.9", JSON),
        (f"{JSON}, {GRAPHQL}", JSON),
        (f"{GRAPHQL}, {JSON}", GRAPHQL),
        (f"*/*, {GRAPHQL}", GRAPHQL),
        (f"*/*;q=0.1, {JSON};q=0", GRAPHQL),
        (f"{GRAPHQL};q=high, {JSON};q=0.1", JSON),
        ("text/event-stream, multipart/mixed, */*;q=0.1", JSON),
        ("text/html", None),
        (f"{JSON};q=0", None),
        (f"{JSON};q=2", None),
        ("json", None),
    ],
)
def test_the_accept_header_chooses_the_media_type_of_the_response(accept: str, chosen: str | None) -> None:
    assert preferred(accept, (JSON, GRAPHQL)) == chosen


async def test_a_request_without_an_accept_header_gets_json(client: httpx.AsyncClient) -> None:
    del client.headers["accept"]
    headers = {"content-type": JSON}
    response = await client.post("/graphql", content=b'{"query": "{ hello }"}', headers=headers)
    assert response.headers["content-type"] == f"{JSON}; charset=utf-8"


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_other_methods_are_405(client: httpx.AsyncClient, method: str) -> None:
    response = await client.request(method, "/graphql")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/graphql",
        "application/json; charset=iso-8859-1",
        "application/json, text/plain",
        "",
    ],
)
async def test_a_body_that_is_not_utf8_json_is_415(client: httpx.AsyncClient, content_type: str) -> None:
    response = await post(client, {"query": 'mutation { rename(name: "x") }'}, content_type=content_type)
    assert (response.status_code, code(response)) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert renamed == []


async def test_a_compressed_body_is_415(client: httpx.AsyncClient) -> None:
    assert (await post(client, {"query": "{ hello }"}, content_encoding="gzip")).status_code == 415


async def test_two_content_types_are_415(endpoint: GraphQLHTTP) -> None:
    body = Body(b'{"query": "{ hello }"}')
    await body.post(endpoint, (b"content-type", b"text/plain"))
    assert body.status == 415


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"'])
async def test_a_content_type_may_name_utf8_as_its_charset(client: httpx.AsyncClient, charset: str) -> None:
    assert (
        await post(client, {"query": "{ hello }"}, content_type=f"application/json; charset={charset}")
    ).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-headwater": ""},
        {"graphql-require-preflight": "1"},
        {"apollo-require-preflight": "1"},
        {"sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "none"},
    ],
    ids=str,
)
async def test_a_get_that_no_other_site_can_send_is_executed(
    client: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await client.get("/graphql?query={hello}", headers=headers)).json() == {"data": {"hello": "hello world"}}


@pytest.mark.parametrize("headers", [{}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}], ids=str)
async def test_a_get_that_another_site_can_send_is_403(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await client.get("/graphql?query={hello}", headers=headers)
    assert (response.status_code, code(response)) == (403, "CSRF")


async def test_a_get_may_have_query_variables_operation_name_and_extensions(client: httpx.AsyncClient) -> None:
    parameters = {
        "query": "query A { hello } query B($n: String!) { hello(name: $n) }",
        "operationName": "B",
        "variables": '{"n": "x"}',
        "extensions": '{"new": 1}',
        "unrelated": "1",
    }
    assert (await get(client, parameters=parameters)).json() == {"data": {"hello": "hello x"}}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"query": "{ hello }", "variables": "{"},
        {"query": "{ hello }", "variables": "[]"},
        {"query": "{ hello }", "extensions": "1"},
        [("query", "{ hello }"), ("query", "{ context }")],
    ],
    ids=str,
)
@both_media_types
async def test_a_malformed_get_is_400(client: httpx.AsyncClient, parameters: object, accept: str) -> None:
    response = await get(client, accept, parameters)
    assert (response.status_code, code(response)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(("accept", "status"), [(JSON, 200), (GRAPHQL, 400)])
async def test_a_get_with_an_invalid_document_has_the_status_of_its_media_type(
    client: httpx.AsyncClient, accept: str, status: int
) -> None:
    assert (await get(client, accept, {"query": "{ nothing }"})).status_code == status


@both_media_types
async def test_an_empty_parameter_of_a_get_counts_as_left_out(client: httpx.AsyncClient, accept: str) -> None:
    parameters = {"query": "{ hello }", "operationName": "", "variables": "", "extensions": ""}
    response = await get(client, accept, parameters)
    assert (response.status_code, response.json()) == (200, {"data": {"hello": "hello world"}})
    twice = await client.get("/graphql?query={hello}&variables=&variables={}", headers={"x-headwater": "1"})
    assert (twice.status_code, code(twice)) == (400, "BAD_REQUEST")


@both_media_types
async def test_an_empty_query_does_not_count_as_left_out(client: httpx.AsyncClient, accept: str) -> None:
    response = await get(client, accept, {"query": ""})
    assert response.json()["errors"][0]["extensions"]["code"] == "GRAPHQL_PARSE_FAILED"


@both_media_types
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_subscription_over_http_is_refused_with_a_hint_at_websockets(
    client: httpx.AsyncClient, method: str, accept: str
) -> None:
    body = {"query": "subscription { ticks }"}
    response = await get(client, accept, body) if method == "GET" else await post(client, body, accept)
    assert (response.status_code, code(response)) == (400, "SUBSCRIPTION_NEEDS_WEBSOCKET")


async def test_a_body_at_the_limit_is_read(client: httpx.AsyncClient) -> None:
    body = b'{"query": "{ hello }"}'
    assert (await post(client, body + b" " * (MAX_BODY - len(body)))).status_code == 200


async def test_a_body_over_the_limit_is_413(client: httpx.AsyncClient) -> None:
    response = await post(client, b" " * (MAX_BODY + 1))
    assert (response.status_code, code(response)) == (413, "BODY_TOO_LARGE")
    assert response.headers["connection"] == "close"


class Body:
    """The client's side of one ASGI request, in chunks. It counts how many of them were read.

    endless: after the last chunk nothing follows, not even a disconnect.
    """

    def __init__(self, *chunks: bytes, endless: bool = False) -> None:
        self._chunks = iter(chunks)
        self._endless = endless
        self.read = 0
        self.status: int | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.answer = b""

    async def receive(self) -> dict[str, Any]:
        chunk = next(self._chunks, None)
        if chunk is None:
            if self._endless:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        self.read += 1
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.headers += message.get("headers", [])
        self.answer += message.get("body", b"")

    async def post(self, endpoint: GraphQLHTTP, *headers: tuple[bytes, bytes]) -> None:
        fixed = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": [*fixed, *headers]}
        await endpoint(scope, self.receive, self.send)


@pytest.fixture
def endpoint() -> GraphQLHTTP:
    return GraphQLHTTP(Engine(strawberry.Schema(Query)), context, max_body=100)


async def test_a_chunked_body_over_the_limit_is_not_read_to_its_end(endpoint: GraphQLHTTP) -> None:
    body = Body(*[b" " * 60] * 10)
    await body.post(endpoint)
    assert (body.status, body.read) == (413, 2)


async def test_a_body_announced_as_too_large_is_not_read_at_all(endpoint: GraphQLHTTP) -> None:
    body = Body(b" " * 101)
    await body.post(endpoint, (b"content-length", b"101"))
    assert (body.status, body.read) == (413, 0)


async def test_a_body_that_does_not_arrive_in_time_is_408() -> None:
    endpoint = GraphQLHTTP(Engine(strawberry.Schema(Query)), context, body_seconds=0.05)
    body = Body(b'{"query": ', endless=True)
    async with asyncio.timeout(10):
        await body.post(endpoint)
    assert (body.status, body.read) == (408, 1)
    assert b"connection" in dict(body.headers)
    assert json.loads(body.answer)["errors"][0]["extensions"] == {"code": "BODY_TOO_SLOW"}


async def test_no_response_is_sent_to_a_client_that_has_disconnected(endpoint: GraphQLHTTP) -> None:
    body = Body(b"{")
    await body.post(endpoint)
    assert body.status is None


async def test_a_browser_gets_the_explorer(client: httpx.AsyncClient) -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    assert (await client.get("/graphql", headers={"accept": browser})).text == "<title>Explorer</title>"


@pytest.mark.parametrize(("method", "url"), [("GET", "/graphql?query={hello}"), ("POST", "/graphql")])
async def test_only_a_get_without_a_query_is_for_the_explorer(client: httpx.AsyncClient, method: str, url: str) -> None:
    assert (await client.request(method, url, headers={"accept": "text/html"})).status_code == 406


async def test_a_get_that_does_not_accept_html_does_not_get_the_explorer(client: httpx.AsyncClient) -> None:
    assert code(await client.get("/graphql", headers={"accept": "*/*", "x-headwater": "1"})) == "BAD_REQUEST"
