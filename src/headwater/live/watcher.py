"""A watcher: what one subscription has not been sent yet. It holds the latest of each key, never a queue of changes.

A slow reader so gets fewer, newer messages. Past a bound of keys it is told to start again from a snapshot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from headwater.projections.filter import Row
from headwater.projections.reader import Changes


@dataclass(frozen=True)
class Batch:
    """What a watcher takes: rows as they are now, removed keys, and what this is complete up to. `overflowed`: too much
    has changed to be held, or another edition is live; read a snapshot instead."""

    rows: Sequence[Row]
    removed: Sequence[UUID]
    position: int
    overflowed: bool = False


class Watcher:
    """Gathers changes between one send and the next. limit: keys that are held, at most."""

    def __init__(self, key: str, *, limit: int = 10_000) -> None:
        self._key = key
        self._limit = limit
        self._dirty: dict[UUID, tuple[int, Row | None]] = {}
        self._after = -1
        self._position = -1
        self._overflowed = False
        self._edition = -1
        self._newest = -1
        self._offered = asyncio.Event()

    def offer(self, changes: Changes) -> None:
        """Take changes in. Never waits, never fails."""
        if changes.position <= self._after:
            return
        self._position = max(self._position, changes.position)
        if not self._overflowed:
            for key, at in changes.removed:
                self._hold(key, at, None)
            for row in changes.rows:
                self._hold(row[self._key], row["position"], row)
            if len(self._dirty) > self._limit:
                self.overflow(changes.position)
        self._offered.set()

    def overflow(self, position: int) -> None:
        """Not all that has changed up to a position can be held: the reader has to start again. Never waits."""
        if position > self._after:
            self._position = max(self._position, position)
            self._overflowed = True
            self._dirty.clear()
        self._offered.set()

    def renew(self, edition: int) -> None:
        """Another edition is live: rows may differ that no position tells of. Never waits, never fails."""
        self._newest = max(self._newest, edition)
        self._offered.set()

    def start(self, position: int, edition: int = 0) -> None:
        """The reader holds everything of an edition up to here: forget what is not after it."""
        self._after = position
        self._edition = edition
        # What did not fit may be newer than what the reader holds: then it has to start again.
        self._overflowed = self._overflowed and self._position > position
        self._dirty = {key: held for key, held in self._dirty.items() if held[0] > position}

    def _hold(self, key: UUID, position: int, row: Row | None) -> None:
        if position > self._after:
            self._dirty[key] = (position, row)

    async def take(self) -> Batch:
        """Wait for changes, and take what there is."""
        while not self._overflowed and self._newest <= self._edition and self._position <= self._after:
            self._offered.clear()
            await self._offered.wait()
        dirty, self._dirty = self._dirty, {}
        overflowed, self._overflowed = self._overflowed or self._newest > self._edition, False
        self._edition = max(self._edition, self._newest)
        self._after = max(self._after, self._position)
        rows = [row for _, row in dirty.values() if row is not None]
        removed = [key for key, (_, row) in dirty.items() if row is None]
        return Batch(rows, removed, self._after, overflowed)
