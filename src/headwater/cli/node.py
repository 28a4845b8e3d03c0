"""Runs the app as a node of the database that the settings name."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from headwater.app import App
from headwater.cli.connection import session_variable
from headwater.config import Settings
from headwater.postgres.reaching import reaching
from headwater.server.node import Node


@asynccontextmanager
async def node_of(app: App, settings: Settings, dsn: str, *, serve: bool, work: bool) -> AsyncIterator[Node]:
    """Run the app as a node. A database that cannot be reached is reported as a wrong setting only during the start.

    After the start the garbage collector ignores everything that exists by then, since classes and schema live as long
    as the process: scanning them again and again took a quarter of its time.
    """
    async with AsyncExitStack() as stack:
        with reaching(" or ".join(sorted({"DATABASE_URL", session_variable(settings)}))):
            node = await stack.enter_async_context(Node(app, settings, dsn, serve=serve, work=work))
        if serve:
            app.schema  # noqa: B018  # its first use makes it
        gc.collect()
        gc.freeze()
        yield node
