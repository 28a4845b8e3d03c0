"""The projection loop: from the log to a read model's rows, exactly once.

    standing -> catching up: read -> route -> fold -> commit -> ... -> waiting -> catching up ...
                    \\-> displaced (another moved the checkpoint) -> standing

Rows and checkpoint are written in one transaction, which moves the checkpoint by compare-and-swap: a batch is committed
once or not at all, whoever else tries. A lease (`fence`) is checked in the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from headwater import sql
from headwater.database import Database
from headwater.errors import HeadwaterError
from headwater.log import Log
from headwater.messages import Event, Recorded
from headwater.positions import LOG, Positions
from headwater.tables import Standing, delete_sql, load_sql, model_reader, prepare, upsert_sql, writer_of
from headwater.view import ReadModel, View

_SQL = sql.load(__file__)

M = TypeVar("M", bound=ReadModel)


class FoldFailed(HeadwaterError):
    """A read model's fold raised; the projection stands still before that event."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class Displaced(Exception):
    """Another process moved the checkpoint; what was folded here is void."""


@dataclass(slots=True)
class _Row(Generic[M]):
    """A row as folded so far. `position`: of the event that last changed it. `stored`: whether the table has it."""

    model: M | None
    position: int
    stored: bool


@dataclass
class Progress:
    """What a projector has done since the start."""

    position: int = 0
    events: int = 0
    batches: int = 0
    displaced: int = 0


class Projector(Generic[M]):
    """Keeps one read model's rows.

    batch: events folded in one transaction, at most. cache: rows kept in memory, at most; only the loop writes them.
    poll: seconds after which it looks at the log though nothing rang.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        view: View[M],
        positions: Positions,
        *,
        batch: int = 2000,
        cache: int = 100_000,
        poll: float = 1.0,
    ) -> None:
        self._database = database
        self._log = log
        self._view = view
        self._positions = positions
        self._batch = batch
        self._cache = cache
        self._poll = poll
        self._types = [event.event_name for event in view.events]
        self._route = {event: view.route_of(event) for event in view.events}
        self._columns = [(each.name, writer_of(each)) for each in view.fields]
        self._read_row = model_reader(view)
        self._rows: dict[UUID, _Row[M]] = {}
        self.progress = Progress()

    async def run(self, well: Callable[[], None] = lambda: None) -> None:
        """Follow the log until cancelled. Runs under a supervisor, which is told when a failure is got over."""
        connection = await self._database.connect(f"projection {self._view.name}")
        try:
            while True:
                try:
                    await self._follow(connection, await self._stand(connection), well)
                except Displaced:
                    self.progress.displaced += 1
        finally:
            connection.terminate()

    async def _stand(self, connection: asyncpg.Connection) -> Standing:
        """Find out what is written, and forget what was only thought of."""
        self._rows.clear()
        standing = await prepare(connection, self._view, replace=True)
        self._positions.report(self._view.name, standing.position)
        return standing

    async def _follow(self, connection: asyncpg.Connection, standing: Standing, well: Callable[[], None]) -> None:
        self._write = _Statements(self._view, standing.table)
        position = standing.position
        while True:
            head = await self._log.head()
            if head == position:
                well()
                await self._positions.moved(LOG, position, self._poll)
                continue
            events = await self._log.read(position, head, types=self._types, limit=self._batch)
            reached = events[-1].position if len(events) == self._batch else head
            failure: FoldFailed | None = None
            try:
                changed = await self._fold(connection, events)
            except FoldFailed as error:
                # What came before it stands in no one's way, and is written.
                failure, reached = error, error.position - 1
                events = [event for event in events if event.position <= reached]
                changed = await self._fold(connection, events)
            if reached > position:
                await self._commit(connection, standing, position, reached, changed)
                position = reached
                self._settle(changed, position, len(events))
            if failure is not None:
                raise failure

    async def _fold(self, connection: asyncpg.Connection, events: list[Recorded[Event]]) -> dict[UUID, _Row[M]]:
        """Fold a batch in memory; the rows that it changed."""
        routed = [(self._route[type(event.data)](event.data), event) for event in events]
        await self._load(connection, {key for key, _ in routed})
        changed: dict[UUID, _Row[M]] = {}
        fold = self._view.fold
        for key, event in routed:
            row = changed.get(key)
            if row is None:
                known = self._rows[key]
                # A copy: what is folded becomes what is known only when it is committed.
                row = changed[key] = _Row(known.model, known.position, known.stored)
            try:
                model = fold(row.model, event)
            except Exception as error:
                raise FoldFailed(
                    f"{self._view.name}: the fold of {event.data.event_name} at position {event.position} on row {key} "
                    f"raised {type(error).__name__}: {error}",
                    event.position,
                ) from error
            if model is not row.model:
                row.model, row.position = model, event.position
        return {key: row for key, row in changed.items() if row.position != self._rows[key].position}

    async def _load(self, connection: asyncpg.Connection, keys: set[UUID]) -> None:
        rows = self._rows
        missing = []
        for key in keys:
            row = rows.pop(key, None)
            if row is None:
                missing.append(key)
            else:
                rows[key] = row  # used last, dropped last
        if not missing:
            return
        for record in await connection.fetch(self._write.load, missing):
            key, position = record[self._view.key], record["position"]
            rows[key] = _Row(self._read_row(record), position, True)  # type: ignore[arg-type]  # the view's own model
        for key in missing:
            if key not in rows:
                rows[key] = _Row(None, 0, False)

    async def _commit(
        self,
        connection: asyncpg.Connection,
        standing: Standing,
        position: int,
        reached: int,
        changed: dict[UUID, _Row[M]],
    ) -> None:
        name, generation = self._view.name, standing.generation
        upserted = {key: row for key, row in changed.items() if row.model is not None}
        removed = {key: row for key, row in changed.items() if row.model is None and row.stored}
        again = [key for key, row in upserted.items() if not row.stored]
        async with connection.transaction():
            # Rows can be folded again from the log; only the log must outlive a crash.
            await connection.execute("set local synchronous_commit = off")
            if not await connection.fetch(_SQL["move"], name, generation, position, reached, standing.fence):
                raise Displaced
            if upserted:
                await connection.execute(self._write.upsert, *self._arrays(upserted))
            if again:
                await connection.execute(_SQL["unbury"], name, generation, again)
            if removed:
                keys = list(removed)
                await connection.execute(self._write.delete, keys)
                await connection.execute(
                    _SQL["bury"], name, generation, keys, [row.position for row in removed.values()]
                )

    def _arrays(self, rows: dict[UUID, _Row[M]]) -> list[list[Any]]:
        models = [row.model for row in rows.values()]
        arrays = [[write(getattr(model, name)) for model in models] for name, write in self._columns]
        return [*arrays, [row.position for row in rows.values()]]

    def _settle(self, changed: dict[UUID, _Row[M]], position: int, events: int) -> None:
        """The batch is committed: what was folded is known now."""
        for key, row in changed.items():
            row.stored = row.model is not None
            self._rows[key] = row
        while len(self._rows) > self._cache:
            del self._rows[next(iter(self._rows))]
        self.progress.position = position
        self.progress.events += events
        self.progress.batches += 1
        self._positions.report(self._view.name, position)


class _Statements:
    """The statements on a generation's table."""

    def __init__(self, view: View[Any], table: str) -> None:
        self.load = load_sql(view, table)
        self.upsert = upsert_sql(view, table)
        self.delete = delete_sql(view, table)
