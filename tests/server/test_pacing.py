"""A client that asks without waiting for answers is answered, and has only a bounded number of requests in memory."""

from __future__ import annotations

import asyncio
import gc
import json
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from tests.support.raw import FAR_TOO_MUCH, Client, Recorder, asked, serving
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headwater.server.pacing import PIECE

SMALLEST = b"GET / HTTP/1.1\r\n\r\n"
HOST = b" HTTP/1.1\r\nHost: localhost\r\n"


@dataclass
class Turns:
    """An application that answers a request for each turn that it is given."""

    taken: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    given: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.taken.release()
        await self.given.acquire()
        await receive()
        await Response()(scope, receive, send)


async def test_the_requests_that_wait_are_bounded() -> None:
    before = _cycles()  # of other tests, which may not have been collected
    async with serving(turns := Turns()) as server:
        client = await server.client()
        client.send(SMALLEST * (2**20 // len(SMALLEST)))
        for _ in range(3):  # with each answer the server may read on
            await asyncio.wait_for(turns.taken.acquire(), 10)
            assert _cycles() - before <= PIECE // len(SMALLEST) + 2
            turns.given.release()
            await client.answer()
        _let_end(turns, client)


async def test_what_a_client_sends_ahead_is_not_read() -> None:
    async with serving(turns := Turns()) as server:
        client = await server.client()
        pouring = asyncio.create_task(client.pour(SMALLEST * 1000))
        for _ in range(1500):  # with a segment for each, all would be read
            turns.given.release()
            await client.answer()
        assert not pouring.done()
        _let_end(turns, client)
        assert await pouring < FAR_TOO_MUCH


def _cycles() -> int:
    """Return how many requests are in the memory of this process."""
    return sum(type(each) is RequestResponseCycle for each in gc.get_objects())


def _let_end(turns: Turns, client: Client) -> None:
    client.leave()
    for _ in range(PIECE):
        turns.given.release()


async def test_each_of_many_requests_is_answered_in_order() -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        paths = [f"/{number}" for number in range(4000)]
        client.send(*(b"GET " + path.encode() + HOST + b"\r\n" for path in paths))
        for path in paths:
            assert await client.answer() == (200, asked("GET", path))
        assert len(app.asked) == len(paths)


async def test_bodies_of_many_pieces_are_read_behind_other_requests() -> None:
    body = bytes(range(256)) * 2048
    async with serving(Recorder()) as server:
        client = await server.client()
        for _ in range(4):
            client.send(
                b"GET /short", HOST, b"\r\n", b"POST /long", HOST, b"Content-Length: %d\r\n\r\n" % len(body), body
            )
        for _ in range(4):
            assert await client.answer() == (200, asked("GET", "/short"))
            assert await client.answer() == (200, asked("POST", "/long", body))


async def test_bytes_behind_a_request_for_a_socket_are_refused_at_the_end_of_a_piece() -> None:
    start = (
        b"GET /asked" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    )
    lines = [b"X-A: " + b"a" * 5000 + b"\r\n", b"X-A: " + b"a" * 5000 + b"\r\n"]
    padding = PIECE - len(start) - sum(map(len, lines)) - len(b"X-A: \r\n\r\n")
    async with serving(Recorder()) as server:
        client = await server.client()
        client.send(start, *lines, b"X-A: ", b"a" * padding, b"\r\n\r\n", b"\x89\x80aaaa")
        status, body = await client.answer()
        assert (status, json.loads(body)["errors"][0]["extensions"]["code"]) == (400, "BAD_UPGRADE")
        assert await client.closed() == b""
