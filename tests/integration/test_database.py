"""Connections: each notices when the other side has gone without a word, and is closed by who opened it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from bank.accounts.views import account_view
from bank.main import app as bank
from headwater.database import SILENCE, Database
from headwater.log import Log
from headwater.rebuild import Rebuild
from headwater.tables import Standing
from headwater.verify import Verifier


@pytest.fixture
async def tcp_dsn(dsn: str) -> AsyncIterator[str]:
    """The test's database over TCP, which the embedded PostgreSQL does not listen on."""
    where = parse_qs(urlsplit(dsn).query)
    path = str(Path(where["host"][0]) / f".s.PGSQL.{where['port'][0]}")
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(path)
        tasks.update(
            asyncio.create_task(pass_on(source, target))
            for source, target in ((reader, server_writer), (server_reader, writer))
        )

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    user = where.get("user", [urlsplit(dsn).username or "postgres"])[0]
    yield f"postgresql://{user}@127.0.0.1:{port}{urlsplit(dsn).path}?sslmode=disable"
    listening.close()
    if tasks:
        await asyncio.wait(tasks)


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    except OSError:
        pass
    finally:
        target.transport.abort()


async def test_a_silent_network_is_noticed_by_the_kernel(tcp_dsn: str) -> None:
    async with Database(tcp_dsn, pool_size=1) as database:
        alone = await database.connect("test")
        async with database.pool.acquire() as pooled:
            for connection in (alone, pooled):
                found = options_of(connection)
                assert found == {"SO_KEEPALIVE": 1} | {name: SILENCE[name] for name in found if name in SILENCE}
                assert sys.platform != "linux" or len(found) == 1 + len(SILENCE)
        alone.terminate()


def options_of(connection: Any) -> dict[str, int]:
    endpoint = connection._transport.get_extra_info("socket")
    alive = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    there = {name: getattr(socket, name) for name in SILENCE if hasattr(socket, name)}
    return {"SO_KEEPALIVE": alive} | {
        name: endpoint.getsockopt(socket.IPPROTO_TCP, option) for name, option in there.items()
    }


class Halfway(Database):
    """Gives one connection. The next one takes for ever."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, pool_size=1)
        self.given: list[asyncpg.Connection] = []
        self.asked_again = asyncio.Event()

    async def connect(self, name: str, **options: Any) -> asyncpg.Connection:
        if self.given:
            self.asked_again.set()
            await asyncio.Event().wait()
        self.given.append(await super().connect(name, **options))
        return self.given[-1]


async def build(database: Database, log: Log) -> None:
    await Rebuild(database, log, account_view).build(Standing(2, "account_2", 0, 0, ""))


async def verify(database: Database, log: Log) -> None:
    await Verifier(log, account_view).live(database, None)


@pytest.mark.parametrize("work", [build, verify])
async def test_what_ends_between_its_two_connections_leaves_none(
    dsn: str, work: Callable[[Database, Log], Coroutine[Any, Any, None]]
) -> None:
    database = Halfway(dsn)
    async with database:
        working = asyncio.create_task(work(database, Log(database.pool, bank.domain.codec)))
        await database.asked_again.wait()
        working.cancel()
        await asyncio.wait([working])
        assert [connection.is_closed() for connection in database.given] == [True]
