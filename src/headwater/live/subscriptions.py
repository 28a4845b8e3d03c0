"""What a subscription sends: a snapshot, then what changed after it. No gap, no duplicate; see `feed`.

A snapshot is read in parts, by position, and between two of them nothing is held open: no transaction, no connection.

    parts, up to the position P that the read model had with the first -> changes after P -> what the watcher gathered

A row that changes meanwhile leaves the parts that are yet to be read for a position after P. Whether it was sent or
not, it is among the changes after P: as it is now, or as removed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from uuid import UUID

from headwater.live.feed import Feed
from headwater.live.held import MOST_HELD, Held
from headwater.live.watcher import Batch, Watcher
from headwater.projections.filter import EVERYTHING, Filter, Row, to_predicate
from headwater.projections.reader import Changes, Snapshot

ROWS_AT_ONCE = 100
"""Rows in one message, at most: a frame has a size that a client can take, and nothing else runs while it is made."""


@dataclass(frozen=True)
class Message:
    """Put `upserted` over what is held by key, drop `removed`; when `reset`, drop everything first. Resume from
    `position`: 0 in all but the last part of what belongs together, since what was sent so far is not complete up to
    anything."""

    reset: bool
    upserted: Sequence[Row]
    removed: Sequence[UUID]
    position: int

    def parts(self) -> Iterator[Message]:
        """The same in messages of a bounded size, at least one."""
        rows = self.upserted
        last = max(len(rows) - 1, 0) // ROWS_AT_ONCE * ROWS_AT_ONCE
        for start in range(0, last, ROWS_AT_ONCE):
            yield Message(self.reset and start == 0, rows[start : start + ROWS_AT_ONCE], (), 0)
        yield Message(self.reset and last == 0, rows[last:], self.removed, self.position)


async def watch_row(feed: Feed, key: UUID) -> AsyncGenerator[Row | None, None]:
    """The row of a key now, and each time it changes; None when there is none."""
    watcher = Watcher(feed.reader.view.key)
    async with feed.watch(watcher, key):
        while True:
            snapshot = await feed.reader.snapshot_of(key)
            watcher.start(snapshot.position, snapshot.edition)
            yield snapshot.rows[0] if snapshot.rows else None
            while not (batch := await watcher.take()).overflowed:
                if batch.rows or batch.removed:
                    yield batch.rows[0] if batch.rows else None


async def watch_changes(
    feed: Feed, where: Filter = EVERYTHING, after: int | None = None, *, limit: int = 10_000
) -> AsyncGenerator[Message, None]:
    """What matches now, or what has changed since `after`; then batches of changes. limit: keys held for a slow
    reader."""
    watcher = Watcher(feed.reader.view.key, limit=limit)
    selection = _Selection(feed, where)
    async with feed.watch(watcher):
        opening = selection.snapshot(watcher) if after is None else selection.replay(watcher, after)
        async with aclosing(opening):
            async for message in opening:
                yield message
        while True:
            batch = await watcher.take()
            if batch.overflowed:
                async with aclosing(selection.snapshot(watcher)) as again:
                    async for message in again:
                        yield message
            elif (sifted := selection.sift(batch)) is not None:
                for part in sifted.parts():
                    yield part


class _Outdated(Exception):
    """What was sent of a snapshot is of another edition or log, or some of it may be gone: it has to begin again."""


class _Selection:
    """What of a read model one subscription shows. It remembers which keys it shows, to say when one stops matching."""

    def __init__(self, feed: Feed, where: Filter) -> None:
        self._feed = feed
        self._where = where
        self._key = feed.reader.view.key
        self._matches = None if where == EVERYTHING else to_predicate(where)
        self._held = Held()

    async def snapshot(self, watcher: Watcher) -> AsyncGenerator[Message, None]:
        """Everything that matches, in messages of a bounded size."""
        while True:
            try:
                async with aclosing(self._snapshot(watcher)) as messages:
                    async for message in messages:
                        yield message
                return
            except _Outdated:
                continue

    async def _snapshot(self, watcher: Watcher) -> AsyncGenerator[Message, None]:
        self._held = Held()
        part = await self._feed.reader.snapshot(self._where)
        begun = replace(part, rows=())  # which are not kept until the last is sent
        watcher.start(begun.position, begun.edition)
        reset = True
        while part.cut:
            for message in self._shown(Message(reset, part.rows, (), 0)):
                yield message
            reset, part = False, await self._next(begun, part)
        if reset:  # all at once, as it was in that moment
            for message in self._shown(Message(True, part.rows, (), part.position)):
                yield message
            return
        async with aclosing(self._rest(watcher, begun, part.rows)) as rest:
            async for message in rest:
                yield message

    async def _next(self, begun: Snapshot, part: Snapshot) -> Snapshot:
        """The part of a snapshot after another."""
        after = part.rows[-1]["position"]
        following = await self._feed.reader.snapshot(self._where, after=after, upto=begun.position)
        # A checkpoint that has gone back, with a failover, takes rows back to positions that were passed already.
        if following.edition != begun.edition or following.position < begun.position:
            raise _Outdated
        return following

    async def _rest(self, watcher: Watcher, begun: Snapshot, rows: Sequence[Row]) -> AsyncGenerator[Message, None]:
        """The last rows of a snapshot, and what has changed since it began."""
        after = begun.position
        while True:
            changes = await self._feed.reader.changes(after)
            if changes.forgotten or changes.beyond or changes.edition != begun.edition:
                raise _Outdated
            watcher.start(changes.position, changes.edition)
            removed = [key for key, _ in changes.removed]
            message = self._select(changes.rows, removed, changes.position)
            newer = {row[self._key] for row in changes.rows}.union(removed)
            older = [row for row in rows if row[self._key] not in newer]
            for part in self._shown(replace(message, upserted=[*older, *message.upserted])):
                yield part
            if not changes.cut:
                return
            after, rows = changes.position, ()

    def _shown(self, message: Message) -> Iterator[Message]:
        """The parts of a message, of which is remembered what is sent."""
        for part in message.parts():
            if self._matches is not None:
                self._held.add(row[self._key] for row in part.upserted)
            yield part

    async def replay(self, watcher: Watcher, after: int) -> AsyncGenerator[Message, None]:
        """What has changed since a position. Says `removed` of every change that does not match now: what the client
        holds from before is not known here."""
        if self._matches is not None:
            self._held = Held(await self._feed.reader.keys(self._where, MOST_HELD + 1))
        while True:
            changes = await self._feed.reader.changes(after)
            of_another_edition = changes.live_since is not None and after <= changes.live_since
            if changes.forgotten or changes.beyond or of_another_edition:
                # What the client holds is of another edition or log, or some of it may be gone: no position tells.
                async with aclosing(self.snapshot(watcher)) as again:
                    async for message in again:
                        yield message
                return
            watcher.start(changes.position, changes.edition)
            if changes.rows or changes.removed:
                for part in self._replayed(changes).parts():
                    yield part
            if not changes.cut:
                return
            after = changes.position

    def _replayed(self, changes: Changes) -> Message:
        matches = self._matches or _always
        upserted = [row for row in changes.rows if matches(row)]
        removed = [row[self._key] for row in changes.rows if not matches(row)]
        removed += [key for key, _ in changes.removed]
        self._held.add(row[self._key] for row in upserted)
        self._held.drop(removed)
        return Message(False, upserted, removed, changes.position)

    def sift(self, batch: Batch) -> Message | None:
        """What of a batch concerns this subscription; None when nothing does."""
        message = self._select(batch.rows, batch.removed, batch.position)
        return message if message.upserted or message.removed else None

    def _select(self, rows: Sequence[Row], removed: Sequence[UUID], position: int) -> Message:
        """What has changed, to one of whom is known what he holds."""
        if self._matches is None:
            return Message(False, rows, removed, position)
        upserted = [row for row in rows if self._matches(row)]
        now = {row[self._key] for row in upserted}
        gone = self._held.drop(key for key in (*(row[self._key] for row in rows), *removed) if key not in now)
        self._held.add(now)
        return Message(False, upserted, gone, position)


def _always(row: Row) -> bool:
    return True
