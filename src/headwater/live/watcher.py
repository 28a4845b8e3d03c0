"""The watcher of one subscription: the changes that it has not sent yet, as the latest state of each key.

A slow client receives fewer and newer messages instead of a growing queue. Past a bound of keys, the subscription
starts again from the current rows.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headwater.domain.row_key import RowKey
from headwater.eventstore.epoch import UNKNOWN, Epoch
from headwater.projections.reader import Changes
from headwater.projections.row_codec import Row


class ResetReason(enum.Enum):
    """Why a subscription sends all rows, and the client drops those that it holds.

        if changes.reset is ResetReason.LOG_WENT_BACK: ...

    docs/errors.md explains each.
    """

    SUBSCRIBED = "subscribed"
    LOG_WENT_BACK = "log_went_back"
    READ_MODEL_CHANGED = "read_model_changed"
    TOO_MANY_CHANGES = "too_many_changes"
    CURSOR_TOO_OLD = "cursor_too_old"


@dataclass(frozen=True)
class Batch:
    """Changes since the last batch: rows in their latest state, removed keys, and the position that they are complete
    to.

    epoch: that of the log in which the position is. reset: why all rows must be read again instead; None if the changes
    are complete.
    """

    rows: Sequence[Row]
    removed: Sequence[RowKey]
    position: int
    epoch: Epoch = UNKNOWN
    reset: ResetReason | None = None


class Watcher:
    """Collects changes between two sends. key_of: from a row to its key. limit: the most changed keys that it holds."""

    def __init__(self, key_of: Callable[[Row], RowKey], *, limit: int = 10_000) -> None:
        self._key_of = key_of
        self._limit = limit
        self._dirty: dict[RowKey, tuple[int, Row | None]] = {}
        self._after = -1
        self._position = -1
        self._overflowed = False
        self._edition = -1
        self._newest = -1
        self._epoch = UNKNOWN
        self._limit_of_earlier = 0
        self._lost = False
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
                self._hold(self._key_of(row), row["position"], row)
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

    def go_back(self, epoch: Epoch, limit: int) -> None:
        """Note that another epoch of the log began, and that positions after the limit are lost. Never waits."""
        if max(self._after, self._position) > limit:
            self._lost = True
            self._after = self._position = -1
            self._dirty.clear()
        self._epoch, self._limit_of_earlier = epoch, limit
        self._offered.set()

    def start(self, position: int, edition: int = 0, epoch: Epoch = UNKNOWN) -> None:
        """Record that the client holds every change of an edition up to a position, and drop those changes.

        epoch: that of the log from before the rows were read.
        """
        self._after = position
        self._edition = edition
        # Rows that were read before an epoch began may be of the lost part.
        self._lost = epoch is not self._epoch and position > self._limit_of_earlier
        # Changes that did not fit may be newer than the client's rows. Then the subscription must start again.
        self._overflowed = self._overflowed and self._position > position
        self._dirty = {key: held for key, held in self._dirty.items() if held[0] > position}

    def _hold(self, key: RowKey, position: int, row: Row | None) -> None:
        if position > self._after:
            self._dirty[key] = (position, row)

    async def take(self) -> Batch:
        """Wait for changes, and return all of them."""
        while not self._outdated and self._position <= self._after:
            self._offered.clear()
            await self._offered.wait()
        dirty, self._dirty = self._dirty, {}
        reset, self._overflowed = self._outdated, False
        self._edition = max(self._edition, self._newest)
        self._after = max(self._after, self._position)
        rows = [row for _, row in dirty.values() if row is not None]
        removed = [key for key, (_, row) in dirty.items() if row is None]
        return Batch(rows, removed, self._after, self._epoch, reset)

    @property
    def _outdated(self) -> ResetReason | None:
        if self._lost:
            return ResetReason.LOG_WENT_BACK
        if self._newest > self._edition:
            return ResetReason.READ_MODEL_CHANGED
        return ResetReason.TOO_MANY_CHANGES if self._overflowed else None
