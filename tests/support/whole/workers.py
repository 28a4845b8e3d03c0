"""Workers of two kinds, which a test can kill: in the test process, and as processes of their own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
from msgspec.structs import replace
from tests.support.commands import Forked, clean_environ
from tests.support.waiting import until
from tests.support.whole.app import app

from headwater.config import Settings
from headwater.server.node import Node

HERE = Path(__file__).parent

QUICK = replace(Settings(), poll_seconds=0.1, lease_seconds=0.6, projection_batch=5, projection_cache=3)


class Here:
    """A worker in the test process, whose folds may have bugs. `kill` ends it as abruptly as a process."""

    def __init__(self, dsn: str) -> None:
        self.node = Node(app, QUICK, dsn, serve=False, work=True)
        self._connections: list[asyncpg.Connection] = []
        self._connect = self.node.database.connect
        self.node.database.connect = self._recorded  # type: ignore[method-assign]  # to know the connections that `kill` cuts

    async def _recorded(self, name: str, **options: Any) -> asyncpg.Connection:
        self._connections.append(await self._connect(name, **options))
        return self._connections[-1]

    async def start(self) -> None:
        await self.node.__aenter__()

    async def leave(self) -> None:
        await self.node.__aexit__(None, None, None)

    async def kill(self) -> None:
        """Cut the sockets first, so that no lease is released and no transaction rolled back, then cancel the tasks."""
        self.node.database.pool.terminate()
        stopping = asyncio.create_task(self.node.supervisor.stop_all())
        while not stopping.done():
            for connection in self._connections:  # repeated, since a task may still open one
                connection.terminate()
            await asyncio.wait([stopping], timeout=0.05)


class Apart:
    """A worker in a process of its own."""

    def __init__(self, dsn: str, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._environ = clean_environ() | {
            "DATABASE_URL": dsn,
            "HEADWATER_POLL_SECONDS": str(QUICK.poll_seconds),
            "HEADWATER_LEASE_SECONDS": str(QUICK.lease_seconds),
            "HEADWATER_PROJECTION_BATCH": str(QUICK.projection_batch),
            "HEADWATER_PROJECTION_CACHE": str(QUICK.projection_cache),
        }

    async def start(self) -> None:
        """Start the process and wait until it is registered as a worker, so that a later kill interrupts its work."""
        self._process = Forked(("work", "--app", "app:app", "--port", "0"), HERE, self._environ)
        await until(self._is_there)

    async def _is_there(self) -> bool:
        assert self._process.returncode is None, "the worker ended by itself"
        query = "select exists (select from headwater.workers where name like '%/' || $1)"
        return bool(await self._connection.fetchval(query, str(self._process.pid)))

    async def leave(self) -> None:
        self._process.terminate()
        await self._process.wait()

    async def kill(self) -> None:
        await self._process.close()
