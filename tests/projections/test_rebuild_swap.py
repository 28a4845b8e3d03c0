"""The swap: one transaction folds the rest of the log and makes the next generation live."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.commands import run_command
from tests.support.folding import fold_of_log, stored
from tests.support.rebuilding import (
    build,
    building,
    equals,
    generations,
    is_live,
    letters_of,
    move_live,
    project_old,
    register_next,
    take_lease,
    write,
)
from tests.support.rejected import rejecting
from tests.support.tallies import (
    QUICK,
    Counted,
    Fragile,
    ThingEvent,
    annotated,
    app_with,
    new,
    new_view,
    old_view,
)
from tests.support.waiting import until

from headwater import Park, ReadModel, Recorded, View
from headwater.postgres.database import LOST, Database
from headwater.projections.generations import prepare
from headwater.projections.rebuild import BuildSettings, BuildStopped
from headwater.server.node import Node


def three() -> list[Counted]:
    """Return events of three things."""
    return [Counted(thing_id=uuid4()) for _ in range(3)]


async def test_the_swap_is_repeated_until_a_long_query_has_ended(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    generation = await register_next(connection)
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.fetch("select * from read.tally")
        task = asyncio.create_task(build(dsn, new_view, new, generation, settings=BuildSettings(swap_seconds=0.05)))
        waits = "select count(*) from pg_locks where not granted and relation = 'read.tally'::regclass"
        for _ in range(2):  # the swap gives up its locks and tries again
            await until(lambda: equals(connection, waits, 1))
            await until(lambda: equals(connection, waits, 0))
        assert await generations(connection) == [(1, "live"), (2, "building")]
    await task
    await other.close()
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def test_added_columns_keep_the_grants_and_dependents_of_the_sql_view(
    dsn: str, connection: asyncpg.Connection
) -> None:
    class More(ReadModel, name="Tally", key="thing_id"):
        thing_id: UUID
        more: int
        count: int
        note: str | None

    def fold_more(row: More | None, event: Recorded[ThingEvent]) -> More | None:
        return More(thing_id=event.data.thing_id, more=1, count=2, note="")

    view = View(More, annotated(fold_more, More))
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    await connection.execute(
        "grant select on read.tally to public; create view public.report as select * from read.tally"
    )
    await build(dsn, view, app_with(view), await register_next(connection, view))
    assert await connection.fetchval("select has_table_privilege('public', 'read.tally', 'select')")
    assert await connection.fetchval("select note from public.report") == ""
    assert [tuple(row.values()) for row in await connection.fetch("select more, count from read.tally")] == [(1, 2)]


restores: list[str] = []
"""Statements by which a build begins to load the state as of its checkpoint."""


class CountingDatabase(Database):
    """Records in `restores` how often a build goes back to its checkpoint."""

    async def connect(self, name: str, **options: Any) -> asyncpg.Connection:
        connection = await super().connect(name, **options)
        connection.add_query_logger(self._note)
        return connection

    def _note(self, record: Any) -> None:
        if "select failure from" in record.query:
            restores.append(record.query)


async def test_rows_are_verified_once_even_if_the_log_grows_before_the_swap(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """A sample may read the whole log. Verified again before each swap, it would let the log grow by as much again."""
    await project_old(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(20)))
    generation = await register_next(connection)

    async def grow() -> None:
        await move_live(connection, *(Counted(thing_id=uuid4()) for _ in range(20)))

    restores.clear()
    async with building(
        dsn, settings=BuildSettings(near=5), verified=grow, before_swap=grow, connecting=CountingDatabase
    ) as builder:
        await builder.run(generation)
    assert (builder.verifier.samples, len(restores)) == ([20], 1)
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
    assert len(await stored(connection, new_view)) == 60


async def test_events_folded_in_a_failed_swap_are_folded_again(dsn: str, connection: asyncpg.Connection) -> None:
    """They were rolled back with the rest of the swap."""
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    generation = await register_next(connection)
    async with building(
        dsn,
        settings=BuildSettings(swap_seconds=0.05),
        before_swap=lambda: move_live(connection, *three()),
    ) as builder:
        other = await asyncpg.connect(dsn)
        async with other.transaction():
            await other.fetch("select * from read.tally")
            task = asyncio.create_task(builder.run(generation))
            waits = "select count(*) from pg_locks where not granted and relation = 'read.tally'::regclass"
            await until(lambda: equals(other, waits, 1))
            await until(lambda: equals(other, waits, 0))
        await other.close()
        await asyncio.wait_for(task, 20)
    assert builder.verifier.samples == [1]
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def test_a_build_pauses_between_writes_but_never_in_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    """A pause in the swap would hold the lock on the live row, and PostgreSQL would end the idle transaction."""
    await project_old(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(50)))
    generation = await register_next(connection)
    pauses: list[float] = []

    async def grow() -> None:
        await move_live(connection, *(Counted(thing_id=uuid4()) for _ in range(30)))

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    settings = BuildSettings(events=10, near=40, pause=60.0)
    async with building(dsn, settings=settings, page=10, before_swap=grow, sleep=sleep) as builder:
        await builder.run(generation)
    assert builder.verifier.samples == [50]
    assert pauses == [60.0] * 4, "between five writes, and not after the last"
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def test_the_live_projection_commits_nothing_during_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    """Otherwise it could get ahead of the generation that replaces it."""
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    generation = await register_next(connection)
    tried: list[str] = []

    async def commit() -> None:
        try:
            async with connection.transaction():
                await connection.execute("set local lock_timeout = '50ms'")
                await connection.execute("update headwater.projections set position = position where generation = 1")
            tried.append("committed")
        except asyncpg.LockNotAvailableError:
            tried.append("had to wait")

    async with building(dsn, before_swap=lambda: move_live(connection, *three()), in_swap=commit) as builder:
        await builder.run(generation)
    assert tried == ["had to wait"]


async def test_a_build_that_lost_its_lease_does_not_swap(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    generation = await register_next(connection)
    async with building(dsn, verified=lambda: take_lease(connection, generation)) as builder:
        await builder.run(generation)
    assert builder.verifier.samples == [1]
    assert await generations(connection) == [(1, "live"), (2, "building")]


async def test_a_build_suspended_in_the_swap_does_not_block_the_live_projection(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """PostgreSQL ends a transaction that is silent for the time of a lease, and releases its locks."""
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    generation = await register_next(connection)

    freed: list[bool] = []

    async def suspended() -> None:
        # Returns when the lock on the live row is free again.
        await connection.execute("update headwater.projections set position = position where generation = 1")
        freed.append(True)

    async with building(
        dsn, before_swap=lambda: move_live(connection, *three()), in_swap=suspended, settings=BuildSettings(lease=0.3)
    ) as builder:  # fmt: skip
        with pytest.raises(LOST):
            await builder.run(generation)
    assert freed == [True]
    assert await generations(connection) == [(1, "live"), (2, "building")]
    await build(dsn, new_view, new, generation)
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def test_a_row_rejected_in_the_swap_is_parked_before_the_next_swap(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """The live projection does not wait while the rejected row is searched for."""
    view, app = rejecting({"text": "\0"}, Park())
    key = uuid4()
    await project_old(connection, dsn, Counted(thing_id=key))
    generation = await register_next(connection, view)

    async def grow() -> None:
        await move_live(connection, Counted(thing_id=key, by=13), Counted(thing_id=uuid4()))

    async with building(dsn, before_swap=grow, view=view, app=app) as builder:
        await builder.run(generation)
    assert builder.verifier.samples == [1]
    assert await letters_of(connection, 2) == [(key, 2, 1, False)]
    assert sorted(position for _, position in (await stored(connection, view)).values()) == [1, 3]


async def test_rows_that_differ_from_the_log_are_not_swapped_in(dsn: str, connection: asyncpg.Connection) -> None:
    calls = iter(range(1000))

    def unsteady(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
        return Fragile(thing_id=event.data.thing_id, count=next(calls))

    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=uuid4()) for _ in range(3)))
    view = View(Fragile, annotated(unsteady, Fragile))
    generation = await register_next(connection, view)
    with pytest.raises(BuildStopped, match="of 3 sampled rows, 3 are not what the log says"):
        await build(dsn, view, app_with(view), generation)
    assert await generations(connection) == [(1, "live"), (2, "building")]


REBUILD = ("rebuild", "Tally", "--app", "tests.support.tallies:new")


async def test_the_swap_waits_while_an_object_depends_on_a_changing_column(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    await connection.execute("create view public.report as select note from read.tally")
    hindrance = "select hindrance from headwater.projections where name = 'Tally' and generation = 2"
    async with Node(new, QUICK, dsn, serve=False, work=True):
        found = await until(lambda: connection.fetchval(hindrance))
        assert "an object depends on the view: view report depends on view read.tally" in found
        code, _, err = await run_command(*REBUILD, DATABASE_URL=dsn)
        assert code == 1
        assert f"Tally keeps its present rows for now: {found}" in err
        assert await generations(connection) == [(1, "live"), (2, "building")]
        await connection.execute("drop view public.report")
        await until(is_live(connection, 2))  # the swap is repeated by itself, and nothing is built twice
    assert await connection.fetchval(hindrance) is None
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)


async def test_a_removed_hindrance_is_not_reported_again(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    await connection.execute("create view public.report as select note from read.tally")
    for _ in range(2):  # no worker runs; the command builds
        code, _, err = await run_command(*REBUILD, DATABASE_URL=dsn)
        assert (code, "view report depends on view read.tally" in err) == (1, True)
    await connection.execute("drop view public.report")
    code, _, err = await run_command(*REBUILD, DATABASE_URL=dsn)
    assert code == 0, err
    assert await generations(connection) == [(1, "retired"), (2, "live")]
    assert await stored(connection, new_view) == await fold_of_log(connection, new, new_view)
