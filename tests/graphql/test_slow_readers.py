"""Real clients that do not read: sockets of raw TCP, against uvicorn with the protocol classes of production."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from tests.support.listening import LARGE, Unreading, Uvicorn, frame, listening, unreading
from tests.support.raw import serving
from tests.support.sockets import Server, soon
from tests.support.waiting import until
from websockets.frames import Close, Opcode

from headwater.server.client_faults import ClientFaults
from headwater.server.pacing import Paced
from headwater.server.slow_reader import DrainedSocket

KIB = 1024
NO_PINGS = {"ws_ping_interval": None}
IMPATIENT = {"ws_ping_interval": 0.05, "ws_ping_timeout": 0.05}
SHORT = {"ws": partial(DrainedSocket, faults=ClientFaults(), close_seconds=0.05)}


async def fill(client: Unreading, server: Server) -> None:
    """Ask for more than the buffers of both ends hold."""
    await client.subscribe("subscription { numbers }", "s")
    await soon(server.source.opened)
    for number in range(60):
        await client.subscribe("{ large }", str(number))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "headwater.server.slow_reader"]


async def test_a_client_that_never_reads_is_closed_with_1013_and_one_line(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(send_timeout=0.05)
    async with listening(server, **NO_PINGS) as running, unreading(running.port) as client:
        await fill(client, server)
        await soon(server.source.closed)
        await until(lambda: server.endpoint.open == 0)
        assert await client.closed() == Close(1013, "Slow consumer")
        (line,) = lines(caplog)
        told = re.fullmatch(
            r"closed the socket of (\S+) with 1013 \(Slow consumer\): (\d+) bytes wait to be read", line
        )
        assert told is not None, line
        assert told[1] == client.address
        assert int(told[2]) > 0


async def test_the_server_of_a_node_closes_a_client_that_never_reads(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(send_timeout=0.05)
    app = Starlette(routes=[WebSocketRoute("/graphql", server.endpoint)])
    async with serving(app) as node, unreading(node.port) as client:
        await fill(client, server)
        await soon(server.source.closed)
        assert (await client.closed()).code == 1013
        assert len(lines(caplog)) == 1


async def test_a_client_that_answers_no_ping_because_it_does_not_read_is_closed_with_1013(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    async with listening(server, **IMPATIENT) as running, unreading(running.port) as client:
        await client.subscribe("subscription { numbers }")
        await soon(server.source.closed)
        assert await client.closed() == Close(1013, "No answer to a ping")
        address = client.address
    assert lines(caplog) == [f"closed the socket of {address} with 1013 (No answer to a ping): 0 bytes wait to be read"]


async def test_a_client_that_answers_no_ping_while_a_message_waits_is_closed_with_1013(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    async with listening(server, **IMPATIENT) as running, unreading(running.port) as client:
        await fill(client, server)
        await soon(server.source.closed)
        await until(lambda: server.endpoint.open == 0)
        assert (await client.closed()).code == 1013
        (line,) = lines(caplog)
        assert client.address in line


@pytest.mark.parametrize("pings", [NO_PINGS, IMPATIENT], ids=["send timeout", "ping timeout"])
async def test_the_connection_of_a_client_that_never_reads_is_given_up(pings: dict[str, float]) -> None:
    server = Server(send_timeout=0.05)
    async with listening(server, **pings, **SHORT) as running, unreading(running.port) as client:
        await fill(client, server)
        await until(lambda: not running.server_state.connections)
        assert server.source.closed.is_set()


async def test_the_connection_of_a_client_that_leaves_without_reading_is_given_up() -> None:
    server = Server()
    async with listening(server, **NO_PINGS, **SHORT) as running, unreading(running.port) as client:
        await fill(client, server)
        await client.send(frame(Opcode.CLOSE, Close(1000, "").serialize()))
        await until(lambda: not running.server_state.connections)


async def test_close_all_does_not_wait_for_a_client_that_does_not_read() -> None:
    server = Server(close_timeout=60)
    async with listening(server, **NO_PINGS) as running, unreading(running.port) as client:
        await fill(client, server)
        await until(lambda: waiting(running))
        await server.endpoint.close_all()
        assert (await client.closed()).code == 1001


async def test_pings_of_a_client_that_does_not_read_fill_no_memory() -> None:
    server = Server()
    async with listening(server, **NO_PINGS) as running, unreading(running.port) as client:
        pings = frame(Opcode.PING, b"x" * 125) * 1_000
        for _ in range(150):
            await client.send(pings)
        await client.send(frame(Opcode.PING, b"the last"))
        await client.subscribe("subscription { numbers }")
        await soon(server.source.opened)  # so the server has read all pings
        assert waiting(running) < 512 * KIB
        await client.heard(b"the last")


async def test_empty_fragments_fill_no_memory() -> None:
    async with listening(Server(), **NO_PINGS) as running, unreading(running.port) as client:
        await client.send(frame(Opcode.TEXT, b'{"type":', fin=False))
        await client.send(frame(Opcode.CONT, fin=False) * 100_000)
        await client.send(frame(Opcode.PING, b"barrier"))
        await client.heard(b"barrier")
        (connection,) = running.server_state.connections
        assert isinstance(connection, DrainedSocket)
        assert len(connection.frames) == 1
        await client.send(frame(Opcode.CONT, b'"ping"}'))
        await client.heard(b'{"type":"pong"}')


async def test_a_response_that_its_client_does_not_read_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    http = partial(Paced, faults=ClientFaults(), read_seconds=0.05)
    async with listening(Server(), http=http) as running, asking(running, "/large") as client:
        await until(lambda: lines(caplog))
        await until(lambda: not running.server_state.connections)
        (line,) = lines(caplog)
        assert line.startswith(f"closed the connection of {client.address}: ")
        assert len(await client.rest()) < LARGE


async def test_a_response_that_its_client_reads_slowly_is_not_given_up(caplog: pytest.LogCaptureFixture) -> None:
    http = partial(Paced, faults=ClientFaults(), read_seconds=0.5)
    async with listening(Server(), http=http) as running, asking(running, "/large") as client:
        end = time.monotonic() + 1.6
        while time.monotonic() < end:
            await client.read(128 * KIB)
            await asyncio.sleep(0.01)  # the pace of the client
        assert not lines(caplog)
        assert len(running.server_state.connections) == 1


@asynccontextmanager
async def asking(running: Uvicorn, path: str) -> AsyncIterator[Unreading]:
    """Send a request over HTTP."""
    client = Unreading()
    try:
        await client.connect(running.port)
        await client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield client
    finally:
        client.leave()


def waiting(running: Uvicorn) -> int:
    """Return the bytes that wait in the server's process for its only client."""
    (connection,) = running.server_state.connections
    assert isinstance(connection, DrainedSocket)
    return connection.transport.get_write_buffer_size()
