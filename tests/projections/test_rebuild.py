"""Rebuild: the next generation's rows equal a fold of the log, however the build is limited, paused or interrupted."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.commands import run_command
from tests.support.folding import fold_of_log, stored
from tests.support.rebuilding import (
    FILL,
    being_built,
    build,
    building,
    equals,
    generations,
    is_live,
    project_old,
    register_next,
    take_lease,
    write,
)
from tests.support.tallies import (
    QUICK,
    Counted,
    Removed,
    ThingEvent,
    Wider,
    app_with,
    fold_wider,
    new,
    new_view,
    old,
    old_view,
)
from tests.support.waiting import until

from bank.accounts.views import account_view
from bank.main import app as bank
from headwater import Recorded, View
from headwater.consumers.leases import end_stalled_sessions
from headwater.postgres.database import Database
from headwater.projections.generations import prepare
from headwater.projections.generations import rebuild as force
from headwater.projections.rebuild import BuildSettings
from headwater.server.node import Node

BUILDER = Path(__file__).parents[1] / "support" / "builder.py"


async def test_a_rebuild_leaves_the_live_rows_alone_until_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    one, two, three = uuid4(), uuid4(), uuid4()
    await project_old(
        connection, dsn, *(Counted(thing_id=key, by=by) for key, by in ((one, 2), (two, 13), (three, 1), (one, 5)))
    )
    before = await stored(connection, old_view)
    generation = await register_next(connection)
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert await connection.fetch("select from pg_indexes where tablename = 'tally_2'") == []
    assert await stored(connection, old_view) == before

    await build(dsn, new_view, new, generation)
    assert await generations(connection) == [(1, "retired"), (2, "live")]
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
    assert set(await stored(connection, new_view)) == {one, three}
    indexes = await connection.fetch("select indexdef from pg_indexes where tablename = 'tally_2'")
    found = sorted(definition.rpartition("USING")[2].strip() for (definition,) in indexes)
    assert found == ['btree ("position")', "btree (largest)", "btree (thing_id)"]


async def test_a_worker_of_new_code_builds_and_then_maintains_the_new_generation(
    dsn: str, connection: asyncpg.Connection
) -> None:
    head = await project_old(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(50)))
    async with Node(new, QUICK, dsn, serve=False, work=True) as node:
        await until(is_live(connection, 2, head))
        head = await write(connection, Counted(thing_id=uuid4(), by=7))
        await until(is_live(connection, 2, head))
        assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
        assert node.supervisor.troubles == {}


@pytest.mark.parametrize(
    "settings, by_stream",
    [
        (BuildSettings(), False),
        (BuildSettings(), True),
        (BuildSettings(rows=7), False),
        (BuildSettings(events=50), False),
        (BuildSettings(cache=3, rows=5), False),
        (BuildSettings(cache=0, events=9), False),
    ],
    ids=["default", "sample by stream", "few rows", "few events", "small cache", "no cache"],
)
async def test_rebuilt_rows_equal_a_fold_of_the_log_with_any_limits(
    dsn: str, connection: asyncpg.Connection, settings: BuildSettings, by_stream: bool
) -> None:
    dice, keys = random.Random(7), [uuid4() for _ in range(30)]
    events = [
        Removed(thing_id=key) if dice.random() < 0.2 else Counted(thing_id=key, by=dice.randrange(1, 14))
        for key in dice.choices(keys, k=600)
    ]
    await prepare(connection, old_view)
    await write(connection, *events)
    await build(dsn, new_view, new, await register_next(connection), page=16, settings=settings, by_stream=by_stream)
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
    assert await connection.fetch("select from headwater.tombstones where generation = 2") == []


WRITES = """
create table writes (place bigserial, kind text, rows bigint, indexes bigint);
create function note() returns trigger language plpgsql as $$ begin
  insert into writes (kind, rows, indexes)
  select lower(split_part(current_query(), ' ', 1)), count(*),
         (select count(*) from pg_indexes where tablename = tg_table_name) from written;
  return null;
end $$;
create trigger inserted after insert on read.tally_2
  referencing new table as written for each statement execute function note();
create trigger updated after update on read.tally_2
  referencing new table as written for each statement execute function note();
"""
"""Records each statement that writes rows: how many rows, and how many indexes the table has at that time."""


@pytest.mark.parametrize(
    "settings, expected",
    [
        (BuildSettings(sample=0), [("copy", 20, 0)]),
        (BuildSettings(events=250, sample=0), [("copy", 20, 0)] + [("update", 20, 0)] * 3),
        (BuildSettings(events=250, cache=10, sample=0), [("copy", 20, 0)] + [("update", 20, 1)] * 3),
    ],
    ids=["one batch", "four batches", "small cache"],
)
async def test_rows_are_written_once_a_batch_into_a_table_without_indexes(
    dsn: str,
    connection: asyncpg.Connection,
    settings: BuildSettings,
    expected: list[tuple[str, int, int]],
) -> None:
    """The log is read once, in order. Only if the cache is too small for all rows, there is an index on the key."""
    live, keys = await prepare(connection, new_view), [uuid4() for _ in range(20)]
    await write(connection, *(Counted(thing_id=keys[n % 20], by=n % 7) for n in range(1000)))
    generation = await force(connection, new_view)
    await connection.execute(WRITES)
    async with building(dsn, settings=settings, page=50) as builder:
        await builder.run(generation)
    assert builder.log.folded == list(range(1, 1001))
    writes = await connection.fetch("select kind, rows, indexes from writes order by place")
    assert [tuple(row) for row in writes] == expected
    assert await indexes(connection, generation.table) == await indexes(connection, live.table)
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def indexes(connection: asyncpg.Connection, table: str) -> list[str]:
    """Return the definitions of a table's indexes, with the generation's number left out."""
    found = await connection.fetch("select indexdef from pg_indexes where tablename = $1 order by 1", table)
    return [definition.replace(table, "tally") for (definition,) in found]


async def test_a_slow_fold_yields_to_the_event_loop(dsn: str, connection: asyncpg.Connection) -> None:
    """Folding a page of the log in one go may take longer than the lease, and would delay the heartbeat."""
    turns, seen = 0, []

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def counting(row: Wider | None, event: Recorded[ThingEvent]) -> Wider | None:
        seen.append(turns)
        return fold_wider(row, event)

    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=uuid4()) for _ in range(50)))
    view = View(Wider, counting)
    other = asyncio.create_task(take_turns())
    await build(dsn, view, app_with(view), await register_next(connection), settings=BuildSettings(slice_seconds=-1.0))
    other.cancel()
    assert len(set(seen[:50])) == 50, "another task ran between each two folds"


async def test_events_appended_during_a_build_are_included(dsn: str, connection: asyncpg.Connection) -> None:
    """The old code maintains its rows meanwhile, and the new rows are never behind them."""
    keys = [uuid4() for _ in range(5)]
    await write(connection, *(Counted(thing_id=key) for key in keys * 40))
    async with Node(old, QUICK, dsn, serve=False, work=True) as node:
        await until(is_live(connection, 1, 200))
        generation = await register_next(connection)
        task = asyncio.create_task(build(dsn, new_view, new, generation, settings=BuildSettings(events=20, pause=0.01)))
        head = 0
        for _ in range(30):
            head = await write(connection, *(Counted(thing_id=key) for key in keys))
            await asyncio.sleep(0)  # lets the build run
        await task
        query = "select n.position >= o.position from headwater.projections n, headwater.projections o " + (
            "where n.generation = 2 and o.generation = 1 and n.name = 'Tally' and o.name = 'Tally'"
        )
        assert await connection.fetchval(query)
        assert node.supervisor.troubles == {}
    async with Node(new, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 2, head))
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def test_a_worker_builds_with_its_settings(dsn: str) -> None:
    chosen = replace(QUICK, rebuild_pause_seconds=0.25, projection_cache=7, lease_seconds=3.0)
    async with Node(new, chosen, dsn, serve=False, work=True) as node:
        builder = node.worker.rebuild_of(new_view)
    assert builder.settings == BuildSettings(pause=0.25, cache=7, poll=0.2, lease=3.0)


async def test_the_live_projection_goes_on_while_a_build_pauses(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(200)))
    generation = await register_next(connection)
    paused: asyncio.Event = asyncio.Event()

    async def pause(seconds: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    settings = BuildSettings(events=50, near=10, pause=60.0)
    async with (
        Node(old, QUICK, dsn, serve=False, work=True) as node,
        building(dsn, settings=settings, page=50, sleep=pause) as builder,
    ):
        task = asyncio.create_task(builder.run(generation))
        await asyncio.wait_for(paused.wait(), 20)
        for _ in range(3):
            await until(is_live(connection, 1, await write(connection, Counted(thing_id=uuid4()))))
        assert [each.position for each in await being_built(connection)] == [50]
        assert node.supervisor.troubles == {}
        task.cancel()
        await asyncio.wait([task])


async def test_the_rebuild_command_builds_if_there_is_no_worker(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute(FILL.format(events=3000, streams=100))
    code, out, err = await run_command("rebuild", "Account", DATABASE_URL=dsn)
    assert (code, out) == (0, "Account is live with its new rows, from position 3,000 on.\n"), err
    assert "of 3,000 events" in err
    assert await generations(connection, "Account") == [(1, "retired"), (2, "live")]
    assert await stored(connection, account_view) == await fold_of_log(connection, bank, account_view)
    assert await connection.fetchval("select count(*) from headwater.workers") == 0

    code, out, err = await run_command("rebuild", "Acount", DATABASE_URL=dsn)
    assert (code, out) == (1, "")
    assert "the app has no read model 'Acount'; it has" in err


# Interrupted --------------------------------------------------------------------------------------------------------


@pytest.mark.kills
async def test_a_killed_build_resumes_from_its_checkpoint(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute(FILL.format(events=6000, streams=300))
    at = "select position from headwater.projections where name = 'Account' and state = 'building'"
    process = await asyncio.create_subprocess_exec(sys.executable, str(BUILDER), dsn)

    async def has_begun() -> bool:
        return (await connection.fetchval(at) or 0) >= 500

    await until(has_begun)
    process.kill()
    await process.wait()
    position = await connection.fetchval(at)
    assert 500 <= position < 6000
    (generation,) = await being_built(connection, "Account")
    positions = await connection.fetch('select max("position") from read.account_2')
    assert positions[0][0] == position, "rows and checkpoint were committed together"

    async with building(dsn, account_view, bank) as builder:
        await builder.run(generation)
    assert builder.log.starts[0] == position
    assert await stored(connection, account_view) == await fold_of_log(connection, bank, account_view)
    assert len(await stored(connection, account_view)) == 300


async def test_a_build_writes_nothing_after_it_lost_its_lease(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=uuid4()) for _ in range(100)))
    generation = await register_next(connection)
    async with building(dsn) as builder:
        builder.log.on_stream = lambda: take_lease(connection, generation)  # while it reads the first page
        await builder.run(generation)
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert await connection.fetchval("select count(*) from read.tally_2") == 0
    assert [each.position for each in await being_built(connection)] == [0]


class StallingConnection:
    """A connection whose COPY of rows never ends, as in a process that is suspended while it sends them."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def copy_records_to_table(self, table: str, **options: object) -> None:
        await self._connection.copy_to_table(table, schema_name="read", source=self._nothing())

    async def _nothing(self) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""


class StallingDatabase(Database):
    async def connect(self, name: str, **options: Any) -> Any:
        return StallingConnection(await super().connect(name, **options))


async def test_a_build_suspended_while_it_copies_rows_is_ended_and_resumed(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    generation = await register_next(connection)
    await connection.execute("update headwater.projections set owner = gen_random_uuid() where state = 'building'")
    suspended = asyncio.create_task(build(dsn, new_view, new, generation, connecting=StallingDatabase))
    copying = (
        "select count(*) from pg_stat_activity where datname = current_database() and query like 'COPY%' "
        "and state = 'active' and wait_event_type = 'Client'"
    )
    await until(lambda: equals(connection, copying, 1))
    await end_stalled_sessions(connection, 0)
    await until(lambda: equals(connection, copying, 0))
    suspended.cancel()
    await asyncio.wait([suspended])

    await build(dsn, new_view, new, generation)
    assert await generations(connection) == [(1, "retired"), (2, "live")]
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
