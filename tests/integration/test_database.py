"""Connections: each notices when the other side has gone without a word, and can be had through PgBouncer."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from tests.integration.proxy import Proxy
from tests.waiting import until

from bank.accounts.views import account_view
from bank.main import app as bank
from headwater.database import LOST, SILENCE, Database
from headwater.log import Log
from headwater.migrate import migrate, prepare_views
from headwater.rebuild import Rebuild
from headwater.tables import rebuild
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


TAKEN_BY_PGBOUNCER = {b"user", b"database", b"application_name", b"client_encoding", b"timezone"}
"""Of what a connection may ask for when it is made. Whoever asks for more is sent away."""


async def test_no_connection_asks_for_what_pgbouncer_does_not_take(proxy: Proxy) -> None:
    await migrate(proxy.dsn)
    await prepare_views(proxy.dsn, bank.domain.views)
    async with Database(proxy.dsn, pool_size=1, statement_timeout=1.5) as database:
        alone = await database.connect("test")
        set_for = {
            name: [await each.fetchval(f"show {name}") for each in (database.pool, alone)]
            for name in ("application_name", "timezone", "jit", "statement_timeout")
        }
        alone.terminate()
    # After a length and a version: names and values, each ended by a zero, and one more at the end.
    asked = [greeting[8:].split(b"\0")[:-2:2] for greeting in proxy.greetings]
    assert len(asked) == 4
    assert {name for names in asked for name in names} <= TAKEN_BY_PGBOUNCER
    assert set_for == {
        "application_name": ["headwater", "headwater test"],
        "timezone": ["UTC", "UTC"],
        "jit": ["off", "off"],
        "statement_timeout": ["1500ms", "0"],
    }


@pytest.mark.parametrize("ended", ["given up", "cut off"])
async def test_a_network_that_falls_silent_while_a_connection_is_set_up_holds_up_nobody(
    proxy: Proxy, ended: str
) -> None:
    async with Database(proxy.dsn, pool_size=2) as database, database.pool.acquire():
        proxy.silent_from = b"set jit"
        waiting = asyncio.create_task(database.pool.fetchval("select 1"))
        await until(lambda: proxy.silent)
        if ended == "given up":
            waiting.cancel()
        else:
            database.cut_off()
        done, _ = await asyncio.wait([waiting], timeout=5)
        assert done == {waiting}
        assert waiting.cancelled() if ended == "given up" else isinstance(waiting.exception(), LOST)
        proxy.silent_from, proxy.silent = None, False


@pytest.mark.parametrize("first, second", [("verifying Account", "log"), ("building Account 2", "reading")])
async def test_who_has_no_second_connection_does_not_keep_the_first(
    proxy: Proxy, connection: asyncpg.Connection, first: str, second: str
) -> None:
    standing = await rebuild(connection, account_view)
    there = "select exists (select from pg_stat_activity where datname = current_database() and application_name = $1)"
    async with Database(proxy.dsn, pool_size=1) as database:
        log = Log(database.pool, bank.domain.codec)
        build, verify = Rebuild(database, log, account_view).build, Verifier(log, account_view).live
        proxy.silent_from = f"{first}, {second}".encode()
        waiting = asyncio.create_task(build(standing) if second == "reading" else verify(database, 5))
        await until(lambda: proxy.silent)
        assert await connection.fetchval(there, f"headwater {first}")
        waiting.cancel()
        await asyncio.wait([waiting])
        gone = there.replace("select exists", "select not exists")
        await until(lambda: connection.fetchval(gone, f"headwater {first}"), seconds=5)
        proxy.silent_from, proxy.silent = None, False
