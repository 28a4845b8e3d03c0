"""`headwater rebuild NAME`: rebuilds a read model's rows from the log, and waits until they are live."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import asyncpg

from headwater.app import App
from headwater.cli.application import load, view_named
from headwater.cli.connection import connected, dsn_to_ask
from headwater.cli.loop import complete
from headwater.cli.node import node_of
from headwater.cli.rebuild_progress import follow
from headwater.config import Settings
from headwater.domain.read_model import View
from headwater.projections.generations import prepare, rebuild
from headwater.server.node import Node

logger = logging.getLogger(__name__)


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    app = load(chosen.app)
    position = complete(_rebuilt(app, settings, view_named(app, chosen.name)))
    print(f"{chosen.name} is live with its new rows, from position {position:,} on.")


async def _rebuilt(app: App, settings: Settings, view: View[Any]) -> int:
    """Register the next generation and wait until it is live. If no worker runs, this process works meanwhile."""
    dsn = settings.database_url or dsn_to_ask(settings)
    async with AsyncExitStack() as stack:

        async def work() -> None:
            if not joined:
                joined.append(await stack.enter_async_context(node_of(app, settings, dsn, serve=False, work=True)))

        joined: list[Node] = []

        async def request_and_follow(connection: asyncpg.Connection) -> int:
            await prepare(connection, view)
            standing = await rebuild(connection, view)
            return await follow(connection, view.name, standing.number, show=show, alone=work)

        with _progress() as show:
            return await connected(settings, request_and_follow)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows progress: in one line of a terminal that it overwrites, else in the log."""
    if not sys.stderr.isatty():
        yield logger.info
        return
    try:
        yield lambda line: print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
