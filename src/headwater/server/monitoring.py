"""The routes that every process serves: health checks and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from headwater.server.node import Node

if TYPE_CHECKING:
    from headwater.graphql.websocket import GraphQLSocket


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
