"""A node over HTTP: the API, the explorer, and what every process serves."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute

from headwater.graphql.cost import CostLimits, cost_guard
from headwater.graphql.engine import Engine
from headwater.graphql.explorer.made_examples import examples_of
from headwater.graphql.explorer.page import explorer, explorer_routes
from headwater.graphql.http import GraphQLHTTP
from headwater.graphql.scope import Scope
from headwater.graphql.websocket import GraphQLSocket
from headwater.server.monitoring import health_routes, metrics_route
from headwater.server.node import Node


def engine_of(node: Node) -> Engine:
    """Return an engine that runs operations within the limits of a node's settings."""
    settings = node.settings
    limits = CostLimits(values=settings.max_values, default_page=settings.default_page, max_page=settings.max_page)
    return Engine(node.app.schema, guards=[cost_guard(limits)], observe=node.telemetry.operated)


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


async def _home(request: Request) -> Response:
    # Relative to the address as the client sent it, since hosts differ in what they tell of the prefix.
    _, _, last = request.scope.get("raw_path", b"/").rpartition(b"/")
    return RedirectResponse(f"./{last.decode()}/graphql" if last else "./graphql")
