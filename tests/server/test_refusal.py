"""A refusal is never taken for the answer to another request of its connection."""

from __future__ import annotations

import pytest
from tests.support.raw import Recorder, asked, serving

HOST = b" HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
INVALID = (400, b"Invalid HTTP request received.")


@pytest.mark.parametrize(
    "behind",
    [b"\x16\x03\x01", b"POST /" + HOST + CHUNKED + b"zz\r\n", b"CONNECT a:1" + HOST + b"\r\n"],
    ids=["no head", "no body", "no request"],
)
async def test_what_was_asked_before_is_answered_first(behind: bytes) -> None:
    async with serving(app := Recorder()) as server:
        client, other = await server.client(), await server.client()
        client.send(b"GET /slow", HOST, b"\r\n", b"GET /next", HOST, b"\r\n", behind)
        other.send(b"GET /other", HOST, b"\r\n")
        await other.answer()
        app.release.set()
        assert await client.answer() == (200, asked("GET", "/slow"))
        assert await client.answer() == (200, asked("GET", "/next"))
        assert await client.answer() == INVALID
        assert await client.closed() == b""
        assert app.asked == [asked("GET", each) for each in ("/other", "/slow", "/next")]


async def test_what_follows_a_refused_request_is_ignored() -> None:
    async with serving(app := Recorder()) as server:
        client, other = await server.client(), await server.client()
        client.send(b"GET /slow", HOST, b"\r\n", b"\x16\x03\x01")
        for _ in range(2):
            client.send(b"GET /later", HOST, b"\r\n")
            other.send(b"GET /other", HOST, b"\r\n")
            await other.answer()
        app.release.set()
        assert await client.answer() == (200, asked("GET", "/slow"))
        assert await client.answer() == INVALID
        assert await client.closed() == b""


@pytest.mark.parametrize("first", [b"", b"5\r\nhello\r\n"])
async def test_a_malformed_body_has_one_answer(first: bytes) -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"POST /asked", HOST, CHUNKED, first)
        await app.begun.wait()
        client.send(b"zz\r\n")
        assert await client.answer() == INVALID
        assert await client.closed() == b""


async def test_a_body_that_is_malformed_after_its_answer_has_no_second_one() -> None:
    async with serving(Recorder()) as server:
        client = await server.client()
        client.send(b"POST /early", HOST, CHUNKED)
        assert await client.answer() == (200, asked("POST", "/early"))
        client.send(b"zz\r\n")
        assert await client.closed() == b""


async def test_trailers_are_no_headers() -> None:
    async with serving(app := Recorder()) as server:
        client = await server.client()
        client.send(b"POST /asked", HOST, CHUNKED, b"0\r\nX-Headwater: 1\r\nAuthorization: Bearer x\r\n\r\n")
        assert await client.answer() == (200, asked("POST", "/asked"))
        assert app.headers == [[b"host", b"transfer-encoding"]]
