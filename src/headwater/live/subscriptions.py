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

from headwater.domain.row_key import RowKey
from headwater.eventstore.epoch import UNKNOWN, Epoch, Place
from headwater.live.feed import Feed
from headwater.live.held_keys import HeldKeys
from headwater.live.watcher import Batch, ResetReason, Watcher
from headwater.projections.filter import EVERYTHING, Filter, to_predicate
from headwater.projections.reader import Changes, InitialRows
from headwater.projections.row_codec import Row


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
    after `position`. In all parts of a split message but the last that is 0: until it has the last part, its rows are
    not those of any position.

    reason: of the reset. epoch: that of the log in which the position is.
    """

    reset: bool
    upserted: Sequence[Row]
    removed: Sequence[RowKey]
    position: int
    epoch: Epoch = UNKNOWN
    reason: ResetReason | None = None

    def parts(self, size: int) -> Iterator[Message]:
        """Split the message into messages of at most `size` rows; at least one message."""
        rows = self.upserted
        last = max(len(rows) - 1, 0) // size * size
        for start in range(0, last, size):
            yield self._part(rows[start : start + size], first=start == 0)
        whole = replace(self, reset=False, reason=None) if last else self
        yield replace(whole, upserted=rows[last:])

    def _part(self, rows: Sequence[Row], *, first: bool) -> Message:
        reset = self.reset and first
        return Message(reset, rows, (), 0, self.epoch, self.reason if reset else None)


async def watch_row(feed: Feed, key: RowKey) -> AsyncGenerator[tuple[Row | None, Epoch], None]:
    """Yield the row of a key now, and each time that it changes; None while there is none. With each, the epoch of the
    log in which its position is."""
    watcher = Watcher(feed.reader.view.key.of_row)
    async with feed.watch(watcher, key):
        while True:
            initial = await feed.reader.initial_row(key)
            watcher.start(initial.position, initial.edition, initial.epoch)
            feed.reread(initial.position)
            yield (initial.rows[0] if initial.rows else None), initial.epoch
            while (batch := await watcher.take()).reset is None:
                if batch.rows or batch.removed:
                    yield (batch.rows[0] if batch.rows else None), batch.epoch
            if batch.reset is ResetReason.LOG_WENT_BACK:
                await feed.caught_up()


async def watch_changes(
    feed: Feed,
    where: Filter = EVERYTHING,
    after: Place | None = None,
    *,
    limits: SubscriptionLimits = DEFAULT_LIMITS,
) -> AsyncGenerator[Message, None]:
    """Yield the rows that match now, or the changes after a position; then batches of changes."""
    watcher = Watcher(feed.reader.view.key.of_row, limit=limits.pending)
    selection = _Selection(feed, where, limits)
    async with feed.watch(watcher):
        opening = selection.initial(watcher) if after is None else selection.replay(watcher, after)
        async with aclosing(opening):
            async for message in opening:
                yield message
        while True:
            batch = await watcher.take()
            if batch.reset is not None:
                async with aclosing(selection.initial(watcher, batch.reset)) as again:
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
        self._key_of = feed.reader.view.key.of_row
        self._matches = None if where == EVERYTHING else to_predicate(where)
        self._limits = limits
        self._held = HeldKeys(limit=limits.held_keys)

    async def initial(
        self, watcher: Watcher, reason: ResetReason = ResetReason.SUBSCRIBED
    ) -> AsyncGenerator[Message, None]:
        """Yield all rows that match, in messages of a bounded size."""
        while True:
            try:
                async with aclosing(self._initial(watcher, reason)) as messages:
                    async for message in messages:
                        yield message
                return
            except _Outdated:
                continue

    async def _initial(self, watcher: Watcher, reason: ResetReason) -> AsyncGenerator[Message, None]:
        self._held = HeldKeys(limit=self._limits.held_keys)
        if reason is ResetReason.LOG_WENT_BACK:
            await self._feed.caught_up()
        part = await self._feed.reader.initial_rows(self._where)
        begun = replace(part, rows=())  # frees the rows before the last part is sent
        watcher.start(begun.position, begun.edition, begun.epoch)
        self._feed.reread(begun.position)
        empty = Message(True, (), (), 0, begun.epoch, reason)
        while part.cut:
            for message in self._shown(replace(empty, upserted=part.rows)):
                yield message
            empty, part = Message(False, (), (), 0, begun.epoch), await self._next(begun, part)
        if empty.reset:  # everything fitted into one part, of one moment
            for message in self._shown(replace(empty, upserted=part.rows, position=part.position)):
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
        if (following.edition, following.epoch) != (begun.edition, begun.epoch) or following.position < begun.position:
            raise _Outdated
        return following

    async def _rest(self, watcher: Watcher, begun: InitialRows, rows: Sequence[Row]) -> AsyncGenerator[Message, None]:
        """Yield the last initial rows together with the changes since the first part."""
        after = begun.position
        while True:
            changes = await self._feed.reader.changes(after)
            if changes.forgotten or changes.beyond or (changes.edition, changes.epoch) != (begun.edition, begun.epoch):
                raise _Outdated
            watcher.start(changes.position, changes.edition, changes.epoch)
            removed = [key for key, _ in changes.removed]
            message = self._select(changes.rows, removed, changes.position, changes.epoch)
            newer = {self._key_of(row) for row in changes.rows}.union(removed)
            older = [row for row in rows if self._key_of(row) not in newer]
            for part in self._shown(replace(message, upserted=[*older, *message.upserted])):
                yield part
            if not changes.cut:
                return
            after, rows = changes.position, ()

    def _shown(self, message: Message) -> Iterator[Message]:
        """Yield the parts of a message, and remember the keys that they send."""
        for part in message.parts(self._limits.message_rows):
            if self._matches is not None:
                self._held.add(self._key_of(row) for row in part.upserted)
            yield part

    async def replay(self, watcher: Watcher, place: Place) -> AsyncGenerator[Message, None]:
        """Yield the changes after a client's position, or all rows if there is no way from there.

        Every changed row that does not match now is reported as removed, because the keys that the client holds are not
        known.
        """
        if self._matches is not None:
            limit = self._limits.held_keys
            self._held = HeldKeys(await self._feed.reader.keys(self._where, limit + 1), limit=limit)
        while True:
            changes = await self._feed.reader.changes(place.position)
            if (reason := await self._obstacle(place, changes)) is not None:
                async with aclosing(self.initial(watcher, reason)) as again:
                    async for message in again:
                        yield message
                return
            watcher.start(changes.position, changes.edition, changes.epoch)
            if changes.rows or changes.removed:
                for part in self._replayed(changes).parts(self._limits.message_rows):
                    yield part
            if not changes.cut:
                return
            place = changes.epoch.place(changes.position)

    async def _obstacle(self, place: Place, changes: Changes) -> ResetReason | None:
        """Return why the changes do not lead from the client's rows to the current ones; None if they do."""
        if changes.beyond or not await self._feed.is_valid(place):
            return ResetReason.LOG_WENT_BACK
        if changes.forgotten:
            return ResetReason.CURSOR_TOO_OLD
        if changes.live_since is not None and place.position <= changes.live_since:
            return ResetReason.READ_MODEL_CHANGED
        return None

    def _replayed(self, changes: Changes) -> Message:
        matches = self._matches or _always
        upserted = [row for row in changes.rows if matches(row)]
        removed = [self._key_of(row) for row in changes.rows if not matches(row)]
        removed += [key for key, _ in changes.removed]
        self._held.add(self._key_of(row) for row in upserted)
        self._held.drop(removed)
        return Message(False, upserted, removed, changes.position, changes.epoch)

    def sift(self, batch: Batch) -> Message | None:
        """Return the part of a batch that concerns this subscription; None when there is none."""
        message = self._select(batch.rows, batch.removed, batch.position, batch.epoch)
        return message if message.upserted or message.removed else None

    def _select(self, rows: Sequence[Row], removed: Sequence[RowKey], position: int, epoch: Epoch) -> Message:
        """Build the message for a client whose keys are known."""
        if self._matches is None:
            return Message(False, rows, removed, position, epoch)
        upserted = [row for row in rows if self._matches(row)]
        now = {self._key_of(row) for row in upserted}
        gone = self._held.drop(key for key in (*(self._key_of(row) for row in rows), *removed) if key not in now)
        self._held.add(now)
        return Message(False, upserted, gone, position, epoch)


def _always(row: Row) -> bool:
    return True
