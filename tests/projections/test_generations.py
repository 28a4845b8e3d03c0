"""Generations: a read model's rows are made again beside those that are live, and take their place at once."""

from __future__ import annotations

import asyncio
import enum
import random
import re
import sys
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from operator import ge
from pathlib import Path
from string import ascii_letters
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from msgspec.structs import replace
from tests.support.commands import run_command
from tests.support.waiting import until

from bank.accounts.views import account_view
from bank.main import app as bank
from headwater import App, Command, Decider, Event, Feature, Park, ReadModel, Recorded, Stop, View
from headwater.config import Settings
from headwater.consumers.checkpoint import Generation
from headwater.consumers.dead_letters import LetterFilter, retry
from headwater.consumers.leases import end_stalled_sessions
from headwater.domain.failure_policy import OnFailure
from headwater.domain.serialization import stored_form
from headwater.errors import ReadModelRebuilding
from headwater.eventstore.log import Append, Log, append
from headwater.eventstore.positions import Positions
from headwater.graphql.engine import Engine
from headwater.graphql.request import GraphQLRequest
from headwater.graphql.scope import Scope
from headwater.live.feed import Feed
from headwater.live.subscriptions import Message, watch_changes, watch_row
from headwater.postgres.database import LOST, Database
from headwater.projections import rebuild, retire
from headwater.projections.filter import EVERYTHING, Compare
from headwater.projections.generations import fingerprint, prepare, prepare_views, renew
from headwater.projections.generations import rebuild as force
from headwater.projections.reader import Order, Reader
from headwater.projections.rebuild import BuildStopped, Rebuild
from headwater.projections.retire import RetiredTables
from headwater.projections.row_codec import model_reader
from headwater.server.node import Node
from headwater.server.web import Web
from headwater.supervisor import backoff

BUILDER = Path(__file__).parents[1] / "support" / "builder.py"
FILL = (Path(__file__).parents[2] / "benchmarks" / "fill.sql").read_text()
QUICK = replace(Settings(), poll_seconds=0.2, lease_seconds=1.0, retired_seconds=3600.0)


# A thing that is counted, in several versions of its read model ------------------------------------------------------


class Count(Command):
    thing_id: UUID


class Counted(Event):
    thing_id: UUID
    by: int = 1


class Removed(Event):
    thing_id: UUID


ThingEvent: TypeAlias = Counted | Removed


def decide(command: Count, state: None) -> list[ThingEvent]:
    return [Counted(thing_id=command.thing_id)]


def evolve(state: None, event: ThingEvent) -> None:
    return None


class Tally(ReadModel, key="thing_id"):
    """How often a thing was counted since it was there."""

    thing_id: UUID
    count: int
    note: str | None


class Wider(ReadModel, name="Tally", key="thing_id", indexes=["largest"]):
    """The next version: one column more, one less, and things that were removed are gone for ever."""

    thing_id: UUID
    count: int
    largest: int


def fold(row: Tally | None, event: Recorded[ThingEvent]) -> Tally | None:
    if isinstance(event.data, Removed):
        return None
    return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + event.data.by, note=None)


def fold_wider(row: Wider | None, event: Recorded[ThingEvent]) -> Wider | None:
    if isinstance(event.data, Removed) or event.data.by == 13:
        return None
    count, largest = (row.count, row.largest) if row else (0, 0)
    return Wider(thing_id=event.data.thing_id, count=count + event.data.by, largest=max(largest, event.data.by))


things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)
old_view, new_view = View(Tally, fold), View(Wider, fold_wider)
old, new = (App([Feature([things], [view])]) for view in (old_view, new_view))


# What the tests say --------------------------------------------------------------------------------------------------


async def write(connection: asyncpg.Connection, *events: Any) -> int:
    """Append events; the position of the last."""
    stored = [(event.thing_id, stored_form(event)) for event in events]
    done = await append(connection, [Append(uuid4(), key, "thing", None, [each], uuid4()) for key, each in stored])
    return done[-1].position


async def folded(connection: asyncpg.Connection, app: App, view: View[Any]) -> dict[UUID, tuple[Any, int]]:
    """What a fold of the log from the beginning leaves: each key's row and the position that last changed it."""
    rows: dict[UUID, tuple[Any, int]] = {}
    for record in await connection.fetch("select * from headwater.events order by position"):
        data = app.domain.codec.decode(record["type"], record["schema_version"], record["data"])
        if isinstance(data, view.events):
            names = ("position", "stream_id", "version", "recorded_at", "event_id", "command_id", "correlation_id")
            key = view.route_of(type(data))(data)
            row = view.fold(rows.pop(key, (None, 0))[0], Recorded(data, *(record[name] for name in names)))
            if row is not None:
                rows[key] = (row, record["position"])
    return rows


async def stored(connection: asyncpg.Connection, view: View[Any]) -> dict[UUID, tuple[Any, int]]:
    """Each key's row and position, as the view shows them."""
    read = model_reader(view)
    records: Any = await connection.fetch(f'select * from read."{view.name.lower()}"')
    return {record[view.key]: (read(record), record["position"]) for record in records}


async def generations(connection: asyncpg.Connection, name: str = "Tally") -> list[tuple[int, str]]:
    query = "select generation, state from headwater.projections where name = $1 order by generation"
    return [tuple(row) for row in await connection.fetch(query, name)]


def is_live(connection: asyncpg.Connection, generation: int, position: int = 0) -> Callable[[], Awaitable[bool]]:
    """Whether a generation is the live one, and has come so far."""

    async def look() -> bool:
        query = "select position from headwater.projections where name = 'Tally' and generation = $1 and state = 'live'"
        reached = await connection.fetchval(query, generation)
        return reached is not None and reached >= position

    return look


async def lease(connection: asyncpg.Connection, standing: Generation) -> Generation:
    """As a worker takes it: whoever had it before can commit nothing any more."""
    query = "update headwater.projections set fence = fence + 1 where table_name = $1 returning fence, position"
    row = await connection.fetchrow(query, standing.table)
    assert row is not None
    return Generation(standing.number, standing.table, row["position"], row["fence"], standing.fingerprint)


@asynccontextmanager
async def building(dsn: str, view: View[Any], app: App, **options: Any) -> AsyncIterator[Rebuild[Any]]:
    async with Database(dsn, pool_size=3) as database:
        yield Rebuild(database, Log(database.pool, app.domain.codec), view, poll=0.05, **options)


async def build(dsn: str, view: View[Any], app: App, standing: Generation, **options: Any) -> None:
    async with building(dsn, view, app, **options) as builder:
        await asyncio.wait_for(builder.build(standing), 30)


async def made(connection: asyncpg.Connection, dsn: str, *events: Any) -> int:
    """The old read model's rows of these events, as its projection leaves them."""
    head = await write(connection, *events)
    async with Node(old, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 1, head))
    return head


async def registered(connection: asyncpg.Connection, view: View[Any] = new_view) -> Generation:
    standing = await renew(connection, view)
    assert standing is not None
    return standing


# Built beside, and swapped -------------------------------------------------------------------------------------------


async def test_rows_are_made_again_beside_the_live_ones(dsn: str, connection: asyncpg.Connection) -> None:
    one, two, three = uuid4(), uuid4(), uuid4()
    await made(
        connection, dsn, *(Counted(thing_id=key, by=by) for key, by in ((one, 2), (two, 13), (three, 1), (one, 5)))
    )
    before = await stored(connection, old_view)
    standing = await registered(connection)
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert await connection.fetch("select from pg_indexes where tablename = 'tally_2'") == []
    assert await stored(connection, old_view) == before

    await build(dsn, new_view, new, standing)
    assert await generations(connection) == [(1, "retired"), (2, "live")]
    assert await stored(connection, new_view) == await folded(connection, new, new_view)
    assert set(await stored(connection, new_view)) == {one, three}
    indexes = await connection.fetch("select indexdef from pg_indexes where tablename = 'tally_2'")
    found = sorted(definition.rpartition("USING")[2].strip() for (definition,) in indexes)
    assert found == ['btree ("position")', "btree (largest)", "btree (thing_id)"]


async def test_a_worker_of_new_code_builds_and_keeps_it(dsn: str, connection: asyncpg.Connection) -> None:
    head = await made(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(50)))
    async with Node(new, QUICK, dsn, serve=False, work=True) as node:
        await until(is_live(connection, 2, head))
        head = await write(connection, Counted(thing_id=uuid4(), by=7))
        await until(is_live(connection, 2, head))
        assert await stored(connection, new_view) == await folded(connection, new, new_view)
        assert node.supervisor.troubles == {}


async def test_a_raised_version_is_another_declaration(connection: asyncpg.Connection) -> None:
    class Second(ReadModel, name="Tally", key="thing_id", version=2):
        thing_id: UUID
        count: int
        note: str | None

    def fold_second(row: Second | None, event: Recorded[ThingEvent]) -> Second | None:
        return None

    await prepare(connection, old_view)
    assert (await registered(connection, View(Second, _resolved(fold_second, Second)))).number == 2


def _resolved(function: Any, model: type[ReadModel]) -> Any:
    """A fold of a test's own classes, whose annotations cannot be looked up in the module."""
    function.__annotations__ = {"row": model | None, "event": Recorded[ThingEvent], "return": model | None}
    return function


async def test_many_that_start_at_once_register_one(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, old_view)
    async with asyncpg.create_pool(dsn, min_size=6, max_size=6) as pool:

        async def start() -> Generation | None:
            async with pool.acquire() as each:
                return await renew(each, new_view)

        standings = await asyncio.gather(*(start() for _ in range(6)))
    assert [each and each.number for each in standings] == [2] * 6
    assert await generations(connection) == [(1, "live"), (2, "building")]


@pytest.mark.parametrize(
    "options",
    [{}, {"rows": 7}, {"events": 50}, {"cache": 3, "rows": 5}, {"cache": 0, "events": 9}, {"by_stream": True}],
    ids=str,
)
async def test_a_build_equals_the_fold_however_small_its_memory(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 16)
    dice, keys = random.Random(7), [uuid4() for _ in range(30)]
    events = [
        Removed(thing_id=key) if dice.random() < 0.2 else Counted(thing_id=key, by=dice.randrange(1, 14))
        for key in dice.choices(keys, k=600)
    ]
    await prepare(connection, old_view)
    await write(connection, *events)
    await build(dsn, new_view, new, await registered(connection), **options)
    assert await stored(connection, new_view) == await folded(connection, new, new_view)
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
"""Notes each statement that writes rows, how many, and how many indexes the table has then."""


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [("copy", 20, 0)]),
        ({"events": 250}, [("copy", 20, 0)] + [("update", 20, 0)] * 3),
        ({"events": 250, "cache": 10}, [("copy", 20, 0)] + [("update", 20, 1)] * 3),
    ],
    ids=str,
)
async def test_rows_are_written_once_a_batch_into_a_table_without_indexes(
    dsn: str,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, int],
    expected: list[tuple[str, int, int]],
) -> None:
    """And the log is read once, in its order. Where not all rows fit into memory they are found by their key."""
    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 50)
    live, keys = await prepare(connection, new_view), [uuid4() for _ in range(20)]
    await write(connection, *(Counted(thing_id=keys[n % 20], by=n % 7) for n in range(1000)))
    standing = await force(connection, new_view)
    await connection.execute(WRITES)
    read: list[int] = []
    async with building(dsn, new_view, new, sample=0, **options) as builder:
        recorded = builder.log._recorded

        def reading(row: asyncpg.Record) -> Recorded[Event]:
            read.append(row["position"])
            return recorded(row)

        builder.log._recorded = reading  # type: ignore[method-assign]  # to see each event that is read
        await asyncio.wait_for(builder.build(standing), 30)
    assert read == list(range(1, 1001))
    writes = await connection.fetch("select kind, rows, indexes from writes order by place")
    assert [tuple(row) for row in writes] == expected
    assert await indexes(connection, standing.table) == await indexes(connection, live.table)
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def indexes(connection: asyncpg.Connection, table: str) -> list[str]:
    """Their definitions, as if the table had no number."""
    found = await connection.fetch("select indexdef from pg_indexes where tablename = $1 order by 1", table)
    return [definition.replace(table, "tally") for (definition,) in found]


async def test_a_slow_fold_leaves_others_their_turn(dsn: str, connection: asyncpg.Connection) -> None:
    """The heartbeat is one of them: a page of the log that is folded in one go may take longer than the lease."""
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
    await build(dsn, view, App([Feature([things], [view])]), await registered(connection), slice_seconds=-1.0)
    other.cancel()
    assert len(set(seen[:50])) == 50, "a turn between each two"


async def test_what_is_appended_while_it_is_built_is_in_it(dsn: str, connection: asyncpg.Connection) -> None:
    """The old code keeps its rows meanwhile; the new ones are never behind them."""
    keys = [uuid4() for _ in range(5)]
    await write(connection, *(Counted(thing_id=key) for key in keys * 40))
    async with Node(old, QUICK, dsn, serve=False, work=True) as node:
        await until(is_live(connection, 1, 200))
        standing = await registered(connection)
        task = asyncio.create_task(build(dsn, new_view, new, standing, events=20, pause=0.01))
        head = 0
        for _ in range(30):
            head = await write(connection, *(Counted(thing_id=key) for key in keys))
            await asyncio.sleep(0)  # the one who builds has its turn
        await task
        query = "select n.position >= o.position from headwater.projections n, headwater.projections o " + (
            "where n.generation = 2 and o.generation = 1 and n.name = 'Tally' and o.name = 'Tally'"
        )
        assert await connection.fetchval(query)
        assert node.supervisor.troubles == {}
    async with Node(new, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 2, head))
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def test_a_long_query_does_not_stop_the_swap_for_ever(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "SWAP_WAIT_SECONDS", 0.05)
    await made(connection, dsn, Counted(thing_id=uuid4()))
    standing = await registered(connection)
    other = await asyncpg.connect(dsn)
    async with other.transaction():
        await other.fetch("select * from read.tally")
        task = asyncio.create_task(build(dsn, new_view, new, standing))
        waits = "select count(*) from pg_locks where not granted and relation = 'read.tally'::regclass"
        for _ in range(2):  # it gives way, and comes again
            await until(lambda: _is(connection, waits, 1))
            await until(lambda: _is(connection, waits, 0))
        assert await generations(connection) == [(1, "live"), (2, "building")]
    await task
    await other.close()
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def _is(connection: asyncpg.Connection, query: str, value: object) -> bool:
    return bool(await connection.fetchval(query) == value)


async def test_the_view_keeps_what_was_granted_when_columns_are_only_added(
    dsn: str, connection: asyncpg.Connection
) -> None:
    class More(ReadModel, name="Tally", key="thing_id"):
        thing_id: UUID
        more: int
        count: int
        note: str | None

    def fold_more(row: More | None, event: Recorded[ThingEvent]) -> More | None:
        return More(thing_id=event.data.thing_id, more=1, count=2, note="")

    view = View(More, _resolved(fold_more, More))
    await made(connection, dsn, Counted(thing_id=uuid4()))
    await connection.execute(
        "grant select on read.tally to public; create view public.report as select * from read.tally"
    )
    await build(dsn, view, App([Feature([things], [view])]), await registered(connection, view))
    assert await connection.fetchval("select has_table_privilege('public', 'read.tally', 'select')")
    assert await connection.fetchval("select note from public.report") == ""
    assert [tuple(row.values()) for row in await connection.fetch("select more, count from read.tally")] == [(1, 2)]


# The swap ------------------------------------------------------------------------------------------------------------


async def _live_goes_on(connection: asyncpg.Connection, events: int) -> None:
    """So many events, which the live projection has passed."""
    head = await write(connection, *(Counted(thing_id=uuid4()) for _ in range(events)))
    await connection.execute("update headwater.projections set position = $1 where generation = 1", head)


@asynccontextmanager
async def meanwhile(
    dsn: str,
    *,
    verified: Callable[[], Awaitable[object]] | None = None,
    before_swap: Callable[[], Awaitable[object]] | None = None,
    in_swap: Callable[[], Awaitable[object]] | None = None,
    view: View[Any] = new_view,
    app: App = new,
    **options: Any,
) -> AsyncIterator[tuple[Rebuild[Any], list[int]]]:
    """One who builds, and how many rows each of his samples had. verified: happens when a sample was verified.
    before_swap: happens when he has looked where the log ends for the last time before the swap. in_swap: happens when
    the log is read on after that."""
    async with building(dsn, view, app, **options) as builder:
        sampling, heading, streaming = builder.verifier.sample, builder.log.head, builder.log.stream
        samples: list[int] = []
        swapping, seen = False, 0

        async def sample(*arguments: Any) -> Any:
            report = await sampling(*arguments)
            samples.append(report.checked)
            if verified is not None:
                await verified()
            return report

        async def head() -> int:
            nonlocal swapping, seen
            seen, found = await heading(), seen
            if samples and not swapping and found == seen:  # it has come so far already
                swapping = True
                if before_swap is not None:
                    await before_swap()
            return seen

        async def stream(*arguments: Any, **more: Any) -> AsyncGenerator[Any, None]:
            if swapping and in_swap is not None:
                await in_swap()
            async for page in streaming(*arguments, **more):
                yield page

        builder.verifier.sample = sample  # type: ignore[method-assign, assignment]
        builder.log.head = head  # type: ignore[method-assign]
        builder.log.stream = stream  # type: ignore[method-assign]
        yield builder, samples


async def test_rows_are_verified_once_however_far_the_live_ones_have_come_meanwhile(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample may read the whole log: were it verified again before each swap, there would be as much to catch up with
    as before."""
    monkeypatch.setattr(rebuild, "NEAR", 5)
    restored, restore = [], rebuild._Build._restore

    async def counting(build: Any) -> None:
        restored.append(build)
        await restore(build)

    monkeypatch.setattr(rebuild._Build, "_restore", counting)
    await made(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(20)))
    standing = await registered(connection)

    async def go_on() -> None:
        await _live_goes_on(connection, 20)

    async with meanwhile(dsn, verified=go_on, before_swap=go_on) as (builder, samples):
        await asyncio.wait_for(builder.build(standing), 20)
    assert (samples, len(restored)) == ([20], 1)
    assert await stored(connection, new_view) == await folded(connection, new, new_view)
    assert len(await stored(connection, new_view)) == 60


async def test_what_a_swap_in_vain_has_folded_is_folded_again(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was rolled back with the rest of the swap."""
    monkeypatch.setattr(rebuild, "SWAP_WAIT_SECONDS", 0.05)
    await made(connection, dsn, Counted(thing_id=uuid4()))
    standing = await registered(connection)
    async with meanwhile(dsn, before_swap=lambda: _live_goes_on(connection, 3)) as (builder, samples):
        other = await asyncpg.connect(dsn)
        async with other.transaction():
            await other.fetch("select * from read.tally")
            task = asyncio.create_task(builder.build(standing))
            waits = "select count(*) from pg_locks where not granted and relation = 'read.tally'::regclass"
            await until(lambda: _is(other, waits, 1))
            await until(lambda: _is(other, waits, 0))
        await other.close()
        await asyncio.wait_for(task, 20)
    assert samples == [1]
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def test_a_build_rests_between_writes_and_never_in_the_swap(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resting there, it would hold the live row, and PostgreSQL would end a transaction that stands so long."""
    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 10)
    monkeypatch.setattr(rebuild, "NEAR", 40)
    await made(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(50)))
    standing = await registered(connection)
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    async with meanwhile(
        dsn, before_swap=lambda: _live_goes_on(connection, 30), events=10, pause=60.0, sleep=rest
    ) as (builder, samples):  # fmt: skip
        await asyncio.wait_for(builder.build(standing), 20)
    assert samples == [50]
    assert rests == [60.0] * 4, "between five writes, and not when there is nothing left to write"
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def test_a_worker_builds_as_its_settings_say(dsn: str) -> None:
    chosen = replace(QUICK, rebuild_pause_seconds=0.25, projection_cache=7, lease_seconds=3.0)
    async with Node(new, chosen, dsn, serve=False, work=True) as node:
        builder = node.worker._rebuild(new_view)
    assert (builder.pause, builder.cache, builder.poll, builder.lease_seconds) == (0.25, 7, 0.2, 3.0)


async def test_while_a_worker_rests_in_a_build_what_is_live_goes_on(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 50)
    monkeypatch.setitem(Rebuild.__init__.__kwdefaults__ or {}, "events", 50)
    monkeypatch.setattr(rebuild, "NEAR", 10)
    await made(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(200)))
    restful = replace(QUICK, rebuild_pause_seconds=60.0)
    async with Node(old, QUICK, dsn, serve=False, work=True), Node(new, restful, dsn, serve=False, work=True) as node:
        built = "select position from headwater.projections where name = 'Tally' and generation = 2"
        await until(lambda: _is(connection, built, 50))
        for _ in range(3):
            await until(is_live(connection, 1, await write(connection, Counted(thing_id=uuid4()))))
        assert await connection.fetchval(built) == 50
        assert node.supervisor.troubles == {}


async def test_the_live_projection_stands_still_during_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    """Else it could come further than the one that takes its place."""
    await made(connection, dsn, Counted(thing_id=uuid4()))
    standing = await registered(connection)
    tried: list[str] = []

    async def go_on() -> None:
        try:
            async with connection.transaction():
                await connection.execute("set local lock_timeout = '50ms'")
                await connection.execute("update headwater.projections set position = position where generation = 1")
            tried.append("went on")
        except asyncpg.LockNotAvailableError:
            tried.append("stood still")

    async with meanwhile(dsn, before_swap=lambda: _live_goes_on(connection, 3), in_swap=go_on) as (builder, _):
        await asyncio.wait_for(builder.build(standing), 20)
    assert tried == ["stood still"]


async def test_whoever_lost_the_lease_swaps_nothing(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
    standing = await registered(connection)
    async with meanwhile(dsn, verified=lambda: lease(connection, standing)) as (builder, samples):
        await asyncio.wait_for(builder.build(standing), 20)
    assert samples == [1]
    assert await generations(connection) == [(1, "live"), (2, "building")]


async def test_a_builder_that_is_stopped_in_the_swap_does_not_hold_up_the_live_one(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """PostgreSQL ends a transaction that has stood for a lease, and with it the locks."""
    await made(connection, dsn, Counted(thing_id=uuid4()))
    standing = await registered(connection)

    freed: list[bool] = []

    async def stopped() -> None:
        """Until the live row can be written again."""
        await connection.execute("update headwater.projections set position = position where generation = 1")
        freed.append(True)

    async with meanwhile(
        dsn, before_swap=lambda: _live_goes_on(connection, 3), in_swap=stopped, lease=0.3
    ) as (builder, _):  # fmt: skip
        with pytest.raises(LOST):
            await asyncio.wait_for(builder.build(standing), 10)
    assert freed == [True]
    assert await generations(connection) == [(1, "live"), (2, "building")]
    await build(dsn, new_view, new, standing)
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


# Killed, displaced, stopped ------------------------------------------------------------------------------------------


@pytest.mark.kills
async def test_killed_in_the_middle_it_goes_on_where_it_was(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute(FILL.format(events=6000, streams=300))
    at = "select position from headwater.projections where name = 'Account' and state = 'building'"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).parents[1] / "support" / "builder.py"), dsn
    )

    async def has_begun() -> bool:
        return (await connection.fetchval(at) or 0) >= 500

    await until(has_begun)
    process.kill()
    await process.wait()
    position = await connection.fetchval(at)
    assert 500 <= position < 6000
    (standing,) = await _buildings(connection, "Account")
    positions = await connection.fetch('select max("position") from read.account_2')
    assert positions[0][0] == position, "rows and checkpoint are of one moment"

    log_reads: list[int] = []
    async with building(dsn, account_view, bank) as builder:
        reading = builder.log.stream

        def stream(connection: Any, after: int, *rest: Any, **options: Any) -> Any:
            log_reads.append(after)
            return reading(connection, after, *rest, **options)

        builder.log.stream = stream  # type: ignore[method-assign]  # to see from where it reads
        await builder.build(standing)
    assert log_reads[0] == position
    assert await stored(connection, account_view) == await folded(connection, bank, account_view)
    assert len(await stored(connection, account_view)) == 300


async def _buildings(connection: asyncpg.Connection, name: str) -> list[Generation]:
    columns = "generation, table_name, position, fence, fingerprint"
    query = f"select {columns} from headwater.projections where name = $1 and state = 'building'"
    return [Generation(*row) for row in await connection.fetch(query, name)]


async def test_whoever_lost_the_lease_writes_nothing(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=uuid4()) for _ in range(100)))
    standing = await registered(connection)
    async with building(dsn, new_view, new) as builder:
        writing = builder.log.stream

        async def stolen(*arguments: Any, **options: Any) -> AsyncGenerator[Any, None]:
            await lease(connection, standing)
            async for page in writing(*arguments, **options):
                yield page

        builder.log.stream = stolen  # type: ignore[method-assign]  # another takes over while it folds
        await asyncio.wait_for(builder.build(standing), 10)
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert await connection.fetchval("select count(*) from read.tally_2") == 0
    assert [each.position for each in await _buildings(connection, "Tally")] == [0]


class Fragile(ReadModel, name="Tally", key="thing_id", version=3):
    thing_id: UUID
    count: int


def fold_fragile(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
    assert isinstance(event.data, Counted)
    if event.data.by == 13:
        raise ZeroDivisionError("a bug in the fold")
    return Fragile(thing_id=event.data.thing_id, count=(row.count if row else 0) + event.data.by)


async def test_a_fold_that_fails_parks_its_key_and_those_behind_it(dsn: str, connection: asyncpg.Connection) -> None:
    good, bad = uuid4(), uuid4()
    await prepare(connection, old_view)
    await write(
        connection, *(Counted(thing_id=k, by=n) for k, n in ((bad, 1), (good, 1), (bad, 13), (bad, 2), (good, 3)))
    )
    view = View(Fragile, fold_fragile, on_failure=Park())
    await build(dsn, view, App([Feature([things], [view])]), await registered(connection, view))
    rows = {key: (row.count, position) for key, (row, position) in (await stored(connection, view)).items()}
    assert rows == {bad: (1, 1), good: (4, 5)}
    letters = await connection.fetch(
        "select generation, key, position, attempts, error is not null, length(traceback_hash), next_attempt_at "
        "from headwater.dead_letters order by position"
    )
    assert [tuple(letter) for letter in letters] == [(2, bad, 3, 1, True, 16, None), (2, bad, 4, 0, False, None, None)]


async def test_a_row_of_another_key_is_a_failed_fold_of_a_build_too(dsn: str, connection: asyncpg.Connection) -> None:
    good, bad = uuid4(), uuid4()

    def fold(row: Fragile | None, event: Recorded[Counted | Removed]) -> Fragile:
        by = event.data.by if isinstance(event.data, Counted) else 0
        return Fragile(thing_id=good if by == 13 else event.data.thing_id, count=by)

    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=k, by=n) for k, n in ((bad, 1), (good, 1), (bad, 13), (good, 3))))
    view = View(Fragile, fold, on_failure=Park())
    await build(dsn, view, App([Feature([things], [view])]), await registered(connection, view))
    rows = {key: (row.count, position) for key, (row, position) in (await stored(connection, view)).items()}
    assert rows == {bad: (1, 1), good: (3, 4)}
    [(key, position, error)] = await connection.fetch("select key, position, error from headwater.dead_letters")
    assert (key, position, error.partition(":")[0]) == (bad, 3, "RowMisplaced")


async def test_whoever_goes_on_with_a_build_knows_which_keys_are_parked(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 2)
    monkeypatch.setattr(rebuild, "NEAR", 0)
    key, other = uuid4(), uuid4()
    await prepare(connection, old_view)
    await write(
        connection, *(Counted(thing_id=k, by=n) for k, n in ((key, 1), (key, 13), (other, 1), (key, 2), (key, 3)))
    )
    view = View(Fragile, fold_fragile, on_failure=Park())
    app = App([Feature([things], [view])])
    standing = await registered(connection, view)

    async def killed(seconds: float) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await build(dsn, view, app, standing, events=2, pause=1.0, sleep=killed)
    assert await _letters(connection, 2) == [(key, 2, 1, False)]
    await build(dsn, view, app, standing)
    assert await _letters(connection, 2) == [(key, 2, 1, False), (key, 4, 0, True), (key, 5, 0, True)]
    rows = {each: (row.count, position) for each, (row, position) in (await stored(connection, view)).items()}
    assert rows == {key: (1, 1), other: (1, 3)}


async def test_what_a_build_has_parked_is_retried_once_it_is_live(dsn: str, connection: asyncpg.Connection) -> None:
    key, code = uuid4(), Mending()
    view = View(Fragile, code.view.fold, on_failure=Park())
    app = App([Feature([things], [view])])
    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=key, by=by) for by in (13, 2, 3)))
    await build(dsn, view, app, await registered(connection, view))
    assert len(await _letters(connection, 2)) == 3
    code.mended = True
    async with Node(app, QUICK, dsn, serve=False, work=True):
        assert await retry(connection, LetterFilter(key=key)) == 1
        await until(lambda: _is(connection, "select count(*) from headwater.dead_letters", 0))
    assert await stored(connection, view) == await folded(connection, app, view)


async def test_a_fold_whose_policy_is_to_stop_stops_the_build_and_says_so(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()), Counted(thing_id=(bad := uuid4()), by=13))
    view = View(Fragile, fold_fragile, on_failure=Stop())
    standing = await registered(connection, view)
    why = f"the fold of Counted at position 2 on row {bad} raised ZeroDivisionError: a bug in the fold"
    with pytest.raises(BuildStopped, match=re.escape(why)):
        await build(dsn, view, App([Feature([things], [view])]), standing)
    assert await connection.fetchval("select failure from headwater.projections where generation = 2") == why
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert len(await stored(connection, old_view)) == 2


class Written(ReadModel, name="Tally", key="thing_id", indexes=["text"]):
    thing_id: UUID
    text: str
    count: int
    at: datetime | None


REFUSED: dict[str, dict[str, Any]] = {
    "text with a zero byte": {"text": "a\0b"},
    "half of a surrogate pair": {"text": "\ud800"},
    "a number beyond bigint": {"count": 2**70},
    "more than an index takes": {"text": "".join(random.Random(1).choices(ascii_letters, k=9000))},
}
"""What PostgreSQL, its driver or an index does not take."""


def written(fields: dict[str, Any], on_failure: OnFailure) -> tuple[View[Any], App]:
    """Rows that are not taken any more after a Counted by 13."""

    def fold_written(row: Written | None, event: Recorded[ThingEvent]) -> Written | None:
        if isinstance(event.data, Removed):
            return None
        row = row or Written(thing_id=event.data.thing_id, text="", count=0, at=None)
        if event.data.by == 13:
            return replace(row, **fields)
        if event.data.by == 14:
            raise ValueError("fourteen")
        return replace(row, count=row.count + event.data.by)

    view = View(Written, _resolved(fold_written, Written), on_failure=on_failure)
    return view, App([Feature([things], [view])])


async def _letters(connection: asyncpg.Connection, generation: int) -> list[tuple[Any, ...]]:
    columns = "key, position, attempts, error is null"
    query = f"select {columns} from headwater.dead_letters where generation = $1 order by position"
    return [tuple(row) for row in await connection.fetch(query, generation)]


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("options", [{}, {"events": 4, "cache": 2}], ids=str)
async def test_a_row_that_is_not_taken_is_parked_as_the_live_projection_parks_it(
    dsn: str,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    options: dict[str, Any],
) -> None:
    view, app = written(fields, Park())
    one, two, three, good = keys = [uuid4() for _ in range(4)]
    log = [*((key, 1) for key in keys), (two, 13), (good, 2), (two, 3), (three, 14), (one, 4), (one, 13), (good, 5)]
    expected = [(two, 5), (two, 7), (three, 8), (one, 10)]
    await prepare(connection, view)
    await connection.execute(LIMITED)
    await watched(connection, 1)
    head = await write(connection, *(Counted(thing_id=key, by=by) for key, by in log))
    async with Node(app, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 1, head))
    letters, rows = await _letters(connection, 1), await stored(connection, view)
    assert [(key, position) for key, position, *_ in letters] == expected
    assert {key: row.count for key, (row, _) in rows.items()} == {one: 5, two: 1, three: 1, good: 8}

    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 2)
    standing = await force(connection, view)
    await watched(connection, 2)
    await build(dsn, view, app, standing, **options)
    assert await stored(connection, view) == rows
    assert await _letters(connection, 2) == letters
    assert await generations(connection) == [(1, "retired"), (2, "live")]


LIMITED = """
create function limited() returns trigger language plpgsql as $$ begin
  if current_setting('idle_in_transaction_session_timeout') = '0' then
    raise 'whoever is stopped now holds what he has written, for good';
  end if;
  return null;
end $$
"""


async def watched(connection: asyncpg.Connection, generation: int) -> None:
    """Rows are written, or only tried, under a limit: else the worker fails again and again."""
    trigger = "create trigger limited before insert or update on %s for each statement execute function limited()"
    await connection.execute(trigger % f"read.tally_{generation}")


async def test_a_build_that_is_stopped_while_it_writes_rows_is_cut_off_and_gone_on_with(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
    standing = await registered(connection)
    await connection.execute("update headwater.projections set owner = uuidv4() where state = 'building'")

    async def nothing_more() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def stop(self: Any, rows: Any) -> None:
        await self._writing.copy_to_table(self._table, schema_name="read", source=nothing_more())

    with monkeypatch.context() as patched:
        patched.setattr(rebuild._Build, "_write_rows", stop)
        stopped = asyncio.create_task(build(dsn, new_view, new, standing))
        copying = (
            "select count(*) from pg_stat_activity where datname = current_database() and query like 'COPY%' "
            "and state = 'active' and wait_event_type = 'Client'"
        )
        await until(lambda: _is(connection, copying, 1))
        await end_stalled_sessions(connection, 0)
        await until(lambda: _is(connection, copying, 0))
        stopped.cancel()
        await asyncio.wait([stopped])
    await build(dsn, new_view, new, standing)
    assert await generations(connection) == [(1, "retired"), (2, "live")]
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def test_a_row_that_is_not_taken_in_the_swap_is_parked_before_the_next(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """What is live does not stand still while the row at fault is looked for."""
    view, app = written({"text": "\0"}, Park())
    key = uuid4()
    await made(connection, dsn, Counted(thing_id=key))
    standing = await registered(connection, view)

    async def go_on() -> None:
        head = await write(connection, Counted(thing_id=key, by=13), Counted(thing_id=uuid4()))
        await connection.execute("update headwater.projections set position = $1 where generation = 1", head)

    async with meanwhile(dsn, before_swap=go_on, view=view, app=app) as (builder, samples):
        await asyncio.wait_for(builder.build(standing), 20)
    assert samples == [1]
    assert await _letters(connection, 2) == [(key, 2, 1, False)]
    assert sorted(position for _, position in (await stored(connection, view)).values()) == [1, 3]


@pytest.mark.parametrize("fields", REFUSED.values(), ids=REFUSED)
async def test_a_row_that_is_not_taken_stops_a_build_whose_policy_is_to_stop(
    dsn: str, connection: asyncpg.Connection, fields: dict[str, Any]
) -> None:
    view, app = written(fields, Stop())
    await prepare(connection, old_view)
    await write(connection, Counted(thing_id=uuid4()), Counted(thing_id=(bad := uuid4()), by=13))
    standing = await registered(connection, view)
    with pytest.raises(BuildStopped, match=f"the fold of Counted at position 2 on row {bad} raised "):
        await build(dsn, view, app, standing)
    assert str(await failure_of(connection, 2)).startswith("the fold of Counted at position 2")


@pytest.mark.parametrize("said", ["\0", "\ud800", "x" * 10_000], ids=["zero", "surrogate", "long"])
async def test_whatever_a_fold_raises_is_said(dsn: str, connection: asyncpg.Connection, said: str) -> None:
    def raising(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
        raise ValueError(said)

    view = View(Fragile, _resolved(raising, Fragile), on_failure=Stop())
    await prepare(connection, old_view)
    await write(connection, Counted(thing_id=uuid4()))
    standing = await registered(connection, view)
    with pytest.raises(BuildStopped):
        await build(dsn, view, App([Feature([things], [view])]), standing)
    why = await failure_of(connection, 2)
    assert why is not None
    assert "raised ValueError: " in why
    assert len(why.encode()) <= 2048


async def test_a_route_that_fails_is_said(dsn: str, connection: asyncpg.Connection) -> None:
    """Whose key is not known cannot be set aside: whatever the policy is, the build stops."""

    def routed(event: Counted | Removed) -> UUID:
        raise LookupError("no such shelf")

    view = View(Fragile, fold_fragile, route=routed, on_failure=Park())
    await prepare(connection, old_view)
    await write(connection, Counted(thing_id=uuid4()))
    standing = await registered(connection, view)
    with pytest.raises(BuildStopped):
        await build(dsn, view, App([Feature([things], [view])]), standing)
    why = "the route of Counted at position 1 raised LookupError: no such shelf"
    assert await failure_of(connection, 2) == why


REBUILD = ("rebuild", "Tally", "--app", "tests.projections.test_generations:new")


async def test_what_depends_on_the_view_stops_a_swap_that_would_break_it(
    dsn: str, connection: asyncpg.Connection
) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
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
        await until(is_live(connection, 2))  # it comes again by itself, and nothing is built twice
    assert await connection.fetchval(hindrance) is None
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def test_what_is_out_of_the_way_is_not_said_again(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
    await connection.execute("create view public.report as select note from read.tally")
    for _ in range(2):  # no worker runs but the command itself
        code, _, err = await run_command(*REBUILD, DATABASE_URL=dsn)
        assert (code, "view report depends on view read.tally" in err) == (1, True)
    await connection.execute("drop view public.report")
    code, _, err = await run_command(*REBUILD, DATABASE_URL=dsn)
    assert code == 0, err
    assert await generations(connection) == [(1, "retired"), (2, "live")]
    assert await stored(connection, new_view) == await folded(connection, new, new_view)


async def test_rows_that_differ_from_the_log_do_not_become_live(dsn: str, connection: asyncpg.Connection) -> None:
    calls = iter(range(1000))

    def unsteady(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
        return Fragile(thing_id=event.data.thing_id, count=next(calls))

    await prepare(connection, old_view)
    await write(connection, *(Counted(thing_id=uuid4()) for _ in range(3)))
    view = View(Fragile, _resolved(unsteady, Fragile))
    standing = await registered(connection, view)
    with pytest.raises(BuildStopped, match="of 3 sampled rows, 3 are not what the log says"):
        await build(dsn, view, App([Feature([things], [view])]), standing)
    assert await generations(connection) == [(1, "live"), (2, "building")]


# A build that has failed ---------------------------------------------------------------------------------------------


async def failure_of(connection: asyncpg.Connection, generation: int) -> str | None:
    query = "select failure from headwater.projections where name = 'Tally' and generation = $1"
    return await connection.fetchval(query, generation)  # type: ignore[no-any-return]  # text


class Mending:
    """A fold with a mistake in it, until it is mended: a deploy of code whose declaration is the same."""

    def __init__(self) -> None:
        self.mended = False
        self.view = View(Fragile, _resolved(self.fold, Fragile), on_failure=Stop())
        self.app = App([Feature([things], [self.view])])

    @property
    def fold(self) -> Callable[[Fragile | None, Recorded[ThingEvent]], Fragile | None]:
        def fold(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
            assert isinstance(event.data, Counted)
            if event.data.by == 13 and not self.mended:
                raise ZeroDivisionError("a bug in the fold")
            step = event.data.by if self.mended else 100
            return Fragile(thing_id=event.data.thing_id, count=(row.count if row else 0) + step)

        return fold


async def _failed(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, code: Mending
) -> Generation:
    """Generation 2, of which some is written, all of it wrong, when it fails."""
    monkeypatch.setitem(Log.stream.__kwdefaults__ or {}, "page", 2)
    key = uuid4()
    await made(connection, dsn, *(Counted(thing_id=key, by=by) for by in (1, 2, 3, 4, 13, 5)))
    standing = await registered(connection, code.view)
    with pytest.raises(BuildStopped):
        await build(dsn, code.view, code.app, standing, events=2)
    assert await connection.fetchval("select count from read.tally_2") == 400
    assert "a bug in the fold" in str(await failure_of(connection, 2))
    return standing


async def test_a_failed_build_is_not_gone_on_with(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts again with the same code would sooner or later have a sample in which nothing is wrong."""
    code = Mending()
    standing = await _failed(dsn, connection, monkeypatch, code)
    why = await failure_of(connection, 2)
    code.mended = True
    with pytest.raises(BuildStopped, match="a bug in the fold"):
        await build(dsn, code.view, code.app, await lease(connection, standing))
    assert await renew(connection, code.view) is None, "a worker that starts is nobody who has looked into it"
    assert await generations(connection) == [(1, "live"), (2, "building")]
    assert await failure_of(connection, 2) == why


@pytest.mark.parametrize("how", ["rebuild", "migrate"])
async def test_a_failed_build_begins_again_from_nothing(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    code = Mending()
    await _failed(dsn, connection, monkeypatch, code)
    code.mended = True
    if how == "rebuild":
        assert (await force(connection, code.view)).number == 3
    else:
        await prepare_views(dsn, [code.view])
    assert await generations(connection) == [(1, "live"), (2, "retired"), (3, "building")]
    (standing,) = await _buildings(connection, "Tally")
    assert standing.position == 0
    assert await renew(connection, code.view) == standing, "whoever starts now builds the same one"
    await build(dsn, code.view, code.app, standing)
    assert await stored(connection, code.view) == await folded(connection, code.app, code.view)


async def test_a_worker_rests_beside_a_failed_build(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is well, says so once, and builds what is registered in its place as soon as that rings."""
    monkeypatch.setitem(backoff.__kwdefaults__ or {}, "first", 0.0)  # what dies is started again at once
    code = Mending()
    await made(connection, dsn, Counted(thing_id=uuid4(), by=13))
    settings = replace(QUICK, lease_seconds=60.0)  # a look at the leases comes with a ring only
    for starts in (1, 2):
        async with Node(code.app, settings, dsn, serve=False, work=True) as node:

            async def rests(node: Node = node) -> bool:
                return "building Tally 2" in {unit.task for unit in node.leases.held}

            await until(rests)
            said = "generation 2 of Tally is not built: "
            await until(lambda: sum(said in line for line in caplog.messages) >= starts)  # noqa: B023 - awaited here
            # Until there was a heartbeat more: were it tried again, it would have been many times by now.
            before = await connection.fetchval("select max(lease_until) from headwater.workers")
            now = "(extract(epoch from clock_timestamp()) * 1000)::bigint"
            await connection.execute(f"select pg_notify('headwater', 'leases:' || {now})")
            beaten = "select max(lease_until) > $1 from headwater.workers"
            await until(lambda: connection.fetchval(beaten, before))  # noqa: B023 - awaited here
            assert sum(said in line for line in caplog.messages) == starts
            assert node.supervisor.troubles == {}
            assert await generations(connection) == [(1, "live"), (2, "building")]
            if starts == 2:
                code.mended = True
                await force(connection, code.view)
                await until(is_live(connection, 3))
    assert await stored(connection, code.view) == await folded(connection, code.app, code.view)


broken = App([Feature([things], [View(Fragile, fold_fragile, on_failure=Stop())])])


async def test_the_command_says_why_a_build_has_failed(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4(), by=13))
    arguments = ("rebuild", "Tally", "--app", "tests.projections.test_generations:broken")
    for generation in (2, 3):  # a person may have it begun again
        code, out, err = await run_command(*arguments, DATABASE_URL=dsn)
        assert (code, out) == (1, "")
        assert "Tally keeps its present rows: the fold of Counted at position 1 on row" in err
        assert (await generations(connection))[-1] == (generation, "building")


# Two versions at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["old", "new"])
async def test_two_versions_of_the_code_do_each_other_no_harm(
    dsn: str, connection: asyncpg.Connection, first: str
) -> None:
    """A rolling deploy. first: whose process starts first; the database was made by old code."""
    keys = [uuid4() for _ in range(20)]
    head = await made(connection, dsn, *(Counted(thing_id=key) for key in keys))
    apps = [old, new] if first == "old" else [new, old]
    async with Node(apps[0], QUICK, dsn, serve=True, work=True) as one:
        if first == "new":
            await until(is_live(connection, 2, head))
        async with Node(apps[1], QUICK, dsn, serve=True, work=True) as other:
            for _ in range(5):
                head = await write(connection, *(Counted(thing_id=key, by=3) for key in keys))
            await until(is_live(connection, 2, head))
            assert await stored(connection, new_view) == await folded(connection, new, new_view)
            for node in (one, other):
                view = node.app.domain.views[0]
                reader = node.serving.feeds[view.model].reader
                row, position = await reader.row(keys[0])
                assert row is not None
                assert (row["count"], position) == (16, head)
            assert (one.supervisor.troubles, other.supervisor.troubles) == ({}, {})
        assert await generations(connection) == [(1, "retired"), (2, "live")]
    async with Node(old, QUICK, dsn, serve=True, work=True):  # one of the old processes is started again
        assert await generations(connection) == [(1, "retired"), (2, "live")]


async def test_going_back_is_said_by_migrate(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
    await build(dsn, new_view, new, await registered(connection))
    assert await renew(connection, old_view) is None
    await prepare_views(dsn, [old_view])
    assert await generations(connection) == [(1, "retired"), (2, "live"), (3, "building")]
    async with Node(old, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 3))
    assert await stored(connection, old_view) == await folded(connection, old, old_view)


async def test_migrate_gives_up_what_other_code_was_building(dsn: str, connection: asyncpg.Connection) -> None:
    await prepare(connection, old_view)
    standing = await registered(connection)
    await prepare_views(dsn, [old_view])
    assert await generations(connection) == [(1, "live"), (2, "retired")]
    await build(dsn, new_view, new, standing)
    assert await generations(connection) == [(1, "live"), (2, "retired")]


async def test_the_newest_generation_wins(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
    view = View(Fragile, fold_fragile)
    second, third = await registered(connection), await registered(connection, view)
    await build(dsn, view, App([Feature([things], [view])]), third)
    await build(dsn, new_view, new, second)
    assert await generations(connection) == [(1, "retired"), (2, "retired"), (3, "live")]


# Readers -------------------------------------------------------------------------------------------------------------


async def test_new_code_reads_the_old_rows_until_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    key = uuid4()
    head = await made(connection, dsn, Counted(thing_id=key, by=4))
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        reader = Reader(pool, new_view, Positions())
        row, position = await reader.row(key)
        assert row is not None
        assert (row["thing_id"], row["count"], position) == (key, 4, head)
        with pytest.raises(
            ReadModelRebuilding, match=r"Tally\.largest is not in the version of Tally that is live now"
        ):
            row["largest"]
        where = Compare("largest", "gt", 1)
        for refused in (
            reader.page(where, [], first=1),
            reader.page(EVERYTHING, [Order("largest")], first=1),
            reader.count(where),
            reader.keys(where),
            reader.initial_rows(where),
        ):
            with pytest.raises(ReadModelRebuilding):
                await refused
        page = await reader.page(Compare("count", "eq", 4), [Order("count")], first=1)
        assert [each["thing_id"] for each in page.rows] == [key]
        assert [each["count"] for each in (await reader.changes(0)).rows] == [4]
        assert (await reader.rows([key]))[key]["count"] == 4

        await build(dsn, new_view, new, await registered(connection))
        await reader.checkpoint()  # it learns of the swap without a doorbell, too
        row, _ = await reader.row(key)
        assert row is not None
        assert row["largest"] == 4
        assert await reader.count(where) == 1


async def test_old_code_reads_the_new_rows_after_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    key = uuid4()
    await made(connection, dsn, Counted(thing_id=key, by=4))
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        reader = Reader(pool, old_view, Positions())
        row, _ = await reader.row(key)
        assert row is not None
        assert row["note"] is None
        by_note = Compare("note", "is_null", True)
        assert await reader.count(by_note) == 1

        await build(dsn, new_view, new, await registered(connection))
        # Statements that were prepared for the columns of before, each on its own.
        with pytest.raises(ReadModelRebuilding):
            await reader.count(by_note)
        for read in (reader.page(EVERYTHING, [], first=1), reader.initial_rows(), reader.changes(0)):
            (row,) = (await read).rows
            assert row["count"] == 4
            with pytest.raises(ReadModelRebuilding):
                row["note"]


async def test_a_column_of_another_type_is_another_column(dsn: str, connection: asyncpg.Connection) -> None:
    class Spelt(ReadModel, name="Tally", key="thing_id"):
        thing_id: UUID
        count: str
        note: str

    def fold_spelt(row: Spelt | None, event: Recorded[ThingEvent]) -> Spelt | None:
        return Spelt(thing_id=event.data.thing_id, count="four", note="")

    key, view = uuid4(), View(Spelt, _resolved(fold_spelt, Spelt))
    await made(connection, dsn, Counted(thing_id=key, by=4))
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        reader = Reader(pool, view, Positions())
        row, _ = await reader.row(key)
        assert row is not None
        for name in ("count", "note"):  # a number, and null where it may not be
            with pytest.raises(ReadModelRebuilding):
                row[name]
        await build(dsn, view, App([Feature([things], [view])]), await registered(connection, view))
        await reader.checkpoint()
        row, _ = await reader.row(key)
        assert row is not None
        assert (row["count"], row["note"]) == ("four", "")


async def test_one_field_is_refused_through_graphql_and_the_others_are_not(
    dsn: str, connection: asyncpg.Connection
) -> None:
    key = uuid4()
    await made(connection, dsn, Counted(thing_id=key, by=4))
    async with Node(new, QUICK, dsn, serve=True, work=False) as node:

        async def ask(fields: str) -> Any:
            query = f'{{ tally(thingId: "{key}") {{ {fields} }} }}'
            return await Engine(new.schema).execute(GraphQLRequest(query), Scope(node.serving))

        assert (await ask("count")).data == {"tally": {"count": 4}}
        (error,) = (await ask("count largest")).errors
        assert (error["path"], error["extensions"]) == (["tally", "largest"], {"code": "READ_MODEL_REBUILDING"})

        await build(dsn, new_view, new, await registered(connection))

        async def is_there() -> bool:
            return not (await ask("largest")).errors

        await until(is_there)
        assert (await ask("count largest")).data == {"tally": {"count": 4, "largest": 4}}


class Asking:
    """A client that asks a server over HTTP for the same things again and again, one after another, and what it may
    expect of the answers."""

    def __init__(self, node: Node, keys: list[UUID]) -> None:
        self._node = node
        self._keys = sorted(map(str, keys))
        self._seen: dict[str, tuple[int, int]] = {}
        self.rounds = 0
        self.refused = 0
        self.largest: int | None = None

    async def run(self, asking: Callable[[Asking], Awaitable[None]]) -> None:
        """Ask, until cancelled."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Web(self._node).app), base_url="http://test") as web:
            self._web = web
            while True:
                await asking(self)
                self.rounds += 1

    async def ask(self, query: str, **variables: object) -> Any:
        body = await self.answer(query, **variables)
        assert "errors" not in body, body
        return body["data"]

    async def answer(self, query: str, **variables: object) -> Any:
        response = await self._web.post("/graphql", json={"query": query, "variables": variables})
        return response.json()

    def see(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            now = int(row["position"]), row["count"]
            before = self._seen.get(row["thingId"], (0, 0))
            assert all(map(ge, now, before)), "nothing goes back"
            self._seen[row["thingId"]] = now

    async def all_pages(self) -> None:
        query = """query ($after: String) { tallies(first: 7, after: $after) {
          totalCount nodes { thingId count position } pageInfo { hasNextPage endCursor } } }"""
        after, more, found = None, True, []
        while more:
            page = (await self.ask(query, after=after))["tallies"]
            assert page["totalCount"] == len(self._keys)
            self.see(page["nodes"])
            found += [row["thingId"] for row in page["nodes"]]
            more, after = page["pageInfo"]["hasNextPage"], page["pageInfo"]["endCursor"]
        assert found == self._keys, "each once, and none is missing"

    async def count_one(self) -> None:
        """Its own write is there when it asks for it."""
        key = self._keys[self.rounds % len(self._keys)]
        count = """mutation ($key: UUID!) { count(input: {thingId: $key}) {
          ... on CountAccepted { position tally { thingId count position } } } }"""
        accepted = (await self.ask(count, key=key))["count"]
        self.see([accepted["tally"]])
        assert int(accepted["tally"]["position"]) >= int(accepted["position"])
        read = """query ($key: UUID!, $position: Position!) { tally(thingId: $key, atLeast: $position) {
          thingId count position } }"""
        self.see([(await self.ask(read, key=key, position=accepted["position"]))["tally"]])

    async def new_column(self) -> None:
        """It is not there yet, and then it is there for good."""
        query = "query ($key: UUID!) { tally(thingId: $key) { thingId count position largest } }"
        body = await self.answer(query, key=self._keys[0])
        codes = [error["extensions"]["code"] for error in body.get("errors", [])]
        if codes:
            assert codes == ["READ_MODEL_REBUILDING"], body
            assert self.largest is None, "it was there"
            self.refused += 1
        else:
            self.largest = body["data"]["tally"]["largest"]
            self.see([body["data"]["tally"]])

    async def follow(self) -> None:
        """One subscription, which goes on; each message is a round."""
        async with self._subscribed() as messages:
            held: set[str] = set()
            async for message in messages:
                held = self._take(message, set() if message["reset"] else held)
                self.rounds += 1

    async def open(self) -> None:
        """A subscription, for its snapshot only."""
        async with self._subscribed() as messages:
            self._take(await anext(messages), set())

    @asynccontextmanager
    async def _subscribed(self) -> AsyncIterator[AsyncIterator[Any]]:
        query = "subscription { tallyChanges { reset removed upserted { thingId count position } } }"
        source: Any = await Engine(self._node.app.schema).subscribe(GraphQLRequest(query), Scope(self._node.serving))
        async with aclosing(source):
            yield (_data(result)["tallyChanges"] async for result in source)

    def _take(self, message: Any, held: set[str]) -> set[str]:
        self.see(message["upserted"])
        held = held | {row["thingId"] for row in message["upserted"]}
        assert (message["removed"], sorted(held)) == ([], self._keys)
        return held


def _data(result: Any) -> Any:
    assert not result.errors, result.errors
    return result.data


KINDS = (Asking.all_pages, Asking.count_one, Asking.follow, Asking.open)


async def test_what_clients_ask_is_answered_before_in_and_after_each_swap(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """By servers of the old code and of the new one. With the first swap comes a column, with the second nothing."""
    keys = [uuid4() for _ in range(30)]
    await made(connection, dsn, *(Counted(thing_id=key) for key in keys * 3))
    async with (
        Node(old, QUICK, dsn, serve=True, work=True) as before,
        Node(new, QUICK, dsn, serve=True, work=False) as after,
        asyncio.TaskGroup() as group,
    ):
        kinds = [(node, kind) for node in (before, after) for kind in KINDS] + [(after, Asking.new_column)]
        clients = [(Asking(node, keys), kind) for node, kind in kinds]
        tasks = [group.create_task(client.run(kind)) for client, kind in clients]

        async def each_has_had_answers() -> None:
            seen = [client.rounds for client, _ in clients]
            await until(lambda: all(client.rounds > n + 2 for n, (client, _) in zip(seen, clients, strict=True)))

        await each_has_had_answers()
        async with Node(new, QUICK, dsn, serve=False, work=True):
            await until(is_live(connection, 2))
            await each_has_had_answers()
            await force(connection, new_view)
            await until(is_live(connection, 3))
            await each_has_had_answers()
        columns, _ = clients[-1]
        assert (columns.refused > 0, columns.largest) == (True, 1)
        for task in tasks:
            task.cancel()


# Subscriptions -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def following(dsn: str, view: View[Any]) -> AsyncIterator[Feed]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
        positions = Positions()
        feed = Feed(Reader(pool, view, positions), positions, poll=0.05)
        task = asyncio.create_task(feed.run())
        try:
            yield feed
        finally:
            task.cancel()
            await asyncio.wait([task])


async def heard(messages: AsyncGenerator[Message, None]) -> Message:
    return await asyncio.wait_for(anext(messages), 10)


def counts(message: Message) -> dict[UUID, int]:
    return {row["thing_id"]: row["count"] for row in message.upserted}


async def test_subscribers_get_everything_again_with_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    """Rows may differ that have not changed since, and a key may be gone: what a client holds is of another fold."""
    kept, gone = uuid4(), uuid4()
    head = await made(connection, dsn, Counted(thing_id=kept, by=2), Counted(thing_id=gone, by=13))
    where = Compare("count", "gt", 0)
    async with following(dsn, old_view) as feed:
        async with (
            aclosing(watch_changes(feed)) as all_, aclosing(watch_changes(feed, where)) as some,
            aclosing(watch_row(feed, kept)) as row, aclosing(watch_row(feed, gone)) as gone_row,
        ):  # fmt: skip
            for messages in (all_, some):
                assert counts(await heard(messages)) == {kept: 2, gone: 13}
            assert [(await anext(each) or {})["count"] for each in (row, gone_row)] == [2, 13]
            waiting: list[Any] = [asyncio.ensure_future(anext(each)) for each in (all_, some, row, gone_row)]
            await build(dsn, new_view, new, await registered(connection))
            one, other, kept_now, gone_now = await asyncio.wait_for(asyncio.gather(*waiting), 10)
            for message in (one, other):
                assert (message.reset, counts(message), message.position) == (True, {kept: 2}, head)
            assert (kept_now["count"], gone_now) == (2, None)

            async with Node(new, QUICK, dsn, serve=False, work=True):
                after = await write(connection, Counted(thing_id=kept))
                for messages in (all_, some):
                    message = await heard(messages)
                    assert (message.reset, counts(message), message.position) == (False, {kept: 3}, after)


async def test_cursors_stay_good_over_the_swap(dsn: str, connection: asyncpg.Connection) -> None:
    """From before the swap: everything again, at once. From after it: what has changed since."""
    kept, gone = uuid4(), uuid4()
    head = await made(connection, dsn, Counted(thing_id=kept), Counted(thing_id=gone, by=13), Counted(thing_id=kept))
    await build(dsn, new_view, new, await registered(connection))
    async with Node(new, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 2, later := await write(connection, Counted(thing_id=uuid4()))))
        await until(is_live(connection, 2, last := await write(connection, Counted(thing_id=gone))))
    async with following(dsn, new_view) as feed:
        for after in (0, 1, head):
            async with aclosing(watch_changes(feed, after=after)) as messages:
                message = await heard(messages)
                assert (message.reset, len(message.upserted), message.position) == (True, 3, last)
        async with aclosing(watch_changes(feed, after=later)) as messages:
            message = await heard(messages)
            assert (message.reset, counts(message), message.position) == (False, {gone: 1}, last)


async def test_subscriptions_through_a_node_live_over_a_deploy(dsn: str, connection: asyncpg.Connection) -> None:
    """An old server's subscription, while a new worker takes over: the doorbell alone brings the news."""
    key = uuid4()
    await made(connection, dsn, Counted(thing_id=key))
    async with Node(old, replace(QUICK, poll_seconds=60.0), dsn, serve=True, work=False) as node:
        query = "subscription { tallyChanges { reset removed position upserted { thingId count } } }"
        source: Any = await Engine(old.schema).subscribe(GraphQLRequest(query), Scope(node.serving))
        async with aclosing(source):
            first = (await asyncio.wait_for(anext(source), 10)).data["tallyChanges"]
            waiting = asyncio.ensure_future(anext(source))
            async with Node(new, QUICK, dsn, serve=False, work=True):
                second = (await asyncio.wait_for(waiting, 20)).data["tallyChanges"]
                head = await write(connection, Counted(thing_id=key))
                third = (await asyncio.wait_for(anext(source), 20)).data["tallyChanges"]
    assert (first["reset"], second["reset"]) == (True, True)
    assert first["upserted"] == second["upserted"] == [{"thingId": str(key), "count": 1}]
    expected = {"reset": False, "removed": [], "position": str(head), "upserted": [{"thingId": str(key), "count": 2}]}
    assert third == expected


# Forced, and what is left --------------------------------------------------------------------------------------------


async def test_a_generation_can_be_forced(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, *(Counted(thing_id=uuid4()) for _ in range(10)))
    await connection.execute("update read.tally_1 set count = 99")
    standing = await force(connection, old_view)
    assert (await force(connection, old_view)).number == standing.number == 2, "one that is on its way goes on"
    await build(dsn, old_view, old, standing)
    assert await stored(connection, old_view) == await folded(connection, old, old_view)
    assert await renew(connection, old_view) is None


async def test_the_command_builds_as_a_worker_when_there_is_none(dsn: str, connection: asyncpg.Connection) -> None:
    await connection.execute(FILL.format(events=3000, streams=100))
    code, out, err = await run_command("rebuild", "Account", DATABASE_URL=dsn)
    assert (code, out) == (0, "Account is live with its new rows, from position 3,000 on.\n"), err
    assert "of 3,000 events" in err
    assert await generations(connection, "Account") == [(1, "retired"), (2, "live")]
    assert await stored(connection, account_view) == await folded(connection, bank, account_view)
    assert await connection.fetchval("select count(*) from headwater.workers") == 0

    code, out, err = await run_command("rebuild", "Acount", DATABASE_URL=dsn)
    assert (code, out) == (1, "")
    assert "the app has no read model 'Acount'; it has" in err


async def test_the_old_rows_are_dropped_after_a_time(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retire, "LOCK_SECONDS", 0.2)
    await made(connection, dsn, Counted(thing_id=(key := uuid4())), Removed(thing_id=key))
    await build(dsn, new_view, new, await registered(connection))
    async with Database(dsn) as database:
        assert await RetiredTables(database, seconds=3600).drop() == []
        async with connection.transaction():
            await connection.fetch("select * from read.tally_1")  # someone still reads
            async with asyncio.timeout(10):
                assert await RetiredTables(database, seconds=0).drop() == []
        assert await RetiredTables(database, seconds=0).drop() == ["tally_1"]
        assert await RetiredTables(database, seconds=0).drop() == []
    assert await connection.fetchval("select to_regclass('read.tally_1')") is None
    assert await connection.fetch("select from headwater.tombstones where projection = 'Tally'") == []
    assert await generations(connection) == [(1, "retired"), (2, "live")], "its declaration is remembered"


async def test_what_cannot_be_dropped_holds_up_nothing_else(
    dsn: str, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's view on the table, or a query that goes on for long: what else is due is dropped."""
    monkeypatch.setattr(retire, "LOCK_SECONDS", 0.2)
    await made(connection, dsn, Counted(thing_id=uuid4()))
    for _ in range(3):
        await build(dsn, old_view, old, await force(connection, old_view))
    await connection.execute("create view public.report as select * from read.tally_1")
    other = await asyncpg.connect(dsn)
    async with Database(dsn) as database, other.transaction():
        await other.fetch("select * from read.tally_2")
        retired = RetiredTables(database, seconds=0)
        assert await retired.drop() == ["tally_3"]
        assert await retired.drop() == []
        said = [line for line in caplog.messages if "tally_1" in line]
        assert len(said) == 1, "once, and not at each look"
        assert "view report depends on table read.tally_1" in said[0]
    async with Database(dsn) as database:
        assert await RetiredTables(database, seconds=0).drop() == ["tally_2"]
        await connection.execute("drop view public.report")
        assert await RetiredTables(database, seconds=0).drop() == ["tally_1"]
    await other.close()


async def test_letters_of_a_generation_go_with_its_table(dsn: str, connection: asyncpg.Connection) -> None:
    view, key = View(Fragile, fold_fragile, on_failure=Park()), uuid4()
    app = App([Feature([things], [view])])
    await prepare(connection, view)
    await write(connection, Counted(thing_id=key, by=13))
    for _ in range(2):
        await build(dsn, view, app, await force(connection, view))
    async with Database(dsn) as database:
        assert sorted(await RetiredTables(database, seconds=0).drop()) == ["tally_1", "tally_2"]
    assert await _letters(connection, 2) == []
    assert await _letters(connection, 3) == [(key, 1, 1, False)]


async def test_a_worker_drops_them(dsn: str, connection: asyncpg.Connection) -> None:
    await made(connection, dsn, Counted(thing_id=uuid4()))
    async with Node(new, replace(QUICK, retired_seconds=0.0), dsn, serve=False, work=True):
        await until(is_live(connection, 2))
        await until(lambda: _is(connection, "select to_regclass('read.tally_1') is null", value=True))


# Enums ---------------------------------------------------------------------------------------------------------------


def with_sizes(*names: str, version: int = 1) -> App:
    """Code whose enum has these values; a thing has the size that it was counted by, or the first."""
    made: Any = enum.Enum
    size = made("Size", {name.upper(): name for name in names})
    columns = {"thing_id": UUID, "size": size, "sizes": list[size]}  # type: ignore[valid-type]  # as the test says
    keywords = {"name": "Tally", "key": "thing_id", "version": version}
    namespace = {"__annotations__": columns, "__module__": __name__}
    model: Any = types.new_class("Sized", (ReadModel,), keywords, lambda body: body.update(namespace))

    def fold(row: Any, event: Recorded[ThingEvent]) -> Any:
        by = event.data.by if isinstance(event.data, Counted) else 0
        now = list(size)[min(by, len(size)) - 1]
        return model(thing_id=event.data.thing_id, size=now, sizes=[*(row.sizes if row else []), now])

    return App([Feature([things], [View(model, fold)])])


def view_in(app: App) -> View[Any]:
    return app.domain.views[0]


async def test_an_enum_that_grows_keeps_its_rows(dsn: str, connection: asyncpg.Connection) -> None:
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
            assert old_node.leases.held == [], "it could not read what is written now"
            assert (old_node.supervisor.troubles, new_node.supervisor.troubles) == ({}, {})
            assert await connection.fetchval("select count(*) from headwater.dead_letters") == 0
    async with Node(small, QUICK, dsn, serve=False, work=True):  # an old process is started again
        assert await generations(connection) == [(1, "live")]
    assert await renew(connection, view_in(large)) is None
    assert await renew(connection, view_in(with_sizes("xs", "s", "m", "l", version=2))) is not None


async def test_an_enum_that_loses_a_value_has_its_rows_made_again(dsn: str, connection: asyncpg.Connection) -> None:
    before, after = with_sizes("s", "m", "l"), with_sizes("s", "m", "xl")
    key = uuid4()
    async with Node(before, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 1, await write(connection, Counted(thing_id=key, by=3))))
    async with Node(after, QUICK, dsn, serve=False, work=True):
        await until(is_live(connection, 2, await write(connection, Counted(thing_id=key, by=1))))
    row: Any = (await stored(connection, view_in(after)))[key][0]
    assert [each.value for each in row.sizes] == ["xl", "s"]
    assert await generations(connection) == [(1, "retired"), (2, "live")]


def test_a_declaration_has_one_fingerprint() -> None:
    assert fingerprint(old_view) == fingerprint(View(Tally, fold)) != fingerprint(new_view)
