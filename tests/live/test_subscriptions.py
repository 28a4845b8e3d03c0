"""Every client of a subscription ends with the rows of the table, also after it was away."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from decimal import Decimal
from typing import TypeAlias
from uuid import uuid4

import asyncpg
import pytest
from tests.support.loading import RUNG, Load
from tests.support.waiting import reached, until
from tests.support.watching import (
    Client,
    Count,
    Tally,
    execute,
    feed_of,
    following,
    table,
    tally_view,
    things_app,
)

from bank.accounts.views import account_view
from headwater.eventstore.audit_trail import END
from headwater.eventstore.epoch import Place
from headwater.live.subscriptions import Message, SubscriptionLimits, watch_changes
from headwater.projections.filter import EVERYTHING, All, Compare, Filter, Not, Some
from headwater.projections.reader import Changes, Reader, ReadLimits
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

OPEN = Compare("status", "eq", "OPEN")
RICH = Compare("balance", "gte", Decimal(50))
FILTERS: dict[str, Filter] = {
    "everything": EVERYTHING,
    "open": OPEN,
    "rich and open": All((OPEN, RICH)),
    "poor or frozen": Some((Not(RICH), Not(OPEN))),
    "euros": Compare("currency", "eq", "EUR"),
}


@pytest.mark.parametrize("seed", [1, 2])
async def test_every_client_ends_with_the_rows_of_the_table(
    start: Start, connection: asyncpg.Connection, seed: int
) -> None:
    dice = random.Random(seed)
    node = await start(settings=RUNG)
    feed, load = feed_of(node, account_view, limits=ReadLimits(initial_rows=10)), Load(node, seed)
    await load.some(30)
    wheres = [*FILTERS.values()] * 3
    dice.shuffle(wheres)
    clients = [Client("account_id", where) for where in wheres]
    # Some have a small bound, so that they are reset on the way.
    limits = [SubscriptionLimits(pending=dice.choice([1, 4, 10_000]), message_rows=7) for _ in wheres]
    sources = [watch_changes(feed, where, limits=each) for where, each in zip(wheres, limits, strict=True)]
    async with asyncio.TaskGroup() as group:
        enough = asyncio.Event()

        async def subscribe(client: Client, source: AsyncGenerator[Message, None]) -> None:
            async with following(client, source):
                await enough.wait()

        for client, source in zip(clients, sources, strict=True):
            # Not awaited: the client subscribes while the commands are written.
            group.create_task(subscribe(client, source))
            for _ in range(dice.randrange(1, 4)):
                await load.some(dice.randrange(1, 40))
        await load.settled()
        expected = [await table(connection, account_view, where) for where in wheres]
        for client, rows in zip(clients, expected, strict=True):
            await client.holds(rows)
        enough.set()
    assert feed.watchers == 0
    assert sum(client.resets for client in clients) > len(clients), "some clients were too slow for their bound"
    assert sum(len(client.messages) for client in clients) > 100
    assert all(expected)


@pytest.mark.parametrize("name", FILTERS)
async def test_resuming_after_any_message_results_in_the_same_rows(
    start: Start, connection: asyncpg.Connection, name: str
) -> None:
    where, limits = FILTERS[name], SubscriptionLimits(message_rows=2)
    node = await start(settings=RUNG)
    feed, load = feed_of(node, account_view, limits=ReadLimits(initial_rows=3, changed_rows=6)), Load(node, 3)
    await load.some(60)
    await load.settled()
    client = Client("account_id", where)
    async with following(client, watch_changes(feed, where, limits=limits)):
        for _ in range(12):
            await load.some(15)
            await load.settled()
        rows = await table(connection, account_view, where)
        await client.holds(rows)
    nothing = Client("account_id", where).copy(0)
    held = [nothing, *client.earlier]
    assert len({each.position for each in held}) > 5
    assert name == "rich and open" or sum(each.position == 0 for each in held) > 1, "some are between two parts"
    await load.some(60)
    head = await load.settled()
    rows = await table(connection, account_view, where)
    for each in held:
        each.away_until = head
        async with following(each, watch_changes(feed, where, Place(None, each.position), limits=limits)):
            await each.holds(rows)
    # Then it continues with live changes.
    resumed = held[len(held) // 2]
    async with following(resumed, watch_changes(feed, where, Place(None, resumed.position), limits=limits)):
        resumed.away_until = END
        for _ in range(3):  # the client is back when it holds the rows of the first round
            await load.some(40)
            head = await load.settled()
            await resumed.holds(await table(connection, account_view, where))
            resumed.away_until = min(resumed.away_until, head)
    assert resumed.resets == 0


async def test_resuming_reads_the_missed_changes_once_while_the_log_grows(start: Start) -> None:
    node = await start(settings=RUNG)
    load, reads, this_test = Load(node, 4), list[int](), asyncio.current_task()
    await load.some(30)
    await load.settled()

    class BusyLog(Reader):
        async def changes(self, after: int) -> Changes:
            changes = await super().changes(after)
            if asyncio.current_task() is this_test:
                reads.append(after)
                await load.some(3)  # a busy log: resuming must not wait for a pause
                await load.settled()
            return changes

    feed = feed_of(node, account_view, reader=BusyLog)
    client = Client("account_id", EVERYTHING).copy(0)
    async with asyncio.timeout(10), aclosing(watch_changes(feed, EVERYTHING, Place(None, 0))) as messages:
        while client.position < await feed.reader.checkpoint():
            client.take(await anext(messages))
    assert reads == [0]
    assert client.rows.keys() == (await feed.reader.keys(EVERYTHING))


async def test_a_cursor_after_the_end_of_the_log_is_reset(start: Start, connection: asyncpg.Connection) -> None:
    """After a backup is restored, new events have positions that the client has seen already."""
    node = await start(things_app, settings=RUNG)
    feed, keys = node.serving.feeds[Tally], [uuid4() for _ in range(4)]
    head = await execute(node, *(Count(thing_id=key) for key in keys))
    await reached(node.positions, tally_view.name, head)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(10), aclosing(watch_changes(feed, after=Place(None, head + 5))) as messages:
        client.take(await anext(messages))
        assert (client.resets, set(client.rows), client.position) == (1, set(keys), head)
        for _ in range(4):
            await execute(node, Count(thing_id=keys[0]))
        while client.position < head + 4:
            client.take(await anext(messages))
    assert client.rows[keys[0]]["count"] == 5


async def test_a_cursor_that_the_read_model_has_not_reached_yet_is_not_reset(
    start: Start, connection: asyncpg.Connection
) -> None:
    """Such a cursor comes from another process, or from a mutation."""
    node = await start(things_app, settings=RUNG)
    feed, key = node.serving.feeds[Tally], uuid4()
    async with connection.transaction():
        await connection.execute("select from headwater.projections where name = 'Tally' for update")
        head = await execute(node, Count(thing_id=key), Count(thing_id=key))
        assert not (await feed.reader.changes(head)).beyond
    async with asyncio.timeout(10), aclosing(watch_changes(feed, after=Place(None, head))) as messages:
        following = asyncio.ensure_future(anext(messages))
        await until(lambda: feed.watchers)
        await execute(node, Count(thing_id=key))
        message = await following
    assert (message.reset, [row["count"] for row in message.upserted], message.position) == (False, [3], head + 1)
