"""What was taken out of an app falls behind the log for ever, until a person retires it."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.commands import clean_environ, run_command
from tests.integration import posts
from tests.integration.posts import Outside, app_of, posted, write
from tests.waiting import until

from headwater import App, Decider, Feature
from headwater.config import Settings
from headwater.node import Node
from headwater.retire import NotRetired, retire
from headwater.standings import read_standings

QUICK = replace(Settings(), poll_seconds=0.05, lease_seconds=1.0, retired_seconds=0.1)

without = App([Feature([Decider("box", "box_id", None, posts.decide, posts.evolve)])])


async def names(connection: asyncpg.Connection) -> set[str]:
    """What is kept, or waited for."""
    return {each.name for each in (await read_standings(connection)).projections} & {"Box", "reactor outside"}


async def kept(dsn: str, app: App) -> None:
    """A worker of an app has done all that there is, and ends."""
    async with Node(app, QUICK, dsn, serve=True, work=True) as node:
        head = await node.log.head()
        await until(lambda: all(each.progress.position >= head for each in node.worker.projectors.values()))


async def test_a_read_model_that_nobody_brings(dsn: str, connection: asyncpg.Connection) -> None:
    app = app_of()
    await write(connection, posted(uuid4(), "one"), posted(uuid4(), "two"))
    await kept(dsn, app)
    assert await names(connection) == {"Box"}

    await retire(connection, "Box")

    assert await names(connection) == set()
    assert await connection.fetchval("select to_regclass('read.box') is null"), "nobody reads it"
    assert await connection.fetchval("select count(*) from read.box_1") == 2, "the rows are dropped later"
    async with Node(without, QUICK, dsn, serve=True, work=True) as node:
        await until(lambda: connection.fetchval("select to_regclass('read.box_1') is null"))
        assert await node.troubles() == {}

    await kept(dsn, app)  # it comes back after all
    assert await names(connection) == {"Box"}
    assert await connection.fetchval("select count(*) from read.box") == 2


async def test_a_reactor_that_nobody_brings(dsn: str, connection: asyncpg.Connection) -> None:
    outside = Outside(raises={"bad": ValueError("no")})
    async with Node(app_of(outside.reactor()), QUICK, dsn, serve=False, work=True):
        await write(connection, posted(uuid4(), "good"), posted(uuid4(), "bad"))
        await until(lambda: connection.fetchval("select exists (select from headwater.dead_letters)"))
    await retire(connection, "reactor outside")
    assert await names(connection) == {"Box"}
    assert await connection.fetchval("select count(*) from headwater.dead_letters") == 0


async def test_a_worker_that_still_has_it_gives_it_up(dsn: str, connection: asyncpg.Connection) -> None:
    async with Node(app_of(), QUICK, dsn, serve=False, work=True) as node:
        await until(lambda: node.leases.held)
        await retire(connection, "Box")
        await until(lambda: not node.leases.held)
        assert await node.troubles() == {}


async def test_what_stands_in_the_way_is_said(dsn: str, connection: asyncpg.Connection) -> None:
    await kept(dsn, app_of())
    with pytest.raises(NotRetired, match=r"nothing is kept under the name 'Nothing'; there are .*Box"):
        await retire(connection, "Nothing")
    await connection.execute("create view public.mine as select * from read.box")
    with pytest.raises(NotRetired, match=r"view mine depends on view read\.box; drop that first"):
        await retire(connection, "Box")
    assert await names(connection) == {"Box"}


async def test_the_command(dsn: str, connection: asyncpg.Connection) -> None:
    environ: dict[str, Any] = clean_environ() | {"DATABASE_URL": dsn}
    code, _, complaint = await run_command("retire", "Account", environ=environ)
    assert (code, "the app still brings Account" in complaint) == (1, True)
    await kept(dsn, app_of())
    code, out, _ = await run_command("retire", "Box", environ=environ)
    assert (code, out.startswith("Box is retired.")) == (0, True)
    assert await names(connection) == set()
