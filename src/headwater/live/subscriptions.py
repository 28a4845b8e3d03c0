"""What a subscription sends: the current rows, then every change. No gap, no duplicate: see `feed`.

The initial rows are read in parts, in the order of their positions. Between two parts no transaction and no connection
is held.

    parts up to P, the position of the read model at the first part
      -> changes after P
      -> changes that the watcher has collected

A row that changes meanwhile moves to a position after P, and so out of the parts that are still unread. Sent or not, it
is among the changes after P: in its latest state, or as removed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from uuid import UUID

from headwater.live.feed import Feed
from headwater.live.held_keys import HeldKeys
from headwater.live.watcher import Batch, Watcher
from headwater.projections.filter import EVERYTHING, Filter, Row, to_predicate
from headwater.projections.reader import Changes, InitialRows


@dataclass(frozen=True)
class SubscriptionLimits:
    """The bounds of one subscription.

    pending: changed keys that are held for a slow client; beyond, it receives all rows again.
    message_rows: rows in one message. It bounds the frame that a client receives, and the time that encoding it holds
        the event loop.
    held_keys: keys that are remembered for a filter, about a megabyte.
    """

    pending: int = 10_000
    message_rows: int = 100
    held_keys: int = 10_000


DEFAULT_LIMITS = SubscriptionLimits()


@dataclass(frozen=True)
class Message:
    """One message of a subscription.

    The client drops all rows when `reset` is true, then stores `upserted` by key, then drops `removed`. It resumes
    after `position`, which is 0 in all parts of a split message but the last: until then its rows are complete to no
    position.
    """

    reset: bool
    upserted: Sequence[Row]
    removed: Sequence[UUID]
    position: int

    def parts(self, size: int) -> Iterator[Message]:
        """Split the message into messages of at most `size` rows; at least one message."""
        rows = self.upserted
        last = max(len(rows) - 1, 0) // size * size
        for start in range(0, last, size):
            yield Message(self.reset and start == 0, rows[start : start + size], (), 0)
        yield Message(self.reset and last == 0, rows[last:], self.removed, self.position)


async def watch_row(feed: Feed, key: UUID) -> AsyncGenerator[Row | None, None]:
    """Yield the row of a key now, and each time that it changes; None while there is none."""
    watcher = Watcher(feed.reader.view.key)
    async with feed.watch(watcher, key):
        while True:
            initial = await feed.reader.initial_row(key)
            watcher.start(initial.position, initial.edition)
            yield initial.rows[0] if initial.rows else None
            while not (batch := await watcher.take()).overflowed:
                if batch.rows or batch.removed:
                    yield batch.rows[0] if batch.rows else None


async def watch_changes(
    feed: Feed, where: Filter = EVERYTHING, after: int | None = None, *, limits: SubscriptionLimits = DEFAULT_LIMITS
) -> AsyncGenerator[Message, None]:
    """Yield the rows that match now, or the changes after a position; then batches of changes."""
    watcher = Watcher(feed.reader.view.key, limit=limits.pending)
    selection = _Selection(feed, where, limits)
    async with feed.watch(watcher):
        opening = selection.initial(watcher) if after is None else selection.replay(watcher, after)
        async with aclosing(opening):
            async for message in opening:
                yield message
        while True:
            batch = await watcher.take()
            if batch.overflowed:
                async with aclosing(selection.initial(watcher)) as again:
                    async for message in again:
                        yield message
            elif (sifted := selection.sift(batch)) is not None:
                for part in sifted.parts(limits.message_rows):
                    yield part


class _Outdated(Exception):
    """The initial rows sent so far are of another edition or log, or miss removals: start again."""


class _Selection:
    """The rows that one subscription shows.

    It remembers their keys, to report a row that no longer matches as removed.
    """

    def __init__(self, feed: Feed, where: Filter, limits: SubscriptionLimits) -> None:
        self._feed = feed
        self._where = where
        self._key = feed.reader.view.key
        self._matches = None if where == EVERYTHING else to_predicate(where)
        self._limits = limits
        self._held = HeldKeys(limit=limits.held_keys)

    async def initial(self, watcher: Watcher) -> AsyncGenerator[Message, None]:
        """Yield all rows that match, in messages of a bounded size."""
        while True:
            try:
                async with aclosing(self._initial(watcher)) as messages:
                    async for message in messages:
                        yield message
                return
            except _Outdated:
                continue

    async def _initial(self, watcher: Watcher) -> AsyncGenerator[Message, None]:
        self._held = HeldKeys(limit=self._limits.held_keys)
        part = await self._feed.reader.initial_rows(self._where)
        begun = replace(part, rows=())  # frees the rows before the last part is sent
        watcher.start(begun.position, begun.edition)
        reset = True
        while part.cut:
            for message in self._shown(Message(reset, part.rows, (), 0)):
                yield message
            reset, part = False, await self._next(begun, part)
        if reset:  # everything fitted into one part, of one moment
            for message in self._shown(Message(True, part.rows, (), part.position)):
                yield message
            return
        async with aclosing(self._rest(watcher, begun, part.rows)) as rest:
            async for message in rest:
                yield message

    async def _next(self, begun: InitialRows, part: InitialRows) -> InitialRows:
        """Read the part of the initial rows after another part."""
        after = part.rows[-1]["position"]
        following = await self._feed.reader.initial_rows(self._where, after=after, upto=begun.position)
        # A failover can set the checkpoint back, and rows with it to positions that were passed already.
        if following.edition != begun.edition or following.position < begun.position:
            raise _Outdated
        return following

    async def _rest(self, watcher: Watcher, begun: InitialRows, rows: Sequence[Row]) -> AsyncGenerator[Message, None]:
        """Yield the last initial rows together with the changes since the first part."""
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
        """Yield the parts of a message, and remember the keys that they send."""
        for part in message.parts(self._limits.message_rows):
            if self._matches is not None:
                self._held.add(row[self._key] for row in part.upserted)
            yield part

    async def replay(self, watcher: Watcher, after: int) -> AsyncGenerator[Message, None]:
        """Yield the changes after a position.

        Every changed row that does not match now is reported as removed, because the keys that the client holds are not
        known.
        """
        if self._matches is not None:
            limit = self._limits.held_keys
            self._held = HeldKeys(await self._feed.reader.keys(self._where, limit + 1), limit=limit)
        while True:
            changes = await self._feed.reader.changes(after)
            of_another_edition = changes.live_since is not None and after <= changes.live_since
            if changes.forgotten or changes.beyond or of_another_edition:
                # The client's rows are of another edition or log, or removals are forgotten: send all rows again.
                async with aclosing(self.initial(watcher)) as again:
                    async for message in again:
                        yield message
                return
            watcher.start(changes.position, changes.edition)
            if changes.rows or changes.removed:
                for part in self._replayed(changes).parts(self._limits.message_rows):
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
        """Return the part of a batch that concerns this subscription; None when there is none."""
        message = self._select(batch.rows, batch.removed, batch.position)
        return message if message.upserted or message.removed else None

    def _select(self, rows: Sequence[Row], removed: Sequence[UUID], position: int) -> Message:
        """Build the message for a client whose keys are known."""
        if self._matches is None:
            return Message(False, rows, removed, position)
        upserted = [row for row in rows if self._matches(row)]
        now = {row[self._key] for row in upserted}
        gone = self._held.drop(key for key in (*(row[self._key] for row in rows), *removed) if key not in now)
        self._held.add(now)
        return Message(False, upserted, gone, position)


def _always(row: Row) -> bool:
    return True
