"""What a subscription sends: a snapshot, then what changed after it. No gap, no duplicate; see `feed`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from uuid import UUID

from headwater.filter import EVERYTHING, Filter, Row, to_predicate
from headwater.live.feed import Feed
from headwater.live.watcher import Batch, Watcher
from headwater.reader import Changes

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


class _Selection:
    """What of a read model one subscription shows. It remembers which keys it shows, to say when one stops matching."""

    def __init__(self, feed: Feed, where: Filter) -> None:
        self._feed = feed
        self._where = where
        self._key = feed.reader.view.key
        self._matches = None if where == EVERYTHING else to_predicate(where)
        self._shown: set[UUID] = set()

    async def snapshot(self, watcher: Watcher) -> AsyncGenerator[Message, None]:
        """Everything that matches, in messages of a bounded size."""
        snapshot = await self._feed.reader.snapshot(self._where)
        watcher.start(snapshot.position, snapshot.edition)
        self._shown = set()
        for part in Message(True, snapshot.rows, (), snapshot.position).parts():
            if self._matches is not None:
                self._shown.update(row[self._key] for row in part.upserted)
            yield part

    async def replay(self, watcher: Watcher, after: int) -> AsyncGenerator[Message, None]:
        """What has changed since a position. Says `removed` of every change that does not match now: what the client
        holds from before is not known here."""
        if self._matches is not None:
            self._shown = await self._feed.reader.keys(self._where)
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
        self._shown.update(row[self._key] for row in upserted)
        self._shown.difference_update(removed, (key for key, _ in changes.removed))
        return Message(False, upserted, [*removed, *(key for key, _ in changes.removed)], changes.position)

    def sift(self, batch: Batch) -> Message | None:
        """What of a batch concerns this subscription; None when nothing does."""
        if self._matches is None:
            return Message(False, batch.rows, batch.removed, batch.position) if batch.rows or batch.removed else None
        upserted = [row for row in batch.rows if self._matches(row)]
        now = {row[self._key] for row in upserted}
        gone = [key for key in (*(row[self._key] for row in batch.rows), *batch.removed) if key not in now]
        removed = [key for key in gone if key in self._shown]
        self._shown |= now
        self._shown.difference_update(removed)
        return Message(False, upserted, removed, batch.position) if upserted or removed else None


def _always(row: Row) -> bool:
    return True
