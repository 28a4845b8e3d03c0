"""A request that asks for another protocol is answered as HTTP, with its body; or it becomes a socket, and has none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from tests.support.raw import Client, Recorder, asked, serving

HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
PAYLOAD = b"GET /smuggled" + HOST + b"\r\n"
CURL = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
SOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)

LENGTH = b"Content-Length: %d\r\n\r\n" % len(PAYLOAD), PAYLOAD
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n", b"%x;a=b\r\n%b\r\n0\r\nX-Trailer: c\r\n\r\n" % (len(PAYLOAD), PAYLOAD)

OTHER_UPGRADES = {
    "curl": CURL,
    "unknown": b"Connection: upgrade\r\nUpgrade: foo/2\r\n",
    "mixed case": b"cOnNeCtIoN: uPgRaDe\r\nuPgRaDe: H2C\r\n",
    "several": b"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
    "several, websocket first": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket, h2c\r\n",
    "several headers": b"Upgrade: h2c\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nConnection: keep-alive\r\n",
    "websocket twice": b"Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
    "websocket with a version": b"Connection: Upgrade\r\nUpgrade: websocket/13\r\n",
    "websocket without Connection": b"Upgrade: websocket\r\n",
    "empty": b"Connection: Upgrade\r\nUpgrade:\r\n",
}


SendParts = Callable[[Client, Recorder, bytes, bytes], Awaitable[None]]


async def _at_once(client: Client, app: Recorder, head: bytes, body: bytes) -> None:
    client.send(head, body)


async def _later(client: Client, app: Recorder, head: bytes, body: bytes) -> None:
    app.begun.clear()
    client.send(head)
    await asyncio.wait_for(app.begun.wait(), 10)
    client.send(body)


async def _byte_by_byte(client: Client, app: Recorder, head: bytes, body: bytes) -> None:
    await client.send_apart(*(bytes([each]) for each in head + body))


@pytest.mark.parametrize("framing, body", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("send", [_at_once, _later, _byte_by_byte])
async def test_a_request_for_another_protocol_is_answered_as_http_with_its_body(
    send: SendParts, framing: bytes, body: bytes
) -> None:
    async with serving(app := Recorder()) as server:
        for name, upgrade in OTHER_UPGRADES.items():
            client = await server.client()
            app.asked.clear()
            for _ in range(2):
                await send(client, app, b"POST /asked" + HOST + upgrade + framing, body)
                assert await client.answer() == (200, asked("POST", "/asked", PAYLOAD)), name
            client.send(b"GET /next", HOST, b"\r\n")
            assert await client.answer() == (200, asked("GET", "/next")), name
            assert app.asked == [asked("POST", "/asked", PAYLOAD)] * 2 + [asked("GET", "/next")], name


@pytest.mark.parametrize("framing, body", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_a_body_that_waits_for_100_is_read(framing: bytes, body: bytes) -> None:
    async with serving(Recorder()) as server:
        client = await server.client()
        client.send(b"POST /asked", HOST, CURL, b"Expect: 100-continue\r\n", framing)
        assert (await client.head())[0] == 100
        client.send(body)
        assert await client.answer() == (200, asked("POST", "/asked", PAYLOAD))


async def test_requests_behind_one_for_another_protocol_are_answered_in_order() -> None:
    app = Recorder()
    async with serving(app) as server:
        client = await server.client()
        client.send(
            *(b"POST /1" + HOST + CURL, *LENGTH),
            *(b"GET /2" + HOST, b"\r\n"),
            *(b"GET /3" + HOST + CURL, b"\r\n"),
            *(b"PUT /4" + HOST + CURL, *CHUNKED),
            *(b"GET /5" + HOST, b"Connection: close\r\n\r\n"),
        )
        expected = [asked("POST", "/1", PAYLOAD), asked("GET", "/2"), asked("GET", "/3"), asked("PUT", "/4", PAYLOAD)]
        for each in [*expected, asked("GET", "/5")]:
            assert await client.answer() == (200, each)
        assert await client.closed() == b""
        assert app.asked == [*expected, asked("GET", "/5")]


async def test_the_application_sees_the_other_headers_unchanged() -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"POST /asked", HOST, b"X-A: b\r\nX-A:\r\n", CURL, *LENGTH)
        await client.answer()
        assert app.headers == [[b"host", b"x-a", b"x-a", b"connection", b"http2-settings", b"content-length"]]


@pytest.mark.parametrize("framing, body", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_the_last_request_of_a_connection_is_answered_with_its_body(framing: bytes, body: bytes) -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"POST /asked", HOST, CURL, b"Connection: close\r\n", framing, body, b"GET /next", HOST, b"\r\n")
        assert await client.answer() == (200, asked("POST", "/asked", PAYLOAD))
        assert await client.closed() == b""
        assert app.asked == [asked("POST", "/asked", PAYLOAD)]


@pytest.mark.parametrize(
    "upgrade", [CURL, SOCKET, SOCKET + b"Connection: keep-alive\r\n"], ids=["h2c", "socket", "alive"]
)
@pytest.mark.parametrize("framing, body", [LENGTH, CHUNKED], ids=["length", "chunked"])
async def test_an_upgrade_of_http_1_0_is_ignored(upgrade: bytes, framing: bytes, body: bytes) -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"POST /asked HTTP/1.0\r\nHost: localhost\r\n", upgrade, framing, body)
        assert await client.answer() == (200, asked("POST", "/asked", PAYLOAD))
        assert await client.closed() == b""
        assert app.asked == [asked("POST", "/asked", PAYLOAD)]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("framing, body", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("sent", ["the head", "all"])
async def test_a_request_for_a_socket_with_a_body_is_refused(
    method: bytes, framing: bytes, body: bytes, sent: str
) -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(method, b" /asked", HOST, SOCKET, framing, body if sent == "all" else b"")
        assert await _refusal(client) == (400, "BAD_UPGRADE")
        assert app.headers == []


async def _refusal(client: Client) -> tuple[int, str]:
    status, body = await client.answer()
    (error,) = json.loads(body)["errors"]
    assert await client.closed() == b""
    return status, error["extensions"]["code"]


async def test_bytes_behind_a_request_for_a_socket_are_refused() -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"GET /asked", HOST, SOCKET, b"\r\n", PAYLOAD)
        assert await _refusal(client) == (400, "BAD_UPGRADE")
        assert app.headers == []


async def test_a_length_of_zero_is_no_body() -> None:
    async with serving(Recorder()) as server:
        client = await server.client()
        client.send(b"GET /asked", HOST, SOCKET, b"Content-Length: 0\r\n\r\n")
        assert (await client.head())[0] == 101


PING = b"\x89\x80aaaa"
PONG = b"\x8a\x00"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_frames_are_read_after_the_upgrade_is_answered(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def scenario() -> None:
        async with serving(app := Recorder()) as server:
            client, other = await server.client(), await server.client()
            client.send(b"GET /slow", HOST, SOCKET, b"\r\n")
            await asyncio.wait_for(app.begun.wait(), 10)
            client.send(PING)
            for _ in range(5):  # meanwhile the server reads what it reads at all
                other.send(b"GET /", HOST, b"\r\n")
                await other.answer()
            app.release.set()
            assert (await client.head())[0] == 101
            assert await client.exactly(len(PONG)) == PONG

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(scenario())


async def test_a_socket_behind_an_unanswered_request_is_answered_as_http() -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"GET /slow", HOST, b"\r\n", b"GET /asked", HOST, SOCKET, b"\r\n")
        app.release.set()
        assert await client.answer() == (200, asked("GET", "/slow"))
        assert await client.answer() == (200, asked("GET", "/asked"))


async def test_an_upgrade_that_is_not_complete_in_time_is_closed() -> None:
    async with serving(app := Recorder(), head_seconds=0.2) as server:
        client = await server.client()
        client.send(b"GET /slow", HOST, SOCKET, b"\r\n")
        assert await client.closed() == b""
        app.release.set()


@pytest.mark.parametrize(
    "head, status",
    [
        (b"GET /" + HOST + SOCKET.replace(b"Sec-WebSocket-Key", b"X"), 400),
        (b"GET /" + HOST + SOCKET.replace(b"==", b""), 400),
        (b"GET /" + HOST + SOCKET.replace(b"13", b"12"), 400),
        (b"GET /" + HOST + SOCKET.replace(b"Sec-WebSocket-Version", b"X"), 400),
        (b"GET /" + HOST + SOCKET + b"Content-Length: 00\r\n", 400),
        (b"GET /\xc3\xa9" + HOST + SOCKET, 400),
        (b"POST /" + HOST + SOCKET, 405),
        (b"GET /" + b"a" * 8192 + HOST + SOCKET, 414),
        (b"GET /" + HOST + SOCKET + b"X-A: " + b"a" * 8192 + b"\r\n", 431),
        (b"GET /" + HOST + SOCKET + b"X-A: b\r\n" * 128, 431),
    ],
    ids=["no key", "bad key", "old", "no version", "length", "path", "method", "long path", "long header", "headers"],
)
async def test_a_malformed_request_for_a_socket_is_answered_and_closed(head: bytes, status: int) -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(head, b"\r\n")
        assert (await client.answer())[0] == status
        assert await client.closed() == b""
        assert app.headers == []


@pytest.mark.parametrize("framing, body", [(b"\r\n", b""), LENGTH, CHUNKED])
async def test_connect_is_refused(framing: bytes, body: bytes) -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"CONNECT localhost:80", HOST, framing, body)
        assert (await client.answer())[0] == 400
        assert await client.closed() == b""
        assert app.headers == []
