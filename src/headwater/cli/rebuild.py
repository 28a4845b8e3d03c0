"""`headwater rebuild NAME`: rebuilds a read model's rows, or a projection's tables, from the log, and waits for it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import asyncpg

from headwater.app import App
from headwater.cli.application import load, view_named
from headwater.cli.connection import connected, dsn_to_ask
from headwater.cli.loop import complete
from headwater.cli.node import node_of
from headwater.cli.rebuild_progress import follow, follow_anew
from headwater.config import Settings
from headwater.consumers.checkpoint import register
from headwater.domain.projection import Projection
from headwater.domain.read_model import View
from headwater.projections.generations import prepare, rebuild
from headwater.projections.projection_runner import start_over
from headwater.server.node import Node
from headwater.server.worker import projection_fingerprint

logger = logging.getLogger(__name__)


def run(chosen: argparse.Namespace, settings: Settings) -> None:
    app = load(chosen.app)
    projection = next((each for each in app.domain.projections if each.name == chosen.name), None)
    if projection is not None:
        position = complete(_rebuilt(app, settings, partial(_handled_again, projection)))
        print(f"The tables of {chosen.name} are emptied and written again, up to position {position:,}.")
        return
    view = view_named(app, chosen.name)
    position = complete(_rebuilt(app, settings, partial(_folded_again, view)))
    print(f"{chosen.name} is live with its new rows, from position {position:,} on.")


class _Again(Protocol):
    """Requests a rebuild, and waits for it. alone: is awaited when no worker can do it. Returns the position."""

    async def __call__(
        self, connection: asyncpg.Connection, *, show: Callable[[str], None], alone: Callable[[], Awaitable[None]]
    ) -> int: ...


async def _folded_again(
    view: View[Any],
    connection: asyncpg.Connection,
    *,
    show: Callable[[str], None],
    alone: Callable[[], Awaitable[None]],
) -> int:
    """Register the next generation of a read model, and wait until it is live."""
    await prepare(connection, view)
    standing = await rebuild(connection, view)
    return await follow(connection, view.name, standing.number, show=show, alone=alone)


async def _handled_again(
    projection: Projection[Any],
    connection: asyncpg.Connection,
    *,
    show: Callable[[str], None],
    alone: Callable[[], Awaitable[None]],
) -> int:
    """Have a projection's tables emptied and written again, and wait until they are complete."""
    await register(connection, projection.unit, projection_fingerprint(projection))
    head = await start_over(connection, projection)
    return await follow_anew(connection, projection.unit, head, show=show, alone=alone)


async def _rebuilt(app: App, settings: Settings, again: _Again) -> int:
    """Rebuild. If no worker runs, this process works meanwhile."""
    dsn = settings.database_url or dsn_to_ask(settings)
    async with AsyncExitStack() as stack:

        async def work() -> None:
            if not joined:
                joined.append(await stack.enter_async_context(node_of(app, settings, dsn, serve=False, work=True)))

        joined: list[Node] = []

        with _progress() as show:
            return await connected(settings, partial(again, show=show, alone=work))


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
