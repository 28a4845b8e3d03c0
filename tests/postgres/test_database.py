"""Connections: they detect a silent peer, are closed by the code that opened them, and work through PgBouncer."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from tests.support.proxy import Proxy
from tests.support.waiting import until

from bank.accounts.views import account_view
from bank.main import app as bank
from headwater.consumers.checkpoint import Generation
from headwater.eventstore.log import Log
from headwater.postgres.database import LOST, SILENCE, Database, socket_of, take_times_by_number
from headwater.postgres.migrations import migrate
from headwater.projections.generations import prepare_views, table_lock
from headwater.projections.rebuild import Rebuild
from headwater.projections.verify import Verifier


@pytest.fixture
async def tcp_dsn(dsn: str) -> AsyncIterator[str]:
    """Give the test's database over TCP, since the embedded PostgreSQL listens only on a Unix socket."""
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


async def test_connections_set_the_keepalive_options_by_which_the_kernel_detects_a_silent_network(tcp_dsn: str) -> None:
    async with Database(tcp_dsn, pool_size=1) as database:
        alone = await database.connect("test")
        async with database.pool.acquire() as pooled:
            for connection in (alone, pooled):
                found = options_of(connection)
                assert found == {"SO_KEEPALIVE": 1} | {name: SILENCE[name] for name in found if name in SILENCE}
                assert sys.platform != "linux" or len(found) == 1 + len(SILENCE)
        alone.terminate()


def options_of(connection: Any) -> dict[str, int]:
    endpoint = socket_of(connection)
    assert endpoint is not None
    alive = endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    there = {name: getattr(socket, name) for name in SILENCE if hasattr(socket, name)}
    return {"SO_KEEPALIVE": alive} | {
        name: endpoint.getsockopt(socket.IPPROTO_TCP, option) for name, option in there.items()
    }


async def test_a_process_that_is_paused_while_it_changes_tables_does_not_block_others(
    dsn: str, connection: asyncpg.Connection
) -> None:
    stopped = await asyncpg.connect(dsn)

    async def stop() -> None:
        async with table_lock(stopped, "Tally", quiet=1):
            async with table_lock(connection, "Tally"):
                pass
            await until(stopped.is_closed)

    with pytest.raises(asyncpg.InterfaceError):  # its session was terminated before it could end the transaction
        await stop()


TAKEN_BY_PGBOUNCER = {b"user", b"database", b"application_name", b"client_encoding", b"timezone"}
"""The startup parameters that PgBouncer accepts. It rejects a connection with any other."""


async def test_connections_send_only_startup_parameters_that_pgbouncer_accepts(proxy: Proxy) -> None:
    await migrate(proxy.dsn)
    await prepare_views(proxy.dsn, bank.domain.views)
    async with Database(proxy.dsn, pool_size=1, statement_timeout=1.5) as database:
        alone = await database.connect("test")
        set_for = {
            name: [await each.fetchval(f"show {name}") for each in (database.pool, alone)]
            for name in (
                *("application_name", "timezone", "jit"),
                *("statement_timeout", "idle_in_transaction_session_timeout"),
            )
        }
        alone.terminate()
    # After a length and a version come names and values, each ended by a zero byte, and one more zero byte.
    asked = [greeting[8:].split(b"\0")[:-2:2] for greeting in proxy.greetings]
    assert len(asked) == 4
    assert {name for names in asked for name in names} <= TAKEN_BY_PGBOUNCER
    assert set_for == {
        "application_name": ["headwater", "headwater test"],
        "timezone": ["UTC", "UTC"],
        "jit": ["off", "off"],
        "statement_timeout": ["1500ms", "0"],
        "idle_in_transaction_session_timeout": ["1500ms", "0"],
    }


@pytest.mark.parametrize("ended", ["given up", "cut off"])
async def test_a_network_that_falls_silent_while_a_connection_is_set_up_blocks_no_cancellation(
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


class Halfway(Database):
    """A database that gives one connection. The second one never arrives."""

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
    await Rebuild(database, log, account_view).build(Generation(2, "account_2", 0, 0, ""))


async def verify(database: Database, log: Log) -> None:
    await Verifier(log, account_view).live(database, None)


@pytest.mark.parametrize("work", [build, verify])
async def test_work_that_is_cancelled_between_its_two_connections_closes_the_first(
    dsn: str, work: Callable[[Database, Log], Coroutine[Any, Any, None]]
) -> None:
    database = Halfway(dsn)
    async with database:
        working = asyncio.create_task(work(database, Log(database.pool, bank.domain.codec)))
        await database.asked_again.wait()
        working.cancel()
        await asyncio.wait([working])
        assert [connection.is_closed() for connection in database.given] == [True]


MOMENTS = [
    datetime(2000, 1, 1, tzinfo=UTC),
    datetime(1999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 7, 1, 12, 30, 0, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    datetime(1, 1, 1, 0, 0, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
]


async def test_times_read_as_numbers_are_equal_to_times_read_by_the_driver(dsn: str) -> None:
    async with Database(dsn, pool_size=1) as database:
        plain, by_number = await database.connect("plain"), await database.connect("by number")
        await take_times_by_number(by_number)
        await plain.execute("create table moments (moment timestamptz)")
        for each in (plain, by_number):
            await each.copy_records_to_table("moments", records=[(moment,) for moment in MOMENTS])
        await plain.execute("insert into moments values ('infinity'), ('-infinity'), (null)")
        one, other = [[row[0] for row in await each.fetch("table moments")] for each in (plain, by_number)]
        assert other == one
        assert other[: 2 * len(MOMENTS)] == MOMENTS * 2
        assert {moment.tzinfo for moment in other[: 2 * len(MOMENTS)]} == {UTC}
        assert other[-1] is None
        with pytest.raises(asyncpg.DataError, match="offset-naive"):
            await by_number.fetchval("select $1::timestamptz", datetime(2026, 1, 1))  # noqa: DTZ001 - without a zone
        plain.terminate()
        by_number.terminate()
