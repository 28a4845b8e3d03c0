"""`headwater dev | serve | work`: the processes that run until they are stopped."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, nullcontext

from starlette.applications import Starlette

from headwater.app import App
from headwater.cli.application import app_option, load, node_of
from headwater.cli.commands import Commands, command
from headwater.cli.connection import dsn_of
from headwater.cli.loop import STOPPED, complete, unless
from headwater.cli.migrate import migrated
from headwater.config import Settings
from headwater.postgres import embedded
from headwater.server.web import Web, health_routes, is_local, listen, metrics_route, run, server_of, stopping, url_of


def add(commands: Commands) -> None:
    address = argparse.ArgumentParser(add_help=False)
    address.add_argument("--host", type=_host, help="the address to listen on; left out: HEADWATER_HOST")
    address.add_argument("--port", type=int, help="the port to listen on; left out: HEADWATER_PORT")
    for name, process, text in (
        ("dev", _dev, "everything in one process, on a PostgreSQL of its own unless DATABASE_URL is set"),
        ("serve", _serve, "the API: commands, queries, subscriptions"),
        ("work", _work, "read models, sagas, reactors and schedules; listens for health checks and metrics only"),
    ):
        command(commands, name, process, text, parents=[app_option(), address])


def _host(text: str) -> str:
    """An empty one would be every address of the machine, and is more likely a variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; write 0.0.0.0 for all addresses, or leave the option out")
    return text.strip()


def _dev(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(_process(load(chosen.app), settings, _own_database(settings), serve=True, work=True))


def _serve(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(_process(load(chosen.app), settings, nullcontext(dsn_of(settings)), serve=True, work=False))


def _work(chosen: argparse.Namespace, settings: Settings) -> None:
    complete(_process(load(chosen.app), settings, nullcontext(dsn_of(settings)), serve=False, work=True))


@asynccontextmanager
async def _own_database(settings: Settings) -> AsyncIterator[str]:
    """The database that is set, or the embedded one while this runs, migrated either way."""
    if settings.database_url is not None:
        yield settings.database_url
        return
    server = await asyncio.to_thread(embedded.start, settings.data)
    try:
        yield server.dsn()
    finally:
        await asyncio.to_thread(server.stop)


async def _process(
    app: App, settings: Settings, database: AbstractAsyncContextManager[str], *, serve: bool, work: bool
) -> None:
    """A process from its start to its end, which may come while it starts.

    listening -> database there -> migrated (`dev`) -> node open -> serving -> stopped
    """
    async with stopping() as stop, AsyncExitStack() as stack:
        # First, so that one that cannot listen changes nothing.
        listening = stack.enter_context(closing(listen(settings)))
        dsn = await stack.enter_async_context(database)
        if serve and work and await unless(stop, migrated(app, dsn)) is STOPPED:
            return
        node = await unless(stop, stack.enter_async_context(node_of(app, settings, dsn, serve=serve, work=work)))
        if node is STOPPED:
            return
        url = url_of(listening)
        if serve:
            web = Web(node)
            server = server_of(web.app, listening, settings, web.farewell)
            data = "the database of DATABASE_URL" if settings.database_url is not None else str(settings.data)
            await run(server, listening, stop, lambda: _announce(url, data, everything=work, local=is_local(listening)))
        else:
            routes = [*health_routes(node), metrics_route(node)]
            server = server_of(Starlette(routes=routes), listening, settings, node.answered)
            await run(server, listening, stop, lambda: print(f"Working. Health: {url}/health/ready", flush=True))


def _announce(url: str, data: str, *, everything: bool, local: bool) -> None:
    lines = [
        "",
        "  Headwater is running"
        + (", with its read models." if everything else "; `headwater work` keeps its read models."),
        "",
        f"  GraphiQL       {url}/graphql          (in a browser)",
        f"  GraphQL        {url}/graphql          (HTTP POST and GET)",
        f"  Subscriptions  {url.replace('http', 'ws', 1)}/graphql            (graphql-transport-ws)",
        f"  Health         {url}/health/ready",
        f"  Data           {data}",
        "",
        "  It listens on this machine only, since there are no permissions yet."
        if local
        else "  Anyone who reaches this address may do everything: there are no permissions yet.",
        "  Ctrl-C stops it.",
        "",
    ]
    print("\n".join(lines), flush=True)
