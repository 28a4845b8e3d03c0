"""The head and the body of a request have a size limit and a deadline each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import strawberry
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from tests.support.raw import FAR_TOO_MUCH, Serving, serving
from websockets.asyncio.client import connect

from headwater.graphql.engine import Engine
from headwater.graphql.http import GraphQLHTTP
from headwater.server.request_head import HEAD_SECONDS, LARGEST_HEAD

PIECE = 16 * 1024


@dataclass
class Served(Serving):
    """release: `/slow` answers when it is set. left: set when a client disconnected during its body."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def served(head_seconds: float = HEAD_SECONDS) -> AsyncIterator[Served]:
    release, left = asyncio.Event(), asyncio.Event()

    async def page(request: Request) -> Response:
        try:
            return PlainTextResponse(f"{len(await request.body())} bytes")
        except ClientDisconnect:
            left.set()
            return Response()

    async def early(request: Request) -> Response:
        return PlainTextResponse("seen enough")

    async def slow(request: Request) -> Response:
        await release.wait()
        return PlainTextResponse("at last")

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    def no_context(connection: HTTPConnection, init: Mapping[str, object] | None) -> None:
        return None

    routes = [
        Route("/", page, methods=["GET", "POST"]),
        Route("/early", early, methods=["POST"]),
        Route("/slow", slow),
        Route("/graphql", GraphQLHTTP(Engine(strawberry.Schema(Query)), no_context, body_seconds=0.2)),
        WebSocketRoute("/socket", socket),
    ]
    async with serving(Starlette(routes=routes), head_seconds) as server:
        yield Served(server.port, server.clients, release, left)


@strawberry.type
class Query:
    nothing: str | None = None


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
GRAPHQL = b"POST /graphql HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_a_head_that_fits_is_answered() -> None:
    async with served() as server:
        client = await server.client()
        for _ in range(2):  # each has the whole bound
            client.send(GET, b"X-A: ", b"a" * (LARGEST_HEAD - 200), b"\r\n\r\n")
            assert await client.answer() == (200, b"0 bytes")


@pytest.mark.parametrize(
    "sent, status, code",
    [
        (GET + b"X-A: " + b"a" * LARGEST_HEAD + b"\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
        (GET + b"X-A: b\r\n" * (LARGEST_HEAD // 8) + b"\r\n", 431, "HEADERS_TOO_LARGE"),
        (b"GET /?q=" + b"a" * LARGEST_HEAD + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414, "URI_TOO_LONG"),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_that_is_too_large_is_refused(sent: bytes, status: int, code: str, before: int) -> None:
    async with served() as server:
        client = await server.client()
        for _ in range(before):
            client.send(GET, b"\r\n")
            assert (await client.answer())[0] == 200
        client.send(sent)
        got, body = await client.answer()
        (error,) = json.loads(body)["errors"]
        assert (got, error["extensions"]) == (status, {"code": code})
        assert await client.closed() == b""


@pytest.mark.parametrize(
    "start, piece",
    [
        (GET + b"X-A: ", b"a" * PIECE),
        (GET, b"X-A: b\r\n" * (PIECE // 8)),
        (b"GET /?query=", b"a" * PIECE),
        (b"", b"\r\n" * PIECE),
        (POST + b"1;", b"a" * PIECE),
        (POST + b"1\r\na\r\n0\r\nX-A: ", b"a" * PIECE),
        (POST + b"1\r\na\r\n0\r\n", b"X-A: b\r\n" * (PIECE // 8)),
    ],
    ids=["value", "headers", "url", "nothing", "extension", "trailer", "trailers"],
)
async def test_a_head_without_an_end_is_cut_off(start: bytes, piece: bytes) -> None:
    async with served() as server:
        client = await server.client()
        client.send(start)
        # Beyond the bound there are the buffers of both sides.
        assert await client.pour(piece) < FAR_TOO_MUCH
        if start.startswith(POST):
            await asyncio.wait_for(server.left.wait(), 10)


async def test_a_body_of_many_chunks_is_not_counted_as_head() -> None:
    async with served() as server:
        client = await server.client()
        client.send(POST, b"1;some=extension\r\na\r\n" * 20_000, b"0\r\nX-A: b\r\n\r\n")
        assert await client.answer() == (200, b"20000 bytes")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET, b"\r\n", b"\r\n\r\nGET"])
@pytest.mark.parametrize("before", [0, 1])
async def test_a_client_whose_head_is_not_complete_in_time_is_closed(sent: bytes, before: int) -> None:
    async with served(head_seconds=0.2) as server:
        client = await server.client()
        for _ in range(before):
            client.send(GET, b"\r\n")
            assert (await client.answer())[0] == 200
        client.send(sent)
        assert await client.closed() == b""


async def test_a_slow_response_and_a_socket_outlive_the_deadline_of_heads() -> None:
    async with (
        served(head_seconds=0.2) as server,
        connect(f"ws://127.0.0.1:{server.port}/socket", proxy=None) as socket,
    ):
        waiting, ahead = await server.client(), await server.client()
        waiting.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        ahead.send(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n", GET)
        for _ in range(2):  # clients that connect later miss their deadline first
            assert await (await server.client()).closed() == b""
        server.release.set()
        assert await waiting.answer() == (200, b"at last")
        assert await ahead.answer() == (200, b"at last")
        assert await ahead.closed() == b"", "the deadline of its incomplete next head starts after the response"
        await socket.send("hello")
        assert await socket.recv() == "hello"


@pytest.mark.parametrize(
    "sent",
    [
        b"Content-Length: 25\r\n\r\n",
        b'Content-Length: 25\r\n\r\n{"query": ',
        b"Content-Length: 25\r\nExpect: 100-continue\r\n\r\n",
        b'Transfer-Encoding: chunked\r\n\r\na\r\n{"query": \r\n',
        b'Transfer-Encoding: chunked\r\n\r\n19\r\n{"query": "{__typename}"}\r\n',
    ],
    ids=["nothing", "half", "asks first", "chunk", "all but its end"],
)
async def test_a_body_that_is_not_complete_in_time_gets_408_and_is_closed(sent: bytes) -> None:
    async with served() as server:
        client = await server.client()
        client.send(GRAPHQL, b'Content-Length: 25\r\n\r\n{"query": "{__typename}"}')
        assert await client.answer() == (200, b'{"data":{"__typename":"Query"}}')
        client.send(GRAPHQL, sent)
        if b"Expect" in sent:
            assert (await client.head())[0] == 100
        status, headers = await client.head()
        assert (status, b"connection: close" in headers) == (408, True)
        (error,) = json.loads(await client.closed())["errors"]
        assert error["extensions"] == {"code": "BODY_TOO_SLOW"}


async def test_the_deadline_of_a_body_is_not_extended_by_each_byte() -> None:
    """The deadline is that of the whole body, not that of each chunk."""
    async with served() as server, asyncio.timeout(10):
        client = await server.client()
        client.send(GRAPHQL, b"Content-Length: 1000000\r\n\r\n")
        answer = asyncio.create_task(client.answer())
        while not answer.done():
            client.send(b" ")
            await asyncio.sleep(0)
        assert (await answer)[0] == 408


async def test_a_body_that_continues_after_its_response_is_cut_off() -> None:
    async with served(head_seconds=0.2) as server, asyncio.timeout(10):
        client = await server.client()
        client.send(b"POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert await client.answer() == (200, b"seen enough")
        await client.pour(b" ")
