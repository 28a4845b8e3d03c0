"""GraphQL over WebSocket: the endpoint, which accepts or refuses sockets and closes them all on shutdown."""

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
from headwater.graphql.socket import Admit, Socket, SocketLimits

SUBPROTOCOL = "graphql-transport-ws"


class GraphQLSocket:
    """The endpoint, an ASGI application: `WebSocketRoute("/graphql", GraphQLSocket(engine, context))`.

    It speaks graphql-transport-ws only; the legacy `graphql-ws` and no sub-protocol at all are closed with 4406.

    context: called for each operation, with the payload of connection_init. admit: decides about connection_init. Init
    and admission must both happen within `init_timeout` seconds. allowed_origins: None admits pages of the server's own
    host, and clients that send no Origin because they are not browsers.

    A message that the client does not read within `send_timeout` seconds closes the socket with 1013, "try again
    later", after which clients reconnect. `close_timeout` is in seconds, for sending the close frame.

    Run uvicorn with `ws_max_size=256 * 1024, ws_per_message_deflate=False`: only the server can refuse a frame before
    it is in memory, and compression costs 50 KiB a socket and lets a small frame expand to a large one. On shutdown
    uvicorn sends 1012 itself and ends the lifespan only afterwards, so await `close_all` before (in a subclass of
    its `Server`). Its own protocol class keeps the connection of a client that never reads; `DrainedSocket` of
    `headwater.server.slow_reader` ends it.
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
        close_timeout: float = 5.0,
    ) -> None:
        self._engine = engine
        self._context = context
        self._admit = admit
        self._origins = AllowedOrigins(allowed_origins)
        self._limits = SocketLimits(init_timeout, send_timeout, max_operations, close_timeout)
        self._sockets: set[Socket] = set()
        self._going_away = False

    @property
    def open(self) -> int:
        """The number of open sockets."""
        return len(self._sockets)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        if not self._origins.admits(websocket):
            await websocket.close()  # Before the upgrade, so that the server answers 403.
        elif self._going_away:
            await _deny(websocket, HTTPStatus.SERVICE_UNAVAILABLE)
        elif SUBPROTOCOL not in scope["subprotocols"]:
            # Accepted first: without the upgrade no close code can be sent.
            await websocket.accept()
            await websocket.close(CloseCode.SUBPROTOCOL_NOT_ACCEPTABLE, "Subprotocol not acceptable")
        else:
            await self._serve(websocket)

    async def close_all(self, code: int = CloseCode.GOING_AWAY, reason: str = "Going away") -> None:
        """Close every socket and refuse new ones. Returns when all operations have ended."""
        self._going_away = True
        await self.close_where(lambda _: True, code, reason)

    async def close_where(self, matches: Callable[[WebSocket], bool], code: int, reason: str) -> None:
        """Close the sockets that match, for instance those of a revoked token (4403), and await their operations."""
        matching = [each for each in self._sockets if matches(each.websocket)]
        for each in matching:
            each.close(code, reason)
        await asyncio.gather(*(each.ended.wait() for each in matching))

    async def _serve(self, websocket: WebSocket) -> None:
        socket = Socket(websocket, self._engine, self._context, self._admit, self._limits)
        self._sockets.add(socket)  # Before accept, so that `close_all` closes it too.
        try:
            await websocket.accept(SUBPROTOCOL)
            await socket.run()
        finally:
            socket.ended.set()
            self._sockets.discard(socket)


async def _deny(websocket: WebSocket, status: HTTPStatus) -> None:
    """Answer the upgrade request with a status if the server supports that, else with 403."""
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(PlainTextResponse(status.phrase, status))
    else:
        await websocket.close()
