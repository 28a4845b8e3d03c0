"""A uvicorn server for a GraphQL endpoint, with the protocol classes of production, and a client that does not read."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from tests.support.sockets import PATIENCE, PROTOCOL, Server, soon
from websockets.frames import Close, Frame, Opcode

from headwater.server.client_faults import ClientFaults
from headwater.server.http_server import LARGEST_FRAME
from headwater.server.pacing import Paced
from headwater.server.slow_reader import DrainedSocket

LARGE = 30_000_000
"""Bytes of a response that no buffer of the kernel takes."""


async def large(request: Request) -> Response:
    return PlainTextResponse(b"x" * LARGE)


class Uvicorn(uvicorn.Server):
    """A uvicorn server with a signal when it is ready. On shutdown it closes the sockets of GraphQL first."""

    def __init__(self, server: Server, **options: Any) -> None:
        app = Starlette(routes=[WebSocketRoute("/graphql", server.endpoint), Route("/large", large)])
        defaults: dict[str, Any] = {
            "http": partial(Paced, faults=ClientFaults()),
            "ws": partial(DrainedSocket, faults=ClientFaults()),
            "ws_max_size": LARGEST_FRAME,
            "ws_per_message_deflate": False,
        }
        super().__init__(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", **(defaults | options)))
        self._endpoint = server.endpoint
        self.ready = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def shutdown(self, sockets: Any = None) -> None:
        await self._endpoint.close_all()
        await super().shutdown(sockets)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port


@asynccontextmanager
async def listening(server: Server, **options: Any) -> AsyncIterator[Uvicorn]:
    """Run a server. options: of `uvicorn.Config`."""
    running = Uvicorn(server, **options)
    task = asyncio.create_task(running.serve())
    await soon(running.ready)
    try:
        yield running
    finally:
        running.should_exit = True
        await task


class Unreading:
    """The raw TCP end of a socket. It reads only what a test asks for, and answers no ping."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()

    @property
    def address(self) -> str:
        return "{}:{}".format(*self._socket.getsockname())

    async def connect(self, port: int) -> None:
        await self._loop.sock_connect(self._socket, ("127.0.0.1", port))

    async def open(self, port: int) -> None:
        """Connect, and open a socket. Reads up to the end of the handshake."""
        await self.connect(port)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET /graphql HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
        )
        await self.send(head.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += await self.read(1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer

    async def say(self, **message: object) -> None:
        await self.send(frame(Opcode.TEXT, json.dumps(message).encode()))

    async def subscribe(self, query: str, operation_id: str = "1") -> None:
        await self.say(type="subscribe", id=operation_id, payload={"query": query})

    async def send(self, data: bytes) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(self._socket, data)

    async def rest(self) -> bytes:
        """Read what is left until the server ends the connection."""
        data = bytearray()
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionResetError):
                while piece := await self.read(1 << 20):
                    data += piece
        return bytes(data)

    async def closed(self) -> Close:
        """Read all frames up to the close frame, and return that."""
        async with asyncio.timeout(PATIENCE):
            while True:
                opcode, data = await self._frame()
                if opcode == Opcode.CLOSE:
                    return Close.parse(data)

    async def _frame(self) -> tuple[int, bytes]:
        first, length = await self._exactly(2)
        if length > 125:
            length = int.from_bytes(await self._exactly(2 if length == 126 else 8))
        return first & 15, await self._exactly(length)

    async def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = await self.read(size - len(data))
            assert piece, "the connection ended before the close frame"
            data += piece
        return bytes(data)

    async def read(self, size: int) -> bytes:
        """Read at most so many bytes; none when the server has ended the connection."""
        return await self._loop.sock_recv(self._socket, size)

    async def heard(self, wanted: bytes) -> None:
        """Read until certain bytes have come."""
        data = b""
        async with asyncio.timeout(PATIENCE):
            while wanted not in data:
                data = data[-len(wanted) :] + await self.read(1 << 20)

    def leave(self) -> None:
        self._socket.close()


@asynccontextmanager
async def unreading(port: int) -> AsyncIterator[Unreading]:
    """Open a socket of a client that does not read; it is admitted."""
    client = Unreading()
    try:
        await client.open(port)
        await client.say(type="connection_init")
        yield client
    finally:
        client.leave()


def frame(opcode: Opcode, data: bytes = b"", *, fin: bool = True) -> bytes:
    """Return a frame of a client."""
    return Frame(opcode, data, fin).serialize(mask=True)
