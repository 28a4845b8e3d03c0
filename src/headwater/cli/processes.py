"""`headwater dev | serve | work`: runs a process until it is stopped."""

from __future__ import annotations

import argparse
import gc
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing, nullcontext
from importlib.metadata import version

from starlette.applications import Starlette

from headwater import logs
from headwater.app import App
from headwater.cli.application import load
from headwater.cli.connection import dsn_of
from headwater.cli.loop import STOPPED, complete, stopping, unless
from headwater.cli.migrate import migrated
from headwater.cli.node import node_of
from headwater.cli.steps import reporting
from headwater.config import Settings
from headwater.domain.purity import guard
from headwater.postgres.embedded.home import Report
from headwater.server.http_server import Server, is_local, listen, run, server_of, url_of
from headwater.server.monitoring import health_routes, metrics_route
from headwater.server.node import Node
from headwater.server.preparation import own_database, silent

logger = logging.getLogger(__name__)


def dev(chosen: argparse.Namespace, settings: Settings) -> None:
    with reporting() as steps:
        steps.begin("loading the app")
        app = load(chosen.app)
        guard(app.domain)
        database = own_database(settings, steps.begin)
        complete(process(app, settings, database, serve=True, work=True, report=steps.begin, ready=steps.end))


def serve(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(process(load(chosen.app), settings, nullcontext(dsn_of(settings)), serve=True, work=False))


def work(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(process(load(chosen.app), settings, nullcontext(dsn_of(settings)), serve=False, work=True))


async def process(
    app: App,
    settings: Settings,
    database: AbstractAsyncContextManager[str],
    *,
    serve: bool,
    work: bool,
    report: Report = silent,
    ready: Callable[[], None] = lambda: None,
    listening: socket.socket | None = None,
    again: Callable[[], None] | None = None,
) -> None:
    """Run a process from its start to its end. A stop may come at any time, also during the start.

    listening: the socket to serve on; None opens it. again: called instead of the announcement, where the process
    replaces an earlier one.

    listening -> database reached -> migrated (`dev`) -> node open -> serving -> stopped
    """
    async with stopping() as stop, AsyncExitStack() as stack:
        # The first step, so that a process that cannot listen changes nothing.
        listening = stack.enter_context(closing(listening or listen(settings)))
        dsn = await stack.enter_async_context(database)
        if serve and work:
            migrating = migrated(app, settings, settings.listen_url or dsn, report)
            if await unless(stop, migrating) is STOPPED:
                return
        report("starting the server")
        node = await unless(stop, stack.enter_async_context(node_of(app, settings, dsn, serve=serve, work=work)))
        if node is STOPPED:
            return

        def started() -> None:
            ready()
            url, local = url_of(listening), is_local(listening)
            if again is not None:
                again()
            elif not logs.is_json() or (serve and work):
                print(_announcement(settings, url, local=local, serve=serve, work=work), flush=True)
            _log_ready(url, local=local, serve=serve)

        server = _server(node, listening, settings, serve=serve)
        _freeze()
        await run(server, listening, stop, started)


def _log_ready(url: str, *, local: bool, serve: bool) -> None:
    doing = "serves" if serve else "works"
    logger.info("ready: Headwater %s %s; health: %s/health/ready", version("headwater"), doing, url)
    if serve and not local:
        logger.warning("every client that reaches %s may do everything: there are no permissions yet", url)


def _server(node: Node, listening: socket.socket, settings: Settings, *, serve: bool) -> Server:
    """Return the server of the API, or that of a worker's health checks and metrics."""
    if serve:
        from headwater.server.web import Web  # GraphQL, which a worker does not need

        web = Web(node)
        return server_of(web.app, listening, settings, web.farewell)
    routes = [*health_routes(node), metrics_route(node)]
    return server_of(Starlette(routes=routes), listening, settings, node.answered)


def _freeze() -> None:
    """Make the garbage collector ignore everything that exists.

    Classes and schema live as long as the process. Scanning them again and again took a quarter of its time.
    """
    gc.collect()
    gc.freeze()


def _announcement(settings: Settings, url: str, *, local: bool, serve: bool, work: bool) -> str:
    if not serve:
        return f"Working. Health: {url}/health/ready"
    data = "the database of DATABASE_URL" if settings.database_url is not None else str(settings.data)
    return "\n".join(
        [
            "",
            "  Headwater is running"
            + (", with its read models." if work else "; `headwater work` maintains its read models."),
            "",
            f"  GraphiQL       {url}/graphql          (in a browser)",
            f"  GraphQL        {url}/graphql          (HTTP POST and GET)",
            f"  Subscriptions  {url.replace('http', 'ws', 1)}/graphql            (graphql-transport-ws)",
            f"  Health         {url}/health/ready",
            f"  Data           {data}",
            "",
            "  It listens on this machine only, since there are no permissions yet."
            if local
            else "  Every client that reaches this address may do everything: there are no permissions yet.",
            "  Ctrl-C stops it.",
            "",
        ]
    )
