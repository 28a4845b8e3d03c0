"""Tables of retired generations are dropped when their time is over."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.rebuilding import (
    build,
    equals,
    generations,
    is_live,
    letters_of,
    project_old,
    register_next,
    write,
)
from tests.support.tallies import (
    QUICK,
    Counted,
    Fragile,
    Removed,
    app_with,
    fold_fragile,
    new,
    new_view,
    old,
    old_view,
)
from tests.support.waiting import until

from headwater import Park, View
from headwater.postgres.database import Database
from headwater.projections.generations import prepare
from headwater.projections.generations import rebuild as force
from headwater.projections.retire import RetiredTables
from headwater.server.node import Node


async def test_the_table_of_a_retired_generation_is_dropped_after_its_time(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await project_old(connection, dsn, Counted(thing_id=(key := uuid4())), Removed(thing_id=key))
    await build(dsn, new_view, new, await register_next(connection))
    async with Database(dsn) as database:
        assert await RetiredTables(database, seconds=3600).drop() == []
        async with connection.transaction():
            await connection.fetch("select * from read.tally_1")  # a query still reads the table
            assert await RetiredTables(database, seconds=0, lock_seconds=0.2).drop() == []
        assert await RetiredTables(database, seconds=0).drop() == ["tally_1"]
        assert await RetiredTables(database, seconds=0).drop() == []
    assert await connection.fetchval("select to_regclass('read.tally_1')") is None
    assert await connection.fetch("select from headwater.tombstones where projection = 'Tally'") == []
    assert await generations(connection) == [(1, "retired"), (2, "live")], "its declaration stays known"


async def test_a_table_that_cannot_be_dropped_does_not_delay_others(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """A view of the operator depends on one table, and a long query reads another."""
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    for _ in range(3):
        await build(dsn, old_view, old, await force(connection, old_view))
    await connection.execute("create view public.report as select * from read.tally_1")
    other = await asyncpg.connect(dsn)
    async with Database(dsn) as database, other.transaction():
        await other.fetch("select * from read.tally_2")
        retired = RetiredTables(database, seconds=0, lock_seconds=0.2)
        assert await retired.drop() == ["tally_3"]
        assert await retired.drop() == []
        logged = [line for line in caplog.messages if "tally_1" in line]
        assert len(logged) == 1, "once, and not at each attempt"
        assert "view report depends on table read.tally_1" in logged[0]
    async with Database(dsn) as database:
        assert await RetiredTables(database, seconds=0).drop() == ["tally_2"]
        await connection.execute("drop view public.report")
        assert await RetiredTables(database, seconds=0).drop() == ["tally_1"]
    await other.close()


async def test_dead_letters_are_deleted_with_the_table_of_their_generation(
    dsn: str, connection: asyncpg.Connection
) -> None:
    view, key = View(Fragile, fold_fragile, on_failure=Park()), uuid4()
    app = app_with(view)
    await prepare(connection, view)
    await write(connection, Counted(thing_id=key, by=13))
    for _ in range(2):
        await build(dsn, view, app, await force(connection, view))
    async with Database(dsn) as database:
        assert sorted(await RetiredTables(database, seconds=0).drop()) == ["tally_1", "tally_2"]
    assert await letters_of(connection, 2) == []
    assert await letters_of(connection, 3) == [(key, 1, 1, False)]


async def test_a_worker_drops_retired_tables(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    async with Node(new, replace(QUICK, retired_seconds=0.0), dsn, serve=False, work=True):
        await until(is_live(connection, 2))
        await until(lambda: equals(connection, "select to_regclass('read.tally_1') is null", value=True))
