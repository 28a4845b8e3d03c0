"""The parts shared by every loop that folds events into rows: the projector, a rebuild, verify and history.

    events read from the log (`RowFolder.types`)
      -> routed to keys             `RowFolder.route`, which raises RouteFailed
      -> rows in memory             `RowCache`, filled from the table, bounded
      -> folded, one by one         `RowFolder.fold`; between two folds `TimeSlice` yields to the event loop
      -> written                    `RowFolder.codec`; rows that PostgreSQL rejects are found by `find_rejected`

Each loop decides by itself when to commit, and what becomes of an event whose fold raised.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

import asyncpg
import msgspec

from headwater.domain.failure_policy import policy_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_fold import fold_of
from headwater.domain.row_key import RowKey
from headwater.domain.row_route import RowRoutes
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.postgres.rejected_rows import rejected_among, rejection_of
from headwater.projections.key_columns import KeyColumns
from headwater.projections.row_codec import RowCodec

M = TypeVar("M", bound=ReadModel)

Routed: TypeAlias = Sequence[tuple[RowKey, Recorded[Event]]]
"""Events in the order of the log, each with the key of a row that it changes. An event that changes several rows stands
once for each of them."""

SLICE_SECONDS = 0.01
"""Folds yield to the event loop after this long. The heartbeat of the lease is a task of the same loop: a batch of slow
folds without a pause would let the lease expire."""


class RouteFailed(HeadwaterError):
    """A route raised, or did not return keys. The event cannot be set aside, since its key is unknown."""

    def __init__(self, event: Recorded[Event], error: Exception) -> None:
        super().__init__(
            f"the route of {event.data.__declared__.name} at position {event.position} raised "
            f"{type(error).__name__}: {error}"
        )
        self.position = event.position


def fold_of_event(event: Recorded[Event], key: str) -> str:
    """Name the fold of an event on a row, for a message. key: the text of the row's key."""
    return f"the fold of {event.data.__declared__.name} at position {event.position} on row {key}"


def fold_failure(event: Recorded[Event], key: str, error: Exception) -> str:
    """Return a sentence about a fold that raised."""
    return f"{fold_of_event(event, key)} raised {type(error).__name__}: {error}"


class TimeSlice:
    """Cooperative multitasking between folds: `if turn.is_over(): await turn.give_way()`."""

    def __init__(self, seconds: float = SLICE_SECONDS, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._started = clock()

    def is_over(self) -> bool:
        """True if the event loop was blocked for long enough."""
        return self._clock() - self._started > self._seconds

    async def give_way(self) -> None:
        """Let other tasks run, and start the next slice."""
        await asyncio.sleep(0)
        self._started = self._clock()


class RowFolder(Generic[M]):
    """Routes and folds the events of one read model. `types`: the names under which its events are stored.

    slice_seconds: see SLICE_SECONDS.
    """

    def __init__(self, log: Log, view: View[M], *, slice_seconds: float = SLICE_SECONDS) -> None:
        self.view = view
        self.types = log.stored_names(view.events)
        self._routes = RowRoutes(view)
        self.fold = fold_of(view)
        self.codec = RowCodec(view)
        self.key = view.key
        self.columns = KeyColumns(view)
        self.policy = policy_of(view.on_failure)
        self._slice_seconds = slice_seconds

    def time_slice(self) -> TimeSlice:
        """Start a time slice."""
        return TimeSlice(self._slice_seconds)

    def keys_of(self, event: Recorded[Event]) -> Sequence[RowKey]:
        """Return the keys of the rows that an event changes. None of them: a stored name can hold events of another
        type, too, and a route may pass an event over.

        Raises:
            RouteFailed: the route raised, or did not return keys.
        """
        try:
            return self._routes.keys(event)
        except Exception as error:
            raise RouteFailed(event, error) from error

    def route(self, events: Iterable[Recorded[Event]]) -> list[tuple[RowKey, Recorded[Event]]]:
        """Return each event of this read model with the key of its row, once for each row that it changes.

        Raises:
            RouteFailed: a route raised, or did not return keys.
        """
        to_one, keys_of = self._routes.to_one, self._routes.keys
        routed: list[tuple[RowKey, Recorded[Event]]] = []
        for event in events:
            route = to_one.get(type(event.data))
            try:
                if route is not None:
                    routed.append((route(event), event))
                else:
                    routed += [(key, event) for key in keys_of(event)]
            except Exception as error:
                raise RouteFailed(event, error) from error
        return routed


class FoldedRow(msgspec.Struct, Generic[M], gc=False):
    """A row as folded so far. `position` is that of the event that last changed it. stored: the table has the key.
    changed: since the last write.

    There are many, so they are kept out of the garbage collector's way.
    """

    key: RowKey
    model: M | None
    position: int
    stored: bool
    changed: bool = False


class RowCache(Generic[M]):
    """The rows in memory, by the number of their key: see `KeyFields`.

    most: rows that `trim` leaves, the least recently loaded are dropped first.
    """

    def __init__(self, folder: RowFolder[M], most: int) -> None:
        self.rows: dict[Any, FoldedRow[M]] = {}
        self.most = most
        self._read = folder.codec.read
        self._key_of = folder.key.of_row
        self._number = folder.key.number
        self._arrays = folder.columns.arrays

    def keep(self, record: asyncpg.Record) -> None:
        """Add a stored row."""
        key = self._key_of(record)
        self.rows[self._number(key)] = FoldedRow(key, self._read(record), record["position"], True)

    async def load(
        self, connection: asyncpg.Connection, load_sql: str, keys: Collection[RowKey]
    ) -> dict[Any, Exception]:
        """Make the rows of these keys available. Returns the errors of stored rows that this code cannot read."""
        rows, number_of, missing, unreadable = self.rows, self._number, list[RowKey](), dict[Any, Exception]()
        for key in keys:
            number = number_of(key)
            row = rows.pop(number, None)
            if row is None:
                missing.append(key)
            else:
                rows[number] = row  # the last to be dropped
        if not missing:
            return unreadable
        for record in await connection.fetch(load_sql, *self._arrays(missing)):
            try:
                self.keep(record)
            except Exception as error:  # noqa: BLE001 - such as an enum without the stored value, or a row changed by hand
                unreadable[number_of(self._key_of(record))] = error
        for key in missing:
            number = number_of(key)
            if number not in rows and number not in unreadable:
                rows[number] = FoldedRow(key, None, 0, False)
        return unreadable

    def trim(self) -> bool:
        """Drop rows beyond the limit. Returns True if there were any."""
        beyond = len(self.rows) - self.most
        for number in list(islice(self.rows, max(beyond, 0))):
            del self.rows[number]
        return beyond > 0


Write: TypeAlias = Callable[[Sequence[FoldedRow[M]]], Awaitable[object]]
"""Writes some rows, within a transaction of the caller."""


async def find_rejected(
    connection: asyncpg.Connection, rows: Sequence[FoldedRow[M]], write: Write[M]
) -> list[FoldedRow[M]]:
    """Return the rows that PostgreSQL rejects. Nothing stays written."""
    return await rejected_among(rows, lambda part: rejection_of(connection, lambda: write(part)))
