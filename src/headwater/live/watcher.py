"""The watcher of one subscription: the changes that it has not sent yet, as the latest state of each key.

A slow client receives fewer and newer messages instead of a growing queue. Past a bound of keys, the subscription
starts again from the current rows.
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
    """Changes since the last batch: rows in their latest state, removed keys, and the position that they are complete
    to.

    overflowed: more has changed than a watcher holds, or another edition is live. Read all rows again instead.
    """

    rows: Sequence[Row]
    removed: Sequence[UUID]
    position: int
    overflowed: bool = False


class Watcher:
    """Collects changes between two sends. limit: the maximum number of changed keys that it holds."""

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
        """Add changes. Never waits, never fails."""
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
        """Give up holding the changes up to a position: the subscription must start again. Never waits."""
        if position > self._after:
            self._position = max(self._position, position)
            self._overflowed = True
            self._dirty.clear()
        self._offered.set()

    def note_edition(self, edition: int) -> None:
        """Note that an edition is live: rows may differ though no position says so. Never waits, never fails."""
        self._newest = max(self._newest, edition)
        self._offered.set()

    def start(self, position: int, edition: int = 0) -> None:
        """Record that the client holds every change of an edition up to a position, and drop those changes."""
        self._after = position
        self._edition = edition
        # Changes that did not fit may be newer than the client's rows. Then the subscription must start again.
        self._overflowed = self._overflowed and self._position > position
        self._dirty = {key: held for key, held in self._dirty.items() if held[0] > position}

    def _hold(self, key: UUID, position: int, row: Row | None) -> None:
        if position > self._after:
            self._dirty[key] = (position, row)

    async def take(self) -> Batch:
        """Wait for changes, and return all of them."""
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
