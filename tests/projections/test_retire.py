"""A unit that was removed from an app falls behind the log until an operator retires it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support import posts, works
from tests.support.commands import clean_environ, run_command
from tests.support.executing import accepted
from tests.support.posts import Outside, app_of, posted, write
from tests.support.waiting import until
from tests.support.works import PlaceOrder

from headwater import App, Decider, Feature
from headwater.config import Settings
from headwater.consumers.standings import read_standings
from headwater.domain.saga_state import Phase
from headwater.ids import new_id
from headwater.projections.retire import NotRetired, retire
from headwater.sagas import operations
from headwater.server.node import Node

QUICK = replace(Settings(), poll_seconds=0.05, lease_seconds=1.0, retired_seconds=0.1)

without = App([Feature([Decider("box", "box_id", None, posts.decide, posts.evolve)])])


async def names(connection: asyncpg.Connection) -> set[str]:
    """Return the names that have a live or building generation."""
    return {each.name for each in (await read_standings(connection)).projections} & {"Box", "reactor outside"}


async def kept(dsn: str, app: App) -> None:
    """Run a worker of an app until its projections are at the head."""
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        head = await node.log.head()
        await until(lambda: all(each.progress.position >= head for each in node.worker.projectors.values()))


async def test_a_retired_read_model_loses_its_rows_and_can_come_back(dsn: str, connection: asyncpg.Connection) -> None:
    app = app_of()
    await write(connection, posted(uuid4(), "one"), posted(uuid4(), "two"))
    await kept(dsn, app)
    assert await names(connection) == {"Box"}

    await retire(connection, "Box")

    assert await names(connection) == set()
    assert await connection.fetchval("select to_regclass('read.box') is null"), "the SQL view is gone"
    assert await connection.fetchval("select count(*) from read.box_1") == 2, "the rows are dropped later"
    async with Node(without, QUICK, dsn, serve=True, work=True) as node:
        await until(lambda: connection.fetchval("select to_regclass('read.box_1') is null"))
        assert await node.troubles() == {}

    await kept(dsn, app)  # an app that has it starts again
    assert await names(connection) == {"Box"}
    assert await connection.fetchval("select count(*) from read.box") == 2


async def test_a_retired_reactor_loses_its_checkpoint_and_dead_letters(
    dsn: str, connection: asyncpg.Connection
) -> None:
    outside = Outside(raises={"bad": ValueError("no")})
    async with Node(app_of(outside.reactor()), QUICK, dsn, serve=False, work=True):
        await write(connection, posted(uuid4(), "good"), posted(uuid4(), "bad"))
        await until(lambda: connection.fetchval("select exists (select from headwater.dead_letters)"))
    await retire(connection, "reactor outside")
    assert await names(connection) == {"Box"}
    assert await connection.fetchval("select count(*) from headwater.dead_letters") == 0


async def test_a_running_worker_gives_up_a_retired_unit(dsn: str, connection: asyncpg.Connection) -> None:
    async with Node(app_of(), QUICK, dsn, serve=False, work=True) as node:
        await until(lambda: node.leases.held)
        await retire(connection, "Box")
        await until(lambda: not node.leases.held)
        assert await node.troubles() == {}


async def test_an_unknown_name_and_a_dependent_view_are_reported(dsn: str, connection: asyncpg.Connection) -> None:
    await kept(dsn, app_of())
    with pytest.raises(NotRetired, match=r"no read model, saga or reactor 'Nothing' to retire; there are .*Box"):
        await retire(connection, "Nothing")
    await connection.execute("create view public.mine as select * from read.box")
    with pytest.raises(NotRetired, match=r"view mine depends on view read\.box; drop that object first"):
        await retire(connection, "Box")
    assert await names(connection) == {"Box"}


without_saga = App([Feature([works.orders, works.works])])


async def orders(dsn: str, connection: asyncpg.Connection, *plans: str) -> None:
    """Place an order for each plan, and wait until each saga instance is done or waits."""
    async with Node(works.app, QUICK, dsn, serve=True, work=True) as node:
        for plan in plans:
            await accepted(node, PlaceOrder(order_id=new_id(), plan=[plan]))
        settled = "select count(*) from headwater.sagas where status = 'done' or waiting_for in ('events', 'a person')"
        await until(lambda: _are(connection, settled, len(plans)))


async def _are(connection: asyncpg.Connection, query: str, count: int) -> bool:
    return bool(await connection.fetchval(query) == count)


async def test_a_retired_saga_leaves_its_records_in_the_log(dsn: str, connection: asyncpg.Connection) -> None:
    await orders(dsn, connection, "a", "b")
    await retire(connection, "saga Fulfilment")
    known = "select count(*) from headwater.projections where name = 'saga Fulfilment'"
    assert await _are(connection, known, 0)
    # An app without the saga starts on a log that has its records, and reads them.
    async with Node(without_saga, QUICK, dsn, serve=True, work=True) as node:
        head = await node.log.head()
        categories = {event.stream_id for event in await node.log.at(list(range(1, head + 1)))}
        assert len(categories) > 2
        assert await node.troubles() == {}
    assert await operations.counted(connection, {}) == []


async def test_a_saga_with_open_instances_is_not_retired(dsn: str, connection: asyncpg.Connection) -> None:
    await orders(dsn, connection, "a", "wait", "wait")
    with pytest.raises(NotRetired, match="saga Fulfilment is not retired: 2 instances of it are not over"):
        await retire(connection, "saga Fulfilment")
    assert await connection.fetchval("select exists (select from headwater.projections where name = 'saga Fulfilment')")

    # No worker has the saga any more, so retiring carries out the instructions.
    first, second = await operations.listed(connection, operations.InstanceFilter(status=Phase.RUNNING), {}, limit=9)
    await operations.abandon(connection, first.key, "no use", "ada")
    with pytest.raises(NotRetired, match="1 instance of it is not over"):
        await retire(connection, "saga Fulfilment")
    await operations.abandon(connection, second.key, "no use either", "ada")
    await connection.execute(
        "insert into headwater.timers values ($1, 'Reminder', 'Fulfilment', now())", second.stream_id
    )
    await retire(connection, "saga Fulfilment")
    assert await operations.counted(connection, {}) == []
    [found] = await operations.shown(connection, second.key, {})
    assert (found.status, found.reason, found.waiting_for) == (Phase.ABANDONED, "no use either", None)
    assert (found.version, found.finished_at) == (second.version + 1, found.since)
    assert await connection.fetchval("select count(*) from headwater.timers") == 0
    with pytest.raises(NotRetired, match="there is no read model, saga or reactor"):
        await retire(connection, "saga Fulfilment")


async def test_the_retire_command_refuses_a_read_model_that_the_app_still_has(
    dsn: str, connection: asyncpg.Connection
) -> None:
    environ: dict[str, Any] = clean_environ() | {"DATABASE_URL": dsn}
    code, _, complaint = await run_command("retire", "Account", environ=environ)
    assert (code, "the app still contains Account" in complaint) == (1, True)
    await kept(dsn, app_of())
    code, out, _ = await run_command("retire", "Box", environ=environ)
    assert (code, out.startswith("Box is retired.")) == (0, True)
    assert await names(connection) == set()


async def test_the_retire_command_reports_open_instances(dsn: str, connection: asyncpg.Connection) -> None:
    await orders(dsn, connection, "wait")
    code, out, complaint = await run_command("retire", "saga Fulfilment", DATABASE_URL=dsn)
    assert (code, out) == (1, "")
    assert "1 instance of it is not over" in complaint
    assert "`headwater sagas list --saga Fulfilment`" in complaint
