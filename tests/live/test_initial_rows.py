"""The initial rows of a subscription, which are read in parts while the read model changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import product
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.loading import RUNG
from tests.support.waiting import reached
from tests.support.watching import (
    Client,
    Count,
    Remove,
    Tally,
    execute,
    feed_of,
    table,
    tally_view,
    things_app,
)

from headwater import Command
from headwater.eventstore.epoch import Place
from headwater.live.feed import Feed
from headwater.live.subscriptions import SubscriptionLimits, watch_changes
from headwater.projections.filter import EVERYTHING, Compare, Filter
from headwater.projections.reader import Changes, InitialRows, Reader, ReadLimits
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

SMALL = SubscriptionLimits(message_rows=2)


def in_parts(node: Node, reader: type[Reader] = Reader) -> Feed:
    """Return a feed that reads a dozen rows in three parts."""
    return feed_of(node, tally_view, limits=ReadLimits(initial_rows=4), reader=reader)


async def counted(node: Node, keys: Sequence[UUID]) -> None:
    """Count each thing once, so that the rows have the order of the keys."""
    head = await execute(node, *(Count(thing_id=key) for key in keys))
    await reached(node.positions, tally_view.name, head)


def change(moment: str, keys: Sequence[UUID]) -> list[Command]:
    """Return commands that change a row that was sent, one that was read but not sent, and one that was not read."""
    some = (keys[0], keys[3], keys[9])
    changes: dict[str, list[Command]] = {
        "changed": [Count(thing_id=key) for key in some],
        "removed": [Remove(thing_id=key) for key in some],
        "made": [Count(thing_id=uuid4())],
        "removed and made again": [each(thing_id=key) for key in some for each in (Remove, Count)],
        "made and removed": [Count(thing_id=UUID(int=7)), Remove(thing_id=UUID(int=7))],
        "all at once": [
            *(Count(thing_id=key) for key in keys[::3]),
            *(Remove(thing_id=key) for key in keys[1::3]),
            *(Count(thing_id=uuid4()) for _ in range(5)),
        ],
    }
    return changes[moment]


MOMENTS = ["changed", "removed", "made", "removed and made again", "made and removed", "all at once"]


@pytest.mark.parametrize("where", [EVERYTHING, Compare("count", "eq", 1), Compare("count", "gt", 1)], ids=str)
async def test_changes_while_the_initial_rows_are_sent_are_neither_lost_nor_duplicated(
    start: Start, connection: asyncpg.Connection, subtests: pytest.Subtests, where: Filter
) -> None:
    node = await start(things_app, settings=RUNG)
    for moment, taken in product(MOMENTS, (1, 4)):
        with subtests.test(moment, taken=taken):
            await changes_are_neither_lost_nor_duplicated(node, connection, where, moment, taken)
        left = await table(connection, tally_view, EVERYTHING)
        await reached(node.positions, tally_view.name, await execute(node, *(Remove(thing_id=key) for key in left)))


async def changes_are_neither_lost_nor_duplicated(
    node: Node, connection: asyncpg.Connection, where: Filter, moment: str, taken: int
) -> None:
    feed, keys = in_parts(node), [uuid4() for _ in range(11)]
    await counted(node, keys)
    if where == Compare("count", "gt", 1):
        await counted(node, keys)
    client = Client("thing_id", where)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, limits=SMALL)) as messages:
        for _ in range(taken):
            client.take(await anext(messages))
        assert client.position == 0
        head = await execute(node, *change(moment, keys))
        await reached(node.positions, tally_view.name, head)
        while client.position < 1:
            client.take(await anext(messages))
    # After the last of the initial rows, the client holds the rows of one moment.
    assert (client.rows, client.position, client.resets) == (await table(connection, tally_view, where), head, 1)
    assert max(len(message.upserted) for message in client.messages) <= 2


@pytest.mark.parametrize("where", [EVERYTHING, Compare("count", "eq", 1)], ids=str)
async def test_a_row_that_changes_after_it_was_read_is_sent_only_in_its_latest_state(
    start: Start, connection: asyncpg.Connection, where: Filter
) -> None:
    node, keys = await start(things_app, settings=RUNG), [uuid4() for _ in range(7)]
    await counted(node, keys)
    this_test, head = asyncio.current_task(), 0

    class ChangesBeforeRead(Reader):
        async def changes(self, after: int) -> Changes:
            nonlocal head
            if asyncio.current_task() is this_test:
                head = await execute(node, Count(thing_id=keys[4]), Remove(thing_id=keys[5]))
                await reached(node.positions, tally_view.name, head)
            return await super().changes(after)

    feed = in_parts(node, ChangesBeforeRead)
    client = Client("thing_id", where)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, where, limits=SMALL)) as messages:
        while client.position < 1:
            client.take(await anext(messages))
    assert (client.rows, client.position) == (await table(connection, tally_view, where), head)
    sent = [row["thing_id"] for message in client.messages for row in message.upserted]
    assert len(sent) == len(set(sent))
    assert keys[5] not in sent


async def test_a_client_that_leaves_between_two_parts_of_the_initial_rows_resumes_without_a_gap(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    await counted(node, keys)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        for _ in range(3):
            client.take(await anext(messages))
    head = await execute(node, *change("all at once", keys))
    await reached(node.positions, tally_view.name, head)
    client = client.copy(client.position)
    async with (
        asyncio.timeout(20),
        aclosing(watch_changes(feed, after=Place(None, client.position), limits=SMALL)) as messages,
    ):
        while client.position < head:
            client.take(await anext(messages))
    assert client.rows == await table(connection, tally_view, EVERYTHING)


async def test_no_transaction_is_open_while_a_slow_client_takes_the_initial_rows(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app, settings=RUNG)
    await counted(node, [uuid4() for _ in range(12)])
    read = sent = 0

    class CountingReader(Reader):
        async def initial_rows(
            self, where: Filter = EVERYTHING, *, after: int = 0, upto: int | None = None
        ) -> InitialRows:
            nonlocal read
            part = await super().initial_rows(where, after=after, upto=upto)
            read += len(part.rows)
            return part

    slow = watch_changes(in_parts(node, CountingReader), limits=SMALL)
    async with asyncio.timeout(20), aclosing(slow) as messages:
        async for message in messages:
            sent += len(message.upserted)
            assert read - sent <= 4, "the next part is read when the last one is sent"
            held = await connection.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and state ~ 'in transaction'"
            )
            assert held == 0
            if message.position:
                break
    assert sent == read == 12


async def test_the_initial_rows_start_again_when_the_edition_changes(
    start: Start, connection: asyncpg.Connection
) -> None:
    """The edition changes when dead letters are folded or generations are swapped: rows may keep their positions."""
    node = await start(things_app, settings=RUNG)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    await counted(node, keys)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        for _ in range(3):
            client.take(await anext(messages))
        async with connection.transaction():
            await connection.execute("update read.tally_1 set count = 9 where thing_id = $1", keys[0])
            await connection.execute("update headwater.projections set repairs = repairs + 1 where name = 'Tally'")
        while client.position < 1:
            client.take(await anext(messages))
    assert (client.resets, client.rows) == (2, await table(connection, tally_view, EVERYTHING))
    assert client.rows[keys[0]]["count"] == 9


async def test_the_initial_rows_start_again_when_the_checkpoint_is_set_back(
    start: Start, connection: asyncpg.Connection
) -> None:
    """A crash of PostgreSQL can lose the last commits of a projection.

    Until its event is folded again, a row that was not read yet has its earlier position, which was passed already.
    """
    node = await start(things_app, settings=RUNG, work=False)
    feed, keys = in_parts(node), [uuid4() for _ in range(12)]
    rows = [(key, 1, place) for place, key in enumerate(keys, 1)]
    await connection.executemany("insert into read.tally_1 (thing_id, count, position) values ($1, $2, $3)", rows)
    move = "update headwater.projections set position = $1 where name = 'Tally'"
    await connection.execute("update headwater.head set position = 12")
    await connection.execute(move, 12)
    client = Client("thing_id", EVERYTHING)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, limits=SMALL)) as messages:
        client.take(await anext(messages))
        await connection.execute("delete from read.tally_1 where position > 9")
        await connection.execute("update read.tally_1 set position = 1 where position = 9")
        await connection.execute("delete from read.tally_1 where thing_id = $1", keys[0])
        await connection.execute(move, 8)
        while client.position < 1:
            client.take(await anext(messages))
    assert (client.resets, client.rows) == (2, await table(connection, tally_view, EVERYTHING))


async def test_past_the_bound_of_held_keys_removals_are_sent_for_every_key(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(things_app, settings=RUNG)
    feed, keys, other = node.serving.feeds[Tally], [uuid4() for _ in range(4)], uuid4()
    await counted(node, [*keys, other, other])
    once = Compare("count", "eq", 1)
    for after in (None, Place(None, 4)):
        limits = SubscriptionLimits(held_keys=3)
        async with asyncio.timeout(20), aclosing(watch_changes(feed, once, after, limits=limits)) as messages:
            if after is None:
                assert len((await anext(messages)).upserted) == 4
            else:
                assert (await anext(messages)).removed == [other]
            await execute(node, Count(thing_id=other))
            assert (await anext(messages)).removed == [other], "the client did not hold it"
    limits = SubscriptionLimits(held_keys=4)
    async with asyncio.timeout(20), aclosing(watch_changes(feed, once, limits=limits)) as messages:
        assert len((await anext(messages)).upserted) == 4
        await execute(node, Count(thing_id=other), Count(thing_id=keys[0]))
        assert (await anext(messages)).removed == [keys[0]]
