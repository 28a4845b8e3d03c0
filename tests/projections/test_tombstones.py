"""Tombstones are pruned: a client that was away for longer receives all rows again, and keeps no removed row."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.waiting import reached, until
from tests.support.watching import Client, Count, Remove, Tally, execute, following, table, tally_view, things_app

from headwater.config import Settings
from headwater.eventstore.epoch import Place
from headwater.live.feed import Feed
from headwater.live.subscriptions import Message, watch_changes, watch_row
from headwater.projections.filter import EVERYTHING
from headwater.projections.reader import Changes
from headwater.projections.tombstones import Tombstones
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

DAY = 86_400.0


async def things(node: Node, *keys: UUID, removed: Sequence[UUID] = ()) -> int:
    """Count things, then remove some; return the position of the last command when the rows have reached it."""
    position = 0
    for commands in ([Count(thing_id=key) for key in keys], [Remove(thing_id=key) for key in removed]):
        if commands:
            position = await execute(node, *commands)
            # A row that is added and removed in one batch is never stored, and has no tombstone.
            await reached(node.positions, tally_view.name, position)
    return position


async def first_message(feed: Feed, after: int) -> Message:
    async with asyncio.timeout(10), aclosing(watch_changes(feed, after=Place(None, after))) as messages:
        return await anext(messages)


async def test_a_cursor_from_before_a_pruned_tombstone_is_reset(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(things_app)
    feed, tombstones = node.serving.feeds[Tally], Tombstones(node.database, seconds=DAY)
    stays, old, young = uuid4(), uuid4(), uuid4()
    await things(node, stays, old, young, removed=[old])  # 1 to 4
    await things(node, removed=[young])  # 5
    assert await tombstones.prune() == 0
    message = await first_message(feed, 3)
    assert (message.reset, message.upserted, set(message.removed), message.position) == (False, [], {old, young}, 5)

    await connection.execute(
        "update headwater.tombstones set removed_at = removed_at - interval '2 d' where position = 4"
    )
    assert await tombstones.prune() == 1
    assert await tombstones.prune() == 0

    message = await first_message(feed, 3)
    assert (message.reset, [row["thing_id"] for row in message.upserted], message.position) == (True, [stays], 5)
    message = await first_message(feed, 4)
    assert (message.reset, message.upserted, list(message.removed), message.position) == (False, [], [young], 5)


async def test_a_row_that_was_added_again_has_no_tombstone(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(things_app)
    key = uuid4()
    await things(node, key, removed=[key])
    await things(node, key)
    assert await Tombstones(node.database, seconds=0).prune() == 0
    message = await first_message(node.serving.feeds[Tally], 1)
    assert (message.reset, [row["thing_id"] for row in message.upserted]) == (False, [key])


async def test_tombstones_of_other_generations_are_not_pruned(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(things_app)
    key = uuid4()
    await things(node, key, removed=[key])
    await connection.execute(
        "insert into headwater.projections (name, generation, version, fingerprint, table_name, state)"
        " values ('Tally', 7, 1, 'other', 'tally_7', 'building'), ('Tally', 8, 1, 'other', 'tally_8', 'retired')"
    )
    await connection.execute(
        "insert into headwater.tombstones values ('Tally', 7, $1, 1), ('Tally', 8, $1, 1)", str(key)
    )
    assert await Tombstones(node.database, seconds=0).prune() == 1
    left = await connection.fetch("select generation from headwater.tombstones order by generation")
    assert [row[0] for row in left] == [7, 8]


async def test_more_tombstones_than_one_transaction_prunes_are_all_pruned(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app)
    await connection.execute(
        "insert into headwater.tombstones select 'Tally', 1, gen_random_uuid(), n from generate_series(1, 25000) n"
    )
    assert await Tombstones(node.database, seconds=0).prune() == 25_000
    assert await connection.fetchval("select count(*) from headwater.tombstones") == 0
    assert await connection.fetchval("select forgotten from headwater.projections where name = 'Tally'") == 25_000


async def test_a_worker_prunes_old_tombstones(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(things_app, settings=replace(Settings(), tombstone_seconds=0.2))
    key = uuid4()
    await things(node, key, removed=[key])
    await until(lambda: connection.fetchval("select not exists (select from headwater.tombstones)"))
    assert await connection.fetchval("select forgotten from headwater.projections where name = 'Tally'") == 2


async def test_a_process_that_was_paused_for_longer_than_tombstones_are_kept_reads_all_rows_again(
    start: Start, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clients hold rows whose tombstones are pruned."""
    node = await start(things_app)
    feed, one, other = node.serving.feeds[Tally], uuid4(), uuid4()
    await things(node, one, other)
    reading, awake = feed.reader.changes, asyncio.Event()
    client = Client("thing_id", EVERYTHING)
    async with following(client, watch_changes(feed)), aclosing(watch_row(feed, one)) as rows:
        await client.holds(await table(connection, tally_view, EVERYTHING))
        assert (await anext(rows))[0] is not None

        async def asleep(after: int) -> Changes:
            await awake.wait()
            return await reading(after)

        monkeypatch.setattr(feed.reader, "changes", asleep)
        await things(node, removed=[one])
        position = await things(node, uuid4())
        assert await Tombstones(node.database, seconds=0).prune() == 1
        awake.set()
        async with asyncio.timeout(10):
            assert (await anext(rows))[0] is None
        rows_now = await table(connection, tally_view, EVERYTHING)
        await client.holds(rows_now)
        await until(lambda: client.position == position)
        assert one not in rows_now


@pytest.mark.parametrize("seed", [1, 2])
async def test_pruning_while_a_worker_writes_loses_nothing(
    start: Start, connection: asyncpg.Connection, seed: int
) -> None:
    """All tombstones are pruned continuously. Clients that watch, and clients that resume at any position, end with the
    rows of the table; the worker and the pruning never fail because of each other."""
    dice = random.Random(seed)
    node = await start(things_app)
    feed, tombstones = node.serving.feeds[Tally], Tombstones(node.database, seconds=0)
    keys = [uuid4() for _ in range(20)]
    client, pruned, over = Client("thing_id", EVERYTHING), 0, asyncio.Event()

    async def prune() -> None:
        nonlocal pruned
        while not over.is_set():
            pruned += await tombstones.prune()

    async with following(client, watch_changes(feed)), asyncio.TaskGroup() as group:
        group.create_task(prune())
        for _ in range(40):
            await asyncio.gather(
                *(execute(node, dice.choice([Count, Remove])(thing_id=key)) for key in dice.sample(keys, 10))
            )
        await reached(node.positions, tally_view.name, await node.log.head())
        over.set()
        rows = await table(connection, tally_view, EVERYTHING)
        await client.holds(rows)
        for each in dice.sample(client.earlier, min(10, len(client.earlier))):
            each.away_until = await node.log.head()
            async with following(each, watch_changes(feed, after=Place(None, each.position))):
                await each.holds(rows)
    assert pruned > 0
    assert node.supervisor.troubles == {}
