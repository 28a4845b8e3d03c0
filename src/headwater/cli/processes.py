"""`headwater dev | serve | work`: the processes that run until they are stopped."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from headwater import embedded
from headwater.app import App
from headwater.cli.application import app_option, load, node_of
from headwater.cli.commands import Commands, command
from headwater.cli.connection import dsn_of
from headwater.cli.loop import complete
from headwater.cli.migrate import migrated
from headwater.config import Settings
from headwater.server import Web, health_routes, listen, metrics_route, run, server_of, stopping, url_of


def add(commands: Commands) -> None:
    address = argparse.ArgumentParser(add_help=False)
    address.add_argument("--host", help="the address to listen on; left out: HEADWATER_HOST")
    address.add_argument("--port", type=int, help="the port to listen on; left out: HEADWATER_PORT")
    for name, process, text in (
        ("dev", _dev, "everything in one process, on a PostgreSQL of its own unless DATABASE_URL is set"),
        ("serve", _serve, "the API: commands, queries, subscriptions"),
        ("work", _work, "the read models; listens for health checks only"),
    ):
        command(commands, name, process, text, parents=[app_option(), address])


def _dev(chosen: argparse.Namespace, settings: Settings) -> None:
    app = load(chosen.app)
    with _database(settings) as dsn:
        complete(_serving(app, settings, dsn, work=True))


def _serve(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(_serving(load(chosen.app), settings, dsn_of(settings), work=False))


def _work(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(_working(load(chosen.app), settings, dsn_of(settings)))


@contextmanager
def _database(settings: Settings) -> Iterator[str]:
    """The database that is set, or the embedded one while this runs."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = embedded.start(settings.data)
    try:
        yield server.dsn()
    finally:
        server.stop()


async def _serving(app: App, settings: Settings, dsn: str, *, work: bool) -> None:
    if work:
        await migrated(app, dsn)
    async with stopping() as stop, node_of(app, settings, dsn, serve=True, work=work) as node:
        web = Web(node)
        listening = listen(settings)
        await run(
            server_of(web.app, settings, web.farewell), listening, stop, lambda: _announce(url_of(listening), work)
        )


async def _working(app: App, settings: Settings, dsn: str) -> None:
    async def farewell() -> None:
        """Nobody stays connected to a worker."""

    async with stopping() as stop, node_of(app, settings, dsn, serve=False, work=True) as node:
        server = server_of(Starlette(routes=[*health_routes(node), metrics_route(node)]), settings, farewell)
        listening = listen(settings)
        await run(
            server, listening, stop, lambda: print(f"Working. Health: {url_of(listening)}/health/ready", flush=True)
        )


def _announce(url: str, everything: bool) -> None:
    lines = [
        "",
        "  Headwater is running"
        + (", with its read models." if everything else "; `headwater work` keeps its read models."),
        "",
        f"  GraphiQL       {url}/graphql          (in a browser)",
        f"  GraphQL        {url}/graphql          (HTTP POST and GET)",
        f"  Subscriptions  {url.replace('http', 'ws', 1)}/graphql            (graphql-transport-ws)",
        f"  Health         {url}/health/ready",
        "",
        "  Anyone who reaches this address may do everything: there are no permissions yet."
        if not url.startswith(("http://127.0.0.1:", "http://[::1]:"))
        else "  It listens on this machine only, since there are no permissions yet.",
        "  Ctrl-C stops it.",
        "",
    ]
    print("\n".join(lines), flush=True)
