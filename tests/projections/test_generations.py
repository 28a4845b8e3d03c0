"""Generations: what registers one, and which of them is built and becomes live."""

from __future__ import annotations

import asyncio
import enum
import types
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from tests.support.folding import fold_of_log, stored
from tests.support.rebuilding import (
    build,
    generations,
    is_live,
    project_old,
    register_next,
    write,
)
from tests.support.tallies import (
    QUICK,
    Counted,
    Fragile,
    Tally,
    ThingEvent,
    annotated,
    app_with,
    fold,
    fold_fragile,
    new,
    new_view,
    old,
    old_view,
    things,
)
from tests.support.waiting import until

from headwater import App, Feature, ReadModel, Recorded, View
from headwater.consumers.checkpoint import Generation
from headwater.projections.generations import fingerprint, prepare, prepare_views, renew
from headwater.projections.generations import rebuild as force
from headwater.server.node import Node


async def test_a_raised_version_registers_another_generation(connection: asyncpg.Connection) -> None:
    class Second(ReadModel, name="Tally", key="thing_id", version=2):
        thing_id: UUID
        count: int
        note: str | None

    def fold_second(row: Second | None, event: Recorded[ThingEvent]) -> Second | None:
        return None

    await prepare(connection, old_view)
    assert (await register_next(connection, View(Second, annotated(fold_second, Second)))).number == 2


async def test_processes_that_start_at_once_register_one_generation(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, old_view)
    async with asyncpg.create_pool(dsn, min_size=6, max_size=6) as pool:

        async def start() -> Generation | None:
            async with pool.acquire() as each:
                return await renew(each, new_view)

        registered = await asyncio.gather(*(start() for _ in range(6)))
    assert [each and each.number for each in registered] == [2] * 6
    assert await generations(connection) == [(1, "live"), (2, "building")]


def test_equal_declarations_have_equal_fingerprints() -> None:
    assert fingerprint(old_view) == fingerprint(View(Tally, fold)) != fingerprint(new_view)


async def test_an_operator_can_rebuild_an_unchanged_declaration(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(10)))
    await connection.execute("update read.tally_1 set count = 99")
    generation = await force(connection, old_view)
    assert (await force(connection, old_view)).number == generation.number == 2, "a build under way is continued"
    await build(dsn, old_view, old, generation)
    assert await stored(connection, old_view) == await fold_of_log(connection, old, old_view)
    assert await renew(connection, old_view) is None


async def test_a_build_does_not_replace_a_newer_live_generation(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    view = View(Fragile, fold_fragile)
    second, third = await register_next(connection), await register_next(connection, view)
    await build(dsn, view, app_with(view), third)
    await build(dsn, new_view, new, second)
    assert await generations(connection) == [(1, "retired"), (2, "retired"), (3, "live")]


async def test_migrate_retires_the_build_of_another_declaration(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, old_view)
    generation = await register_next(connection)
    await prepare_views(dsn, [old_view])
    assert await generations(connection) == [(1, "live"), (2, "retired")]
    await build(dsn, new_view, new, generation)
    assert await generations(connection) == [(1, "live"), (2, "retired")]


async def test_migrate_makes_an_earlier_declaration_current_again(dsn: str, connection: asyncpg.Connection) -> None:
    await project_old(connection, dsn, Counted(thing_id=uuid4()))
    await build(dsn, new_view, new, await register_next(connection))
    assert await renew(connection, old_view) is None
    await prepare_views(dsn, [old_view])
    assert await generations(connection) == [(1, "retired"), (2, "live"), (3, "building")]
    async with Node(old, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 3))
    assert await stored(connection, old_view) == await fold_of_log(connection, old, old_view)


# Enums ---------------------------------------------------------------------------------------------------------------


def with_sizes(*names: str, version: int = 1) -> App:
    """Return an app whose enum has these values. `Counted.by` is the place of a row's size among them."""
    made: Any = enum.Enum
    size = made("Size", {name.upper(): name for name in names})
    columns = {"thing_id": UUID, "size": size, "sizes": list[size]}  # type: ignore[valid-type]  # as the test says
    keywords = {"name": "Tally", "key": "thing_id", "version": version}
    namespace = {"__annotations__": columns, "__module__": __name__}
    model: Any = types.new_class("Sized", (ReadModel,), keywords, lambda body: body.update(namespace))

    def fold_sized(row: Any, event: Recorded[ThingEvent]) -> Any:
        by = event.data.by if isinstance(event.data, Counted) else 0
        now = list(size)[min(by, len(size)) - 1]
        return model(thing_id=event.data.thing_id, size=now, sizes=[*(row.sizes if row else []), now])

    return App([Feature([things], [View(model, fold_sized)])])


def view_in(app: App) -> View[Any]:
    return app.domain.views[0]


async def test_added_enum_values_keep_the_rows(dsn: str, connection: asyncpg.Connection) -> None:
    small, large = with_sizes("s", "m"), with_sizes("xs", "s", "m", "l")
    async with Node(small, QUICK, dsn, serve=False, work=True) as old_node:
        head = await write(connection, *(Counted(thing_id=uuid4(), by=by) for by in (1, 2)))
        await until(is_live(connection, 1, head))
        async with Node(large, QUICK, dsn, serve=False, work=True) as new_node:
            assert await generations(connection) == [(1, "live")]
            await until(lambda: [unit.name for unit in new_node.leases.held] == ["Tally"])
            key = uuid4()
            await until(is_live(connection, 1, await write(connection, *[Counted(thing_id=key, by=4)] * 2)))
            row: Any = (await stored(connection, view_in(large)))[key][0]
            assert [each.value for each in (row.size, *row.sizes)] == ["l", "l", "l"]
            assert old_node.leases.held == [], "older code cannot read the new values"
            assert (old_node.supervisor.troubles, new_node.supervisor.troubles) == ({}, {})
            assert await connection.fetchval("select count(*) from headwater.dead_letters") == 0
    async with Node(small, QUICK, dsn, serve=False, work=True):  # an old process is started again
        assert await generations(connection) == [(1, "live")]
    assert await renew(connection, view_in(large)) is None
    assert await renew(connection, view_in(with_sizes("xs", "s", "m", "l", version=2))) is not None


async def test_a_removed_enum_value_rebuilds_the_rows(dsn: str, connection: asyncpg.Connection) -> None:
    before, after = with_sizes("s", "m", "l"), with_sizes("s", "m", "xl")
    key = uuid4()
    async with Node(before, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 1, await write(connection, Counted(thing_id=key, by=3))))
    async with Node(after, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 2, await write(connection, Counted(thing_id=key, by=1))))
    row: Any = (await stored(connection, view_in(after)))[key][0]
    assert [each.value for each in row.sizes] == ["xl", "s"]
    assert await generations(connection) == [(1, "retired"), (2, "live")]
