"""GraphQL over WebSocket: the endpoint, which decides who may open a socket and closes them all in the end."""

import asyncio
from collections.abc import Callable, Iterable
from http import HTTPStatus

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from headwater.graphql.context import ContextFactory
from headwater.graphql.engine import Engine
from headwater.graphql.frames import CloseCode
from headwater.graphql.origin import AllowedOrigins
from headwater.graphql.socket import Admit, Connection, SocketLimits

SUBPROTOCOL = "graphql-transport-ws"


class GraphQLSocket:
    """The endpoint, an ASGI application: `WebSocketRoute("/graphql", GraphQLSocket(engine, context))`.

    It speaks graphql-transport-ws only; the legacy `graphql-ws` and no sub-protocol at all are closed with 4406.

    `context` is called for each operation, with the payload of connection_init. `admit` judges connection_init before
    the acknowledgement, both within `init_timeout` seconds. A message that the client does not take within
    `send_timeout` seconds closes the socket with 1013, "try again later": that is what a slow reader should do, and
    what clients do. `allowed_origins` None admits pages of our own host, and clients that are no browsers.

    Run uvicorn with `ws_max_size=256 * 1024, ws_per_message_deflate=False`: only the server can refuse a frame before
    it is in memory, and compression costs 50 KiB a socket and lets a small frame become a large one. On shutdown
    uvicorn sends 1012 by itself and runs the lifespan's end only afterwards, so await `close_all` before (in a
    subclass's `Server.shutdown`). A socket that does not drain is given up, and its last bytes are uvicorn's to drop.
    """

    def __init__(
        self,
        engine: Engine,
        context: ContextFactory,
        *,
        admit: Admit | None = None,
        allowed_origins: Iterable[str] | None = None,
        init_timeout: float = 3.0,
        send_timeout: float = 30.0,
        max_operations: int = 100,
    ) -> None:
        self._engine = engine
        self._context = context
        self._admit = admit
        self._origins = AllowedOrigins(allowed_origins)
        self._limits = SocketLimits(init_timeout, send_timeout, max_operations)
        self._connections: set[Connection] = set()
        self._going_away = False

    @property
    def open(self) -> int:
        """How many sockets are open."""
        return len(self._connections)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        if not self._origins.admits(websocket):
            await websocket.close()  # Before the upgrade: the server answers 403.
        elif self._going_away:
            await _deny(websocket, HTTPStatus.SERVICE_UNAVAILABLE)
        elif SUBPROTOCOL not in scope["subprotocols"]:
            # The upgrade is made first: a close code cannot be told without it.
            await websocket.accept()
            await websocket.close(CloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, "Subprotocol not acceptable")
        else:
            await self._serve(websocket)

    async def close_all(self, code: int = CloseCode.GOING_AWAY, reason: str = "Going away") -> None:
        """Close every socket, now and from now on; returns when their operations have ended."""
        self._going_away = True
        await self.close_where(lambda _: True, code, reason)

    async def close_where(self, matches: Callable[[WebSocket], bool], code: int, reason: str) -> None:
        """Close the sockets that match, for instance those of a revoked token (4403), and await their operations."""
        connections = [each for each in self._connections if matches(each.websocket)]
        for connection in connections:
            connection.close(code, reason)
        await asyncio.gather(*(each.ended.wait() for each in connections))

    async def _serve(self, websocket: WebSocket) -> None:
        connection = Connection(websocket, self._engine, self._context, self._admit, self._limits)
        self._connections.add(connection)  # Before accept, so that `close_all` misses nobody.
        try:
            await websocket.accept(SUBPROTOCOL)
            await connection.run()
        finally:
            connection.ended.set()
            self._connections.discard(connection)


async def _deny(websocket: WebSocket, status: HTTPStatus) -> None:
    """Answer the upgrade request with a status, where the server can; else it says 403."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(PlainTextResponse(status.phrase, status))
    else:
        await websocket.close()
