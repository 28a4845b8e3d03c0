"""A server of any application, and a TCP client that sends it raw bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from headwater.config import Settings
from headwater.server.http_server import listen, server_of
from headwater.server.request_head import HEAD_SECONDS

FAR_TOO_MUCH = 16 * 1024 * 1024
PATIENCE = 10.0


class Client:
    """A raw TCP client of the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *parts: bytes) -> None:
        self._writer.write(b"".join(parts))

    async def send_apart(self, *parts: bytes) -> None:
        """Send parts so that the server receives each on its own, as a rule."""
        for part in parts:
            self.send(part)
            await asyncio.sleep(0)  # lets the server, in the same loop, read it

    async def answer(self) -> tuple[int, bytes]:
        """Return the status and the body of the next response."""
        async with asyncio.timeout(PATIENCE):
            status, lines = await self.head()
            (length,) = [int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length")]
            return status, await self._reader.readexactly(length)

    async def head(self) -> tuple[int, list[bytes]]:
        """Return the status and the headers of the next response."""
        async with asyncio.timeout(PATIENCE):
            status, *lines = (await self._reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            return int(status.split()[1]), lines

    async def exactly(self, size: int) -> bytes:
        """Return the next bytes."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.readexactly(size)

    async def closed(self) -> bytes:
        """Return the bytes that arrive until the server closes."""
        received = bytearray()
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                while part := await self._reader.read(FAR_TOO_MUCH):
                    received += part
        return bytes(received)

    async def pour(self, piece: bytes) -> int:
        """Send a piece again and again until the server closes. Returns how many bytes it accepted."""
        sent = 0
        try:
            while sent < FAR_TOO_MUCH and not self._reader.at_eof():
                self.send(piece)
                await self._writer.drain()
                sent += len(piece)
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        return sent

    def leave(self) -> None:
        self._writer.transport.abort()


@dataclass
class Serving:
    """A server at a port of this machine, and its clients."""

    port: int
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        self.clients.append(Client(*await asyncio.open_connection("127.0.0.1", self.port)))
        return self.clients[-1]


@asynccontextmanager
async def serving(app: ASGIApp, head_seconds: float = HEAD_SECONDS) -> AsyncIterator[Serving]:
    """Serve an application as a node does. At the end all clients leave."""

    async def farewell() -> None:
        return None

    settings = replace(Settings(), port=0)
    listening = listen(settings)
    server = Serving(listening.getsockname()[1])
    uvicorn = server_of(app, listening, settings, farewell, head_seconds=head_seconds)
    task = asyncio.create_task(uvicorn.serve(sockets=[listening]))
    try:
        yield server
    finally:
        for client in server.clients:
            client.leave()
        uvicorn.should_exit = True
        await task


class Recorder:
    """An application that remembers each request and answers with its method, path and body.

    `/early` answers before it has read the body; a request or a socket at `/slow` waits for `release`. Any other socket
    is accepted, and sends back one message.
    """

    def __init__(self, body_seconds: float = PATIENCE) -> None:
        self.asked: list[bytes] = []
        self.headers: list[list[bytes]] = []  # their names, for each request
        self.begun = asyncio.Event()
        self.release = asyncio.Event()
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.set()
        self.headers.append([name for name, _ in scope["headers"]])
        if scope["path"] == "/slow":
            await self.release.wait()
        if scope["type"] == "websocket":
            await _echo(WebSocket(scope, receive, send))
            return
        try:
            async with asyncio.timeout(self._body_seconds):
                body = b"" if scope["path"] == "/early" else await Request(scope, receive).body()
        except (ClientDisconnect, TimeoutError):
            body = b"incomplete"
        self.asked.append(asked(scope["method"], scope["path"], body))
        closing = {"connection": "close"} if body == b"incomplete" else {}
        await Response(self.asked[-1], headers=closing)(scope, receive, send)


def asked(method: str, path: str, body: bytes = b"") -> bytes:
    """Return what `Recorder` answers to a request."""
    return f"{method} {path} ".encode() + body


async def _echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()
