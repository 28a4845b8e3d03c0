"""Runs the app as a node of the database that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from headwater.app import App
from headwater.cli.connection import session_variable
from headwater.config import Settings
from headwater.postgres.reaching import reaching
from headwater.server.node import Node


@asynccontextmanager
async def node_of(app: App, settings: Settings, dsn: str, *, serve: bool, work: bool) -> AsyncIterator[Node]:
    """Run the app as a node. A database that cannot be reached is reported as a wrong setting only during the start."""
    async with AsyncExitStack() as stack:
        with reaching(" or ".join(sorted({"DATABASE_URL", session_variable(settings)}))):
            node = await stack.enter_async_context(Node(app, settings, dsn, serve=serve, work=work))
        yield node
