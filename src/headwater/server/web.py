"""HTTP: the routes of a node, and a uvicorn server that closes sockets properly before it ends.

Begin with `Web`, whose routes are a list.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial

import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from headwater.config import Settings
from headwater.errors import SettingsError
from headwater.graphql.cost import CostLimits, cost_guard
from headwater.graphql.engine import Engine
from headwater.graphql.explorer.made_examples import examples_of
from headwater.graphql.explorer.page import explorer, explorer_routes
from headwater.graphql.host import LoopbackOnly, is_loopback
from headwater.graphql.http import GraphQLHTTP
from headwater.graphql.scope import Scope
from headwater.graphql.websocket import GraphQLSocket
from headwater.server.client_faults import ClientFaults
from headwater.server.node import Node
from headwater.server.pacing import Paced
from headwater.server.request_head import HEAD_SECONDS
from headwater.server.slow_reader import DrainedSocket

logger = logging.getLogger(__name__)

LARGEST_FRAME = 256 * 1024
"""Bytes of a websocket frame at most."""

PING_SECONDS = 20.0
"""Seconds between two pings of a socket, and until a ping must be answered."""

BACKLOG = 2048

SERVING = 0.75
"""The share of the shutdown's time after which requests in progress are cut off; the rest is for closing all else."""


def health_routes(node: Node) -> list[BaseRoute]:
    """Return the routes of the health checks.

    `/health/live`: the process runs. `/health/ready`: it can answer, and it can write the log. Neither asks the
    database: see `headwater.server.health`.
    """

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        health = node.health
        can: dict[str, object] = {"readable": health.readable}
        if health.decides:
            can["writable"] = health.writable
        # Only names go over the network; `headwater status` and the log say what is wrong with them.
        if unready := health.unready:
            return JSONResponse({"status": "not ready", **can, "troubles": sorted(unready)}, status_code=503)
        return JSONResponse({"status": "ready", **can})

    return [Route("/health/live", live), Route("/health/ready", ready)]


def metrics_route(node: Node, socket: GraphQLSocket | None = None) -> BaseRoute:
    """Return the route `/metrics`: the measurements of the process in the format of Prometheus."""

    async def metrics(request: Request) -> Response:
        from headwater.server.exporters import prometheus  # loaded only by a process that is scraped

        text = await prometheus.text_of(node, None if socket is None else socket.open)
        return Response(text, headers={"content-type": prometheus.CONTENT_TYPE, "cache-control": "no-store"})

    return Route("/metrics", metrics)


def engine_of(node: Node) -> Engine:
    """Return an engine that runs operations within the limits of a node's settings."""
    settings = node.settings
    limits = CostLimits(values=settings.max_values, default_page=settings.default_page, max_page=settings.max_page)
    return Engine(node.app.schema, guards=[cost_guard(limits)], observe=node.telemetry.operated)


async def _home(request: Request) -> Response:
    # Relative to the address as the client sent it, since hosts differ in what they tell of the prefix.
    _, _, last = request.scope.get("raw_path", b"/").rpartition(b"/")
    return RedirectResponse(f"./{last.decode()}/graphql" if last else "./graphql")


class Web:
    """A serving node as an ASGI application (`app`). `farewell` must be called before a shutdown."""

    def __init__(self, node: Node) -> None:
        def scope(connection: HTTPConnection, init: Mapping[str, object] | None) -> Scope:
            return Scope(node.serving)

        self._node = node
        settings, engine = node.settings, engine_of(node)
        self._socket = GraphQLSocket(engine, scope, allowed_origins=settings.allowed_origins or None)
        self.app = Starlette(
            routes=[
                Route("/graphql", GraphQLHTTP(engine, scope, explorer=explorer)),
                WebSocketRoute("/graphql", self._socket),
                Route("/", _home),
                *explorer_routes(node.app.examples or examples_of(node.app.domain, node.app.schema._schema)),
                *health_routes(node),
                metrics_route(node, self._socket),
            ]
        )

    async def farewell(self) -> None:
        """Answer the commands in progress, then close every socket with code 1001, which makes clients reconnect."""
        await self._node.answered()
        await self._socket.close_all()


class Server(uvicorn.Server):
    """A uvicorn server that awaits a farewell before it shuts down, and leaves signals to `stopping`.

    seconds: the time for the farewell and the requests in progress together.
    """

    def __init__(self, config: uvicorn.Config, farewell: Callable[[], Awaitable[None]], seconds: float) -> None:
        super().__init__(config)
        self._farewell = farewell
        self._seconds = seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()  # no new connection is accepted during the farewell
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        await self._farewell()
        # The rest of the time: with the full timeout here, both waits could take twice as long as configured.
        self.config.timeout_graceful_shutdown = max(0, deadline - loop.time())  # type: ignore[assignment]  # it accepts fractions of a second
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_of(
    app: ASGIApp,
    listening: socket.socket,
    settings: Settings,
    farewell: Callable[[], Awaitable[None]],
    *,
    head_seconds: float = HEAD_SECONDS,
) -> Server:
    """Return a server that is not started.

    If only this machine can reach it, it answers only requests whose Host names this machine.
    """
    faults = ClientFaults()
    served = LoopbackOnly(app, settings.host, settings.allowed_origins) if is_local(listening) else app
    return Server(
        uvicorn.Config(
            served,
            http=partial(Paced, head_seconds=head_seconds, faults=faults),  # type: ignore[arg-type]  # uvicorn only calls it
            ws=partial(DrainedSocket, faults=faults),  # type: ignore[arg-type]  # the same
            ws_max_size=LARGEST_FRAME,
            ws_ping_interval=PING_SECONDS,
            ws_ping_timeout=PING_SECONDS,
            # Compression costs 50 KiB a socket, and a small frame could become a large one.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        ),
        farewell,
        settings.shutdown_seconds * SERVING,
    )


def listen(settings: Settings) -> socket.socket:
    """Open the socket to serve on. Port 0 takes any free port.

    Raises:
        SettingsError: the address is in use, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {settings.host}, port {settings.port}: {_reason(error)}; choose another "
            "with --host and --port, or HEADWATER_HOST and HEADWATER_PORT"
        ) from error


def _reason(error: OSError) -> str:
    """Return the reason in a few words.

    asyncio repeats the address in its message, and the name resolver uses error numbers of its own.
    """
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)


def is_local(listening: socket.socket) -> bool:
    """True if only this machine can reach the socket.

    Its bound address decides, since names and forms such as `127.1` also resolve to a loopback address.
    """
    return is_loopback(listening.getsockname()[0])


def url_of(listening: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def run(server: Server, listening: socket.socket, stop: asyncio.Event, started: Callable[[], None]) -> None:
    """Serve on a socket until `stop` is set. started: is called as soon as requests are answered."""
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    stopped = asyncio.create_task(stop.wait())
    try:
        while not server.started and not serving.done():
            await asyncio.wait([serving], timeout=0.01)
        started()
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        server.should_exit = True
        await serving
    finally:
        stopped.cancel()
