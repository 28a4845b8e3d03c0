"""The feed of a read model: it reads changed rows once a process and gives them to every watcher.

    idle: there is no watcher, and nothing is read
      -> reading: read the next changes, and give them to the watchers
      -> reading, while there are more changes
      -> waiting for the doorbell, when there are none
      -> reading, or idle when the last watcher has left

No gap and no duplicate: a watcher first registers, and so receives every change after the feed's position. Then it
reads its initial rows, which are at least as new, and drops the changes that they include.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from headwater.domain.row_key import RowKey
from headwater.errors import LogWentBack, ProjectionBehind
from headwater.eventstore.epoch import Place
from headwater.eventstore.positions import Positions
from headwater.live.watcher import Watcher
from headwater.projections.reader import Changes, Reader


class Feed:
    """Follows one read model for all watchers of the process.

    poll: seconds between two reads when the doorbell does not ring.
    """

    def __init__(self, reader: Reader, positions: Positions, *, poll: float = 1.0) -> None:
        self.reader = reader
        self._positions = positions
        self._poll = poll
        self._position = 0
        self._edition = 0
        self._epochs = positions.epochs
        self._epoch = self._epochs.current
        self._everything: set[Watcher] = set()
        self._by_key: dict[RowKey, set[Watcher]] = {}
        self._watched = asyncio.Event()

    @property
    def watchers(self) -> int:
        """The number of watchers."""
        return len(self._everything) + sum(map(len, self._by_key.values()))

    @property
    def watched_keys(self) -> int:
        """The number of keys that have watchers of their own."""
        return len(self._by_key)

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Follow while there are watchers. Runs under a supervisor. well: called when a failure is over."""
        while True:
            await self._idle()
            self._follow_epoch()
            # Both before the read: the feed must not sleep through a doorbell that rings during it.
            known, alarms = self._positions.known(self.reader.view.name), self._positions.alarms
            changes = await self.reader.changes(self._position)
            well()
            if self._epoch is not self._epochs.current:
                continue  # the changes may be of the lost part
            self._distribute(changes)
            if changes.position == self._position:
                await self._wait(known, alarms)
            else:
                self._position = max(self._position, changes.position)

    async def _idle(self) -> None:
        """Return when there is a watcher."""
        if not self.watchers:
            self._watched.clear()
        await self._watched.wait()

    def _follow_epoch(self) -> None:
        """When another epoch of the log has begun, go back to what is not lost, and let every watcher do so."""
        epoch, ended = self._epochs.current, self._epoch
        if epoch is ended:
            return
        self._epoch, limit = epoch, self._epochs.limit(ended.tag)
        self._position = min(self._position, max(limit, 0))
        for watcher in self._all():
            watcher.go_back(epoch, limit)

    async def caught_up(self) -> None:
        """Wait until the rows are complete to the start of the epoch, but no longer than the reader's `patience`.

        A promoted replica may have lost the last rows of events that it has. Until they are written again, a client
        would see a state that is older than what it holds.
        """
        with suppress(ProjectionBehind, LogWentBack):
            await self.reader.reach(self._epochs.current.start)

    async def is_valid(self, place: Place) -> bool:
        """True if a client's position still means the same."""
        try:
            await self.reader.resolve(place)
        except LogWentBack:
            return False
        return True

    def reread(self, after: int) -> None:
        """Read the changes after a position again, because a watcher starts there.

        It is before the feed's position if a crash of PostgreSQL has set the checkpoint back. Watchers ignore what they
        have seen.
        """
        self._position = min(self._position, after)

    async def _wait(self, known: int, alarms: int) -> None:
        """Return when the read model has moved on, or `poll` seconds have passed."""
        name = self.reader.view.name
        self._positions.correct(name, known, self._position)
        await self._positions.moved(name, self._position, self._poll, alarms)

    @asynccontextmanager
    async def watch(self, watcher: Watcher, key: RowKey | None = None) -> AsyncIterator[None]:
        """Give a watcher the changes of one key, or of all keys, until the context is left."""
        if not self.watchers:
            checkpoint = await self.reader.checkpoint()
            if not self.watchers:  # a watcher that registered meanwhile must not miss changes before this position
                # The feed was idle. It continues from here: older changes are in the initial rows of every watcher.
                self._position = checkpoint
        self._follow_epoch()
        watcher.go_back(self._epoch, 0)
        group = self._everything if key is None else self._by_key.setdefault(key, set())
        group.add(watcher)
        self._watched.set()
        try:
            yield
        finally:
            group.discard(watcher)
            if key is not None and not group:
                self._by_key.pop(key, None)

    def _distribute(self, changes: Changes) -> None:
        if changes.edition != self._edition:
            self._edition = changes.edition
            for watcher in self._all():
                watcher.note_edition(changes.edition)
        if changes.forgotten:  # the process was paused for longer than tombstones are kept
            for watcher in self._all():
                watcher.overflow(changes.position)
        if not changes.rows and not changes.removed:
            return
        for watcher in self._everything:
            watcher.offer(changes)
        if self._by_key:
            self._distribute_by_key(changes)

    def _all(self) -> list[Watcher]:
        return [*self._everything, *(each for group in self._by_key.values() for each in group)]

    def _distribute_by_key(self, changes: Changes) -> None:
        key_of = self.reader.view.key.of_row
        for row in changes.rows:
            for watcher in self._by_key.get(key_of(row), ()):
                watcher.offer(Changes((row,), (), changes.position))
        for key, at in changes.removed:
            for watcher in self._by_key.get(key, ()):
                watcher.offer(Changes((), ((key, at),), changes.position))
