"""A feed, which reads changes once for all watchers, and a watcher, which collects them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from operator import itemgetter
from typing import Any, TypeAlias
from uuid import UUID, uuid4

from tests.support.loading import RUNG
from tests.support.waiting import reached, until
from tests.support.watching import (
    Count,
    Tally,
    execute,
    feed_of,
    tally_view,
    things_app,
)

from headwater.eventstore.positions import Positions
from headwater.live.feed import Feed
from headwater.live.subscriptions import watch_changes, watch_row
from headwater.live.watcher import ResetReason, Watcher
from headwater.projections.reader import Changes, Reader
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]


def changes(*positions: int, to: int) -> Changes:
    return Changes([{"key": UUID(int=position), "position": position} for position in positions], (), to)


async def test_an_overflow_while_the_initial_rows_are_read_is_reported_if_they_are_older() -> None:
    watcher = Watcher(itemgetter("key"), limit=2)
    watcher.offer(changes(11, 12, 13, to=13))
    watcher.start(10)  # the initial rows are older than the changes that did not fit
    assert (await asyncio.wait_for(watcher.take(), 1)).reset is ResetReason.TOO_MANY_CHANGES
    watcher.offer(changes(14, 15, 16, to=16))
    watcher.start(16)  # the initial rows include all of them
    watcher.offer(changes(17, to=17))
    batch = await asyncio.wait_for(watcher.take(), 1)
    assert ([row["position"] for row in batch.rows], batch.position, batch.reset) == ([17], 17, None)


async def test_changes_that_the_initial_rows_include_are_dropped() -> None:
    watcher = Watcher(itemgetter("key"))
    watcher.offer(changes(9, 11, to=11))
    watcher.start(10)
    watcher.offer(changes(12, to=12))
    watcher.offer(changes(8, to=8))  # from a feed that is behind the initial rows
    batch = await asyncio.wait_for(watcher.take(), 1)
    assert ([row["position"] for row in batch.rows], batch.position) == ([11, 12], 12)


async def test_a_watcher_that_leaves_is_removed_from_the_feed(start: Start) -> None:
    node = await start(things_app, settings=RUNG)
    feed, key = node.serving.feeds[Tally], uuid4()
    sources: list[AsyncGenerator[Any, None]] = [watch_row(feed, key), watch_row(feed, key), watch_changes(feed)]
    for source in sources:
        await anext(source)
    assert (feed.watchers, feed.watched_keys) == (3, 1)
    for left, source in enumerate(sources, 1):
        # Cancelled while it waits, as when a socket closes.
        waiting = asyncio.ensure_future(anext(source))
        await asyncio.sleep(0)  # it runs until it waits
        waiting.cancel()
        await asyncio.wait([waiting])
        assert feed.watchers == 3 - left
    assert (feed.watchers, feed.watched_keys) == (0, 0)


async def test_a_feed_reads_once_for_all_watchers_and_nothing_without_watchers(start: Start) -> None:
    node, key = await start(things_app, settings=RUNG), uuid4()
    reads: list[int] = []

    class CountingReader(Reader):
        async def changes(self, after: int) -> Changes:
            reads.append(after)
            return await super().changes(after)

    feed = feed_of(node, tally_view, reader=CountingReader)
    for _ in range(3):
        await reached(node.positions, tally_view.name, await execute(node, Count(thing_id=key)))
    assert reads == []
    sources = [watch_changes(feed) for _ in range(20)]
    for source in sources:
        assert (await anext(source)).position == 3
    await execute(node, Count(thing_id=key))
    for source in sources:
        assert (await asyncio.wait_for(anext(source), 10)).position == 4
    assert set(reads) <= {3, 4}, "from its position when the watchers came"
    assert len(reads) <= 4, "once for all watchers"
    for source in sources:
        await source.aclose()
    before = len(reads)
    for _ in range(3):
        await reached(node.positions, tally_view.name, await execute(node, Count(thing_id=key)))
    assert len(reads) == before
    async with aclosing(watch_row(feed, key)) as rows:
        row, _ = await anext(rows)
        assert row is not None
        assert row["count"] == 7
        await execute(node, Count(thing_id=key))
        row, _ = await asyncio.wait_for(anext(rows), 10)
        assert row is not None
        assert row["count"] == 8
    assert reads[before] >= 7, "changes without a watcher are never read"


class SlowReader(Reader):
    """A reader whose checkpoint the test sets."""

    def __init__(self) -> None:
        super().__init__(None, tally_view, Positions())  # type: ignore[arg-type]  # it never uses the pool
        self.asked: list[asyncio.Future[int]] = []
        self.read = asyncio.Event()
        self.after: list[int] = []

    async def checkpoint(self) -> int:
        self.asked.append(asyncio.get_running_loop().create_future())
        return await self.asked[-1]

    async def changes(self, after: int) -> Changes:
        self.after.append(after)
        self.read.set()
        return Changes([{"thing_id": UUID(int=11), "position": 11}] if after < 11 else [], (), max(after, 12))


async def test_two_watchers_that_register_at_the_same_time_both_receive_every_change() -> None:
    reader = SlowReader()
    feed = Feed(reader, Positions())
    watchers, leave = [Watcher(itemgetter("thing_id")), Watcher(itemgetter("thing_id"))], asyncio.Event()

    async def watch(watcher: Watcher) -> None:
        async with feed.watch(watcher):
            await leave.wait()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for watcher in watchers:
            group.create_task(watch(watcher))
        await until(lambda: len(reader.asked) == 2)
        reader.asked[0].set_result(10)
        await until(lambda: feed.watchers == 1)
        watchers[0].start(10)  # its initial rows
        reader.asked[1].set_result(12)
        await until(lambda: feed.watchers == 2)
        running = asyncio.create_task(feed.run())
        batch = await watchers[0].take()
        running.cancel()
        leave.set()
    assert reader.after[0] == 10
    assert [row["position"] for row in batch.rows] == [11]
