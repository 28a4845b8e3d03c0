"""The health of a process: what makes it not ready, what does not, since when, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from tests.support.executing import accepted
from tests.support.projecting import QUICK, Counted, Poisoned, fragile_app, write
from tests.support.proxy import Proxy
from tests.support.waiting import until

from bank.accounts.domain import OpenAccount
from bank.main import app as bank
from bank.transfers.domain import RequestTransfer
from bank.users.domain import RegisterUser
from headwater import App
from headwater.cli.status_report import Status, status
from headwater.clock import VirtualClock
from headwater.config import Settings
from headwater.consumers.standings import read_standings
from headwater.errors import Unavailable
from headwater.eventstore.epoch import Epochs
from headwater.server.monitoring import health_routes, metrics_route
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

OFTEN = replace(Settings(), lease_seconds=0.3)
GRACE = 0.3
READY = (200, {"status": "ready", "readable": True, "writable": True})


OTHERS_END = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid()
"""


def not_ready(*troubles: str, readable: bool, writable: bool) -> tuple[int, Mapping[str, object]]:
    return 503, {"status": "not ready", "readable": readable, "writable": writable, "troubles": list(troubles)}


async def get(node: Node, path: str) -> httpx.Response:
    app = Starlette(routes=[*health_routes(node), metrics_route(node)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)


async def answer(node: Node) -> tuple[int, Mapping[str, object]]:
    response = await get(node, "/health/ready")
    return response.status_code, response.json()


async def answers(node: Node, expected: tuple[int, Mapping[str, object]]) -> None:
    """Wait until `/health/ready` gives an answer."""

    last: object = None

    async def is_so() -> bool:
        nonlocal last
        last = await answer(node)
        return last == expected

    try:
        await until(is_so)
    except AssertionError as error:
        raise AssertionError(f"it answers {last}, not {expected}") from error


async def samples(node: Node, name: str) -> list[tuple[Mapping[str, str], float]]:
    families = text_string_to_metric_families((await get(node, "/metrics")).text)
    return [(each.labels, each.value) for family in families if family.name == name for each in family.samples]


@asynccontextmanager
async def locked(dsn: str, statement: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that keeps a lock."""
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        await connection.execute(statement)
        yield connection
    await connection.close()


def opened() -> OpenAccount:
    return OpenAccount(account_id=uuid4(), owner_id=uuid4(), currency="EUR")


async def looks(node: Node, number: int = 5) -> None:
    """Let a process look at itself several times: each time it must find nothing that makes it not ready."""
    for _ in range(number):
        assert await node.troubles() == {}


# Lag -----------------------------------------------------------------------------------------------------------------


async def test_twenty_thousand_pending_transfers_leave_a_process_ready(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(work=False, grace=0)
    one, other = opened(), opened()
    await accepted(node, one)
    await accepted(node, other)

    async def transfer() -> None:
        ids = {"from_account_id": one.account_id, "to_account_id": other.account_id}
        await accepted(node, RequestTransfer(transfer_id=uuid4(), amount=Decimal(1), **ids))

    for _ in range(10):
        await asyncio.gather(*(transfer() for _ in range(2_000)))
    # An hour later. The log is append-only, so the test has to be its superuser.
    await connection.execute("alter table headwater.events disable trigger append_only")
    await connection.execute("update headwater.events set recorded_at = recorded_at - interval '1 hour'")
    lags = [(each.lag_events, each.lag_seconds) for each in (await read_standings(connection)).projections]
    assert min(lags) > (20_000, 3600)

    await node.health.begin()
    assert await answer(node) == READY
    shown = (await status(connection, {})).as_text()
    assert "Account 1 is 1:0" in shown
    assert "behind the log; no worker runs it." in shown


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "select from headwater.head for update",
        "update headwater.head set position = position",
        "lock table headwater.head in share mode",
        "lock table headwater.events in share mode",  # as `create index` does
        "lock table headwater.claims in share mode",
    ],
)
async def test_a_log_that_is_locked_for_good_makes_a_process_unready_until_the_lock_is_gone(
    start: Start, dsn: str, statement: str
) -> None:
    node = await start(work=False, grace=GRACE)
    assert await answer(node) == READY
    async with locked(dsn, statement):
        await answers(node, not_ready("log write", readable=True, writable=False))
        for _ in range(5):
            await node.troubles()
            assert await answer(node) != READY
    await answers(node, READY)
    await accepted(node, opened())


async def test_a_log_that_cannot_be_read_is_another_line(start: Start, dsn: str) -> None:
    node = await start(work=False, grace=GRACE)
    async with locked(dsn, "lock table headwater.events in access exclusive mode"):
        await answers(node, not_ready("log read", "log write", readable=False, writable=False))
    await answers(node, READY)


async def test_a_busy_log_leaves_a_process_ready(start: Start, dsn: str) -> None:
    """Its lock is held at nearly every look, by one session after the other, each of which writes."""
    node = await start(App([]), work=False, grace=0)
    over, holds = asyncio.Event(), 0

    async def hold() -> None:
        nonlocal holds
        connection = await asyncpg.connect(dsn)
        while not over.is_set():
            async with connection.transaction():
                await connection.execute("update headwater.head set position = position + 1")
                holds += 1
                await connection.execute("select pg_sleep(0.02)")
        await connection.close()

    holding = [asyncio.create_task(hold()) for _ in range(4)]
    await until(lambda: holds > 4)
    probe = await asyncpg.connect(dsn)
    found, free = [], []
    for _ in range(60):
        found.append(await node.troubles())
        free.append(await probe.fetchval("select free from headwater.probe_append(1)"))
        await probe.execute("select pg_sleep(0.05)")
    await probe.close()
    over.set()
    await asyncio.gather(*holding)
    assert free.count(False) > 30
    assert not any(one and other for one, other in pairwise(found)), "none lasts: the position has moved by then"


async def test_a_look_waits_for_no_lock_keeps_none_and_writes_nothing(
    start: Start, dsn: str, connection: asyncpg.Connection
) -> None:
    await start(App([]))
    before = await connection.fetchrow("select * from headwater.head")
    async with connection.transaction():
        assert await connection.fetchval("select free from headwater.probe_append(1)")
        kept = """
            select c.relname, l.mode from pg_locks l join pg_class c on c.oid = l.relation
             where l.pid = pg_backend_pid() and c.relnamespace = 'headwater'::regnamespace
        """
        assert await connection.fetch(kept) == []
        async with locked(dsn, "select from headwater.head for update nowait"):
            pass
    async with locked(dsn, "select from headwater.head for update"), connection.transaction():
        await connection.execute("set local statement_timeout = 1000")
        assert await connection.fetchval("select free from headwater.probe_append(1)") is False
    assert await connection.fetchrow("select * from headwater.head") == before


async def test_a_process_that_has_just_written_does_not_ask(start: Start, dsn: str) -> None:
    node = await start(work=False, grace=0)
    await node.troubles()
    await accepted(node, opened())
    async with locked(dsn, "select from headwater.head for update"):
        assert await node.troubles() == {}
        assert list(await node.troubles()) == ["log write"]


async def test_a_lock_that_is_held_for_a_moment_is_no_trouble(start: Start, dsn: str) -> None:
    node = await start(work=False, grace=60)
    async with locked(dsn, "select from headwater.head for update"):
        assert list(await node.troubles()) == ["log write"], "what is found"
        await node.health._look_and_note(60)
        assert await answer(node) == READY, "until it has lasted for the grace"
    await looks(node)


async def test_a_server_that_becomes_read_only_can_be_read(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(work=False, grace=GRACE)
    name = await connection.fetchval("select quote_ident(current_database())")
    await connection.execute(f"alter database {name} set default_transaction_read_only = on")
    await connection.execute(OTHERS_END)
    await until(lambda: "log write" in node.health.unready)
    assert (node.health.readable, node.health.writable) == (True, False)
    await connection.execute("set default_transaction_read_only = off")
    await connection.execute(f"alter database {name} reset default_transaction_read_only")
    # Without an end of its connections: each part asks again on a new one.
    await answers(node, READY)


async def test_a_database_that_goes_away_can_be_neither_read_nor_written(proxy: Proxy) -> None:
    async with Node(bank, Settings(), proxy.dsn, serve=True, work=False, grace_seconds=GRACE) as node:
        assert await answer(node) == READY
        await proxy.go_away()
        await until(lambda: "database" in node.health.unready)
        assert (node.health.readable, node.health.writable) == (False, False)
        await proxy.listen()
        await answers(node, READY)


async def test_the_epoch_that_the_process_knows_has_to_be_current(start: Start, connection: asyncpg.Connection) -> None:
    """As an append would be refused. The next connection learns of the new one."""
    node = await start(App([]), work=False, grace=0)
    await connection.execute("set session_replication_role = replica")
    await connection.execute("select headwater.begin_epoch(1, 'test')")

    async def knows() -> bool:
        return await node.troubles() == {} and node.positions.epochs.current.number == 2

    await until(knows)
    known = Epochs()
    await known.enter(connection)
    assert known.current.number == 2


# What is no reason ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["projections", "dead_letters", "workers", "processes", "sagas", "snapshots"])
@pytest.mark.parametrize("serve", [True, False], ids=["serve", "work"])
async def test_a_lock_on_a_table_of_lesser_importance_leaves_a_process_ready(
    start: Start, dsn: str, table: str, serve: bool
) -> None:
    node = await start(settings=OFTEN, serve=serve, work=not serve, grace=0)
    await until(lambda: serve or node.leases.held)
    async with locked(dsn, f"lock table headwater.{table} in access exclusive mode"):
        if not serve and table in ("projections", "workers"):
            await until(lambda: "leases" in node.supervisor.troubles)
        await looks(node)
        await node.health.begin()
        assert await answer(node) == READY
        assert all(not each.unready for each in node.health.troubles)


async def test_a_process_can_connect_while_the_checkpoints_are_locked(start: Start, dsn: str) -> None:
    node = await start(work=False, grace=0)
    async with locked(dsn, "lock table headwater.projections in access exclusive mode"):
        node.database.end_greeted()
        await accepted(node, opened())


async def test_a_lock_on_a_read_model_leaves_a_process_ready(start: Start, dsn: str) -> None:
    node = await start(settings=OFTEN, grace=0)
    async with locked(dsn, "lock table read.account_1 in access exclusive mode"):
        await accepted(node, opened())
        await looks(node)


async def test_a_projection_that_stopped_leaves_a_process_that_also_serves_ready(
    start: Start, connection: asyncpg.Connection
) -> None:
    both = await start(fragile_app, settings=QUICK, grace=0)
    await until(lambda: len(both.leases.held) == len(both.worker.runs))
    thing = uuid4()
    await write(connection, Counted(thing_id=thing), Poisoned(thing_id=thing))
    await until(lambda: "projection Fragile" in both.supervisor.troubles)
    await both.health.begin()
    assert await answer(both) == READY
    (trouble,) = both.health.troubles
    assert (trouble.name, trouble.unready) == ("projection Fragile", False)


# Since when, and why -------------------------------------------------------------------------------------------------


async def test_status_and_metrics_say_since_when_and_why(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock(datetime(2026, 6, 1, 12, tzinfo=UTC))
    async with Node(bank, OFTEN, dsn, serve=True, work=False, clock=clock, grace_seconds=GRACE) as node:
        assert await samples(node, "headwater_ready") == [({}, 1)]
        assert await samples(node, "headwater_trouble_since_seconds") == []

        async def reported(complete: Callable[[Status], bool]) -> Status:
            async def found() -> Status | None:
                now = await status(connection, {})
                return now if now.processes and complete(now) else None

            now: Status = await until(found)
            return now

        assert "  yes  " in (await reported(lambda now: now.processes[0].report.ready)).as_text()
        async with locked(dsn, "select from headwater.head for update"):
            await answers(node, not_ready("log write", readable=True, writable=False))
            await clock.advance(timedelta(minutes=5))
            now = await reported(lambda now: not now.processes[0].report.ready)
            process = now.processes[0].name
            why = "log write: another session has locked the log, and does not write"
            assert f"{process} is not ready since 2026-06-01 12:00:00 UTC: {why}" in now.as_text()
            assert await samples(node, "headwater_ready") == [({}, 0)]
            since = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
            labels = {"trouble": "log write", "unready": "true"}
            assert await samples(node, "headwater_trouble_since_seconds") == [(labels, since)]
        await answers(node, READY)
        await reported(lambda now: now.processes[0].report.ready)
    lines = [record.getMessage() for record in caplog.records if record.name == "headwater.server.health"]
    assert lines == [f"this process is not ready: {why}", "log write works again after 300.0 s"]


async def test_a_full_disk_leaves_a_process_ready_that_says_that_it_cannot_write(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(work=False, grace=GRACE)
    await node.dispatcher.execute(opened())
    await connection.execute("""
        create function public.full_disk() returns trigger language plpgsql as
        $$ begin raise exception 'No space left on device' using errcode = '53100'; end $$;
        create trigger full_disk before insert on headwater.events
           for each statement execute function public.full_disk()
    """)
    with pytest.raises(Unavailable):
        await node.dispatcher.execute(opened())
    await answers(node, (200, {"status": "ready", "readable": True, "writable": False}))
    (trouble,) = node.health.troubles
    assert (trouble.name, trouble.why) == ("log write", "DiskFullError: No space left on device")
    await connection.execute("drop function public.full_disk() cascade")
    await node.dispatcher.execute(opened())
    await answers(node, READY)


async def test_a_process_that_starts_while_the_log_is_locked_is_not_ready_at_once(start: Start, dsn: str) -> None:
    await start(App([]))  # the first process on a database names its server in it
    async with locked(dsn, "select from headwater.head for update"):
        node = await start(work=False, grace=60)
        assert await answer(node) == not_ready("log write", readable=True, writable=False)


async def test_a_trouble_has_lasted_since_the_look_that_found_it_began(start: Start, dsn: str) -> None:
    """Each question of a look waits for a lock on the end of the log, one after the other."""
    node = await start(work=False, probe_seconds=0.5)
    async with locked(dsn, "lock table headwater.head in access exclusive mode"):
        before = datetime.now(UTC)
        await node.health.begin()
        took = datetime.now(UTC) - before
        since = {each.name: each.since - before for each in node.health.troubles}
    assert since.keys() == {"log read", "log write"}
    assert max(since.values()) < timedelta(seconds=0.5) < took


async def test_a_failing_task_counts_when_its_code_is_at_fault(start: Start) -> None:
    node = await start(App([]), work=False, grace=0)

    async def fail_by_itself() -> None:
        raise ValueError("a bug")

    async def lose_the_database() -> None:
        raise ConnectionResetError("reset")

    node.supervisor.start("feed A", fail_by_itself)
    node.supervisor.start("feed B", lose_the_database)
    await until(lambda: len(node.supervisor.troubles) == 2)
    await node.health.begin()
    assert node.health.unready == {"feed A": "ValueError: a bug"}
    assert [(each.name, each.unready) for each in node.health.troubles] == [("feed A", True), ("feed B", False)]


async def test_a_process_that_cannot_look_is_not_ready(start: Start) -> None:
    """What it found last says nothing any more."""
    node = await start(App([]), work=False)
    node.supervisor.unwell("health", "ValueError: a bug")
    assert await answer(node) == not_ready("health", readable=True, writable=True)


async def test_commands_are_written_while_the_process_looks(start: Start) -> None:
    node = await start(work=False)

    async def look() -> None:
        while True:
            await node.troubles()

    looking = asyncio.create_task(look())
    for number in range(50):
        done = await accepted(node, RegisterUser(user_id=uuid4(), email=f"{number}@example.org", name="Ada"))
        assert done.position == number + 1
    assert node.health.unready == {}
    looking.cancel()
