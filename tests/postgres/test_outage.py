"""An outage of PostgreSQL, a read-only server or a full disk is logged in one line at its begin, a minute, its end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest
from tests.support.executing import accepted
from tests.support.proxy import Proxy
from tests.support.waiting import until

from bank.accounts.domain import OpenAccount
from bank.main import app as bank
from headwater.clock import VirtualClock
from headwater.config import Settings
from headwater.errors import PublicError, Unavailable
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.postgres.database import AWAY
from headwater.postgres.outage import Outage
from headwater.postgres.shortage import QUIET
from headwater.server.node import Node

MINUTE = timedelta(minutes=1)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the messages of every logger from level INFO on, as an operator sees them."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]


async def ask(node: Node, engine: Engine, over: asyncio.Event) -> None:
    """Send queries and commands, as clients do, until the test is over."""
    while not over.is_set():
        await engine.execute(GraphQLRequest("{ accounts(first: 1) { nodes { id } } }"), Scope(node.serving))
        with suppress(PublicError, TimeoutError):
            opened = OpenAccount(account_id=uuid4(), owner_id=uuid4(), currency="EUR")
            async with asyncio.timeout(0.2):
                await accepted(node, opened)


@asynccontextmanager
async def under_requests(dsn: str, clock: VirtualClock) -> AsyncIterator[Node]:
    """A node that serves and works, with five clients that read and write all the time."""
    settings = Settings(poll_seconds=0.1, lease_seconds=1.0)
    async with Node(bank, settings, dsn, serve=True, work=True, clock=clock) as node:
        engine, over = Engine(node.app.schema), asyncio.Event()
        asking = [asyncio.create_task(ask(node, engine, over)) for _ in range(5)]
        try:
            await until(lambda: node.appender.counts.commands > 5)
            yield node
        finally:
            over.set()
            await asyncio.gather(*asking)


async def test_a_node_under_requests_logs_an_outage_in_one_line_a_minute(
    proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    async with under_requests(proxy.dsn, clock) as node:
        caplog.clear()
        await proxy.go_away()
        await until(lambda: "PostgreSQL is unreachable" in caplog.text)
        for minutes in (1, 2):
            await clock.advance(MINUTE)
            await until(lambda: f"PostgreSQL has been unreachable for {minutes} min 0 s" in caplog.text)  # noqa: B023 - awaited within the turn
        assert "database" in await node.troubles()
        await proxy.listen()
        await until(lambda: "PostgreSQL answers again after 2 min 0 s" in caplog.text)
        written = node.appender.counts.commands
        await until(lambda: node.appender.counts.commands > written)
        await until(lambda: not node.supervisor.troubles)
    begun, first, second, over = lines(caplog)
    assert begun.startswith("PostgreSQL is unreachable (FileNotFoundError")
    assert first.startswith("PostgreSQL has been unreachable for 1 min 0 s")
    assert second.startswith("PostgreSQL has been unreachable for 2 min 0 s")
    assert over.startswith("PostgreSQL answers again after 2 min 0 s; failures since: appender (")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and record.exc_info]


async def test_a_server_that_becomes_read_only_is_logged_as_an_outage(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A failover leaves a process connected to a standby. The setting has the same effect on each statement."""
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    name = await connection.fetchval("select quote_ident(current_database())")
    async with under_requests(dsn, clock) as node:
        caplog.clear()
        await connection.execute(f"alter database {name} set default_transaction_read_only = on")
        await connection.execute(OTHERS_END)
        await until(lambda: "PostgreSQL is read-only" in caplog.text)
        reason = "the log cannot be written: the server is a standby, or read-only"
        await until(lambda: node.supervisor.troubles.get("appender") == reason)
        await clock.advance(MINUTE)
        await until(lambda: "PostgreSQL has been read-only for 1 min 0 s" in caplog.text)
        await connection.execute("set default_transaction_read_only = off")
        await connection.execute(f"alter database {name} reset default_transaction_read_only")
        await connection.execute(OTHERS_END)
        await until(lambda: "PostgreSQL can be written again after 1 min 0 s" in caplog.text)
        await until(lambda: not node.supervisor.troubles)
    begun, first, over = lines(caplog)
    assert begun == (
        "PostgreSQL is read-only (ReadOnlySQLTransactionError: the server is a standby, or read-only); every part of "
        "this process tries again until it can be written"
    )
    assert first.startswith("PostgreSQL has been read-only for 1 min 0 s (ReadOnlySQLTransactionError: ")
    assert over.startswith("PostgreSQL can be written again after 1 min 0 s; failures since: appender (")


OTHERS_END = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid()
"""
"""Ends the connections of all other sessions, so that their next ones have the database's settings."""


FULL = """
    create or replace function public.full_disk() returns trigger language plpgsql as
    $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
    create trigger full_disk before insert or update on {} for each statement execute function public.full_disk();
"""
"""Has PostgreSQL answer writes to a table as it does when the disk is full."""


async def test_a_full_disk_that_every_part_meets_is_logged_in_one_line_a_minute(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
    caplog.set_level(logging.DEBUG, "headwater.postgres.outage")
    async with under_requests(dsn, clock) as node:
        caplog.clear()
        await connection.execute(FULL.format("read.account_1"))
        await until(lambda: "PostgreSQL has no room for writes" in caplog.text)
        await connection.execute(FULL.format("headwater.events"))
        await until(lambda: "appender cannot use PostgreSQL: DiskFullError" in caplog.text)
        await clock.advance(MINUTE)
        await until(lambda: "PostgreSQL has had no room for writes for 1 min 0 s" in caplog.text)
        await connection.execute("drop function public.full_disk() cascade")
        await until(lambda: not node.supervisor.troubles)
        written = node.appender.counts.commands
        await until(lambda: node.appender.counts.commands > written)
        await clock.advance(QUIET)
        await until(lambda: "PostgreSQL has room again" in caplog.text)
    begun, first, over = lines(caplog)
    reason = "DiskFullError: could not extend file: No space left on device"
    assert begun == f"PostgreSQL has no room for writes ({reason}); every part of this process tries again"
    counted = r"; failures since: appender \([\d,]+\), .*Account.* \(\d+\); commands not written: [1-9]"
    assert re.search(counted, first)
    assert re.search(counted, over)
    assert first.startswith(f"PostgreSQL has had no room for writes for 1 min 0 s ({reason}); ")
    assert over.startswith("PostgreSQL has room again: no write was rejected for 30 s, after 1 min 0 s in which some ")
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and record.exc_info]


class Server:
    """A database that answers unless the test sets a fault. asked: set by an attempt to connect."""

    def __init__(self) -> None:
        self.fault: BaseException | None = None
        self.asked = asyncio.Event()

    async def connect(self) -> None:
        self.asked.set()
        if self.fault is not None:
            raise self.fault


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def outage(server: Server) -> AsyncIterator[Outage]:
    """An outage log that runs."""
    outage = Outage(server.connect, AWAY, VirtualClock(datetime(2026, 1, 1, tzinfo=UTC)))
    running = asyncio.create_task(outage.run())
    await asyncio.sleep(0)  # it starts
    yield outage
    running.cancel()
    await asyncio.wait([running])


async def test_one_lost_connection_is_logged_as_such_when_postgresql_answers(
    server: Server, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    assert outage.covers("listener", ConnectionError("reset"))
    await until(lambda: lines(caplog))
    assert lines(caplog) == ["listener failed, though PostgreSQL answers: ConnectionError: reset"]
    assert not caplog.records[-1].exc_info


async def test_an_error_of_the_driver_is_logged_with_its_traceback(
    server: Server, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    assert outage.covers("listener", asyncpg.InterfaceError("another operation is in progress"))
    await until(lambda: lines(caplog))
    assert caplog.records[-1].exc_info


async def test_an_error_that_is_no_loss_of_the_database_is_not_covered_by_the_outage_log(outage: Outage) -> None:
    for error in (ValueError("a bug"), asyncpg.UndefinedTableError("no table"), Unavailable("shutting down")):
        assert not outage.covers("projection Account", error)


async def test_a_failure_that_an_outage_leaves_behind_adds_no_line(
    server: Server, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = ConnectionRefusedError("refused")
    assert outage.covers("appender", ConnectionError("reset"))
    await until(lambda: "is unreachable" in caplog.text)
    assert outage.covers("saga Transfer", Unavailable("no log"))
    assert outage.count("commands not written", 1200)
    server.fault = None
    await until(lambda: "answers again" in caplog.text)
    server.asked.clear()
    assert outage.covers("leases", ConnectionError("found only now"))
    await server.asked.wait()
    assert not outage.count("commands not written", 1)
    assert lines(caplog) == [
        "PostgreSQL is unreachable (ConnectionRefusedError: refused); every part of this process tries again until it "
        "answers",
        "PostgreSQL answers again after 0.0 s; failures since: appender (1), saga Transfer (1); "
        "commands not written: 1,200",
    ]


async def test_an_outage_soon_after_another_is_logged_too(
    server: Server, outage: Outage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        server.fault = ConnectionRefusedError("refused")
        assert outage.covers("appender", ConnectionError("reset"))
        await until(lambda: "is unreachable" in caplog.text)
        server.fault = None
        await until(lambda: "answers again" in caplog.text)


async def test_parts_log_their_own_failures_where_no_outage_log_runs(server: Server) -> None:
    idle = Outage(server.connect, AWAY, VirtualClock(datetime(2026, 1, 1, tzinfo=UTC)))
    assert not idle.covers("rebuild", ConnectionError("reset"))
