"""Reads a read model: by key, in pages, in parts ordered by position, and as the changes after a position."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg as sa_asyncpg

from headwater.domain.read_model import AnyView
from headwater.domain.row_key import RowKey
from headwater.errors import BadUserInput, ProjectionBehind
from headwater.eventstore.epoch import UNKNOWN, Epoch, Place
from headwater.eventstore.positions import Positions, generation_of
from headwater.postgres import queries
from headwater.postgres.database import Connection
from headwater.projections.filter import EVERYTHING, Filter, found_in, to_sql
from headwater.projections.generations import QUIET_SECONDS
from headwater.projections.live_columns import LiveColumns, read_live_columns
from headwater.projections.order import Order, beyond, cursor_of, parse_cursor, reverse, with_key
from headwater.projections.row_codec import Row
from headwater.projections.tables import SCHEMA, snake_case

_SQL = queries.load(__file__)
_DIALECT = sa_asyncpg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

SWAPPED: tuple[type[Exception], ...] = (
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
"""Errors of a statement that was built for the columns of an earlier generation."""

T = TypeVar("T")


@dataclass(frozen=True)
class ReadLimits:
    """The bounds of a reader.

    changed_rows: rows in one `Changes`.
    initial_rows: rows in one `InitialRows`. It bounds the memory of each read, whatever the size of the read model.
    initial_reads: reads of initial rows that run at the same time, so that many subscribers that return at once leave
        connections to others.
    """

    changed_rows: int = 5_000
    initial_rows: int = 1_000
    initial_reads: int = 2


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class Page:
    """Rows in order. has_next, has_previous: there are more rows after, or before, these."""

    rows: Sequence[Row]
    has_next: bool
    has_previous: bool


@dataclass(frozen=True)
class Changes:
    """The changes of a read model after a position.

    rows: the changed rows in their latest state.
    removed: the removed keys, each with the position of its removal.
    position: the position up to which the changes are complete.
    cut: there are more changes; continue from `position`.
    edition: a number that changes when rows may have changed without a new position: when generations are swapped, or
        dead letters are folded.
    live_since: the checkpoint when the edition last changed; None if it never did. A cursor up to there needs all rows.
    forgotten: tombstones after the position are pruned, so removals may be missing. Read all rows instead.
    beyond: the position is after the end of the log. It belongs to another log, or to this one before a backup was
        restored. Read all rows instead.
    epoch: that of the log, before the changes were read.
    """

    rows: Sequence[Row]
    removed: Sequence[tuple[RowKey, int]]
    position: int
    cut: bool = False
    edition: int = 0
    live_since: int | None = None
    forgotten: bool = False
    beyond: bool = False
    epoch: Epoch = UNKNOWN


@dataclass(frozen=True)
class InitialRows:
    """Rows of one moment, with which a subscription starts.

    position: the checkpoint of that moment.
    edition: see `Changes`.
    cut: there are more rows; continue after the position of the last row.
    epoch: that of the log, before the rows were read.
    """

    rows: Sequence[Row]
    position: int
    edition: int = 0
    cut: bool = False
    epoch: Epoch = UNKNOWN


class Reader:
    """Reads the rows of one view as they are stored.

    patience: seconds that `reach` waits for a position.
    poll: seconds between two reads of the checkpoint when the doorbell does not ring.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        view: AnyView,
        positions: Positions,
        *,
        patience: float = 10.0,
        poll: float = 1.0,
        limits: ReadLimits = DEFAULT_LIMITS,
    ) -> None:
        self.view = view
        self._pool = pool
        self._positions = positions
        self._patience = patience
        self._poll = poll
        self._generation_name = generation_of(view.name)
        self._limits = limits
        self._known: LiveColumns | None = None
        self._initial_reads = asyncio.Semaphore(limits.initial_reads)

    async def _live(self) -> LiveColumns:
        """Return the columns of the live generation, as far as this process knows."""
        known = self._known
        if known is None or known.generation != self._positions.known(self._generation_name):
            known = self._known = await read_live_columns(self._pool, self.view)
            self._positions.report(self._generation_name, known.generation)
        return known

    async def _reading(self, read: Callable[[LiveColumns], Awaitable[T]]) -> T:
        """Read, and read once more if a swap of generations made the statement fail."""
        try:
            return await read(await self._live())
        except SWAPPED:
            self._known = None
            return await read(await self._live())

    async def checkpoint(self) -> int:
        """Return the position up to which the rows are complete."""
        return (await self._checkpoint(self._pool))[0]

    async def _checkpoint(self, connection: Connection | asyncpg.Pool) -> tuple[int, int]:
        """Return the position and the edition."""
        row = await connection.fetchrow(_SQL["checkpoint"], self.view.name)
        self._positions.report(self._generation_name, 0 if row is None else row["generation"])
        return (0, 0) if row is None else (row["position"], row["edition"])

    async def resolve(self, place: Place) -> int:
        """Return the position that a client names.

        Raises:
            LogWentBack: it is of a lost part of the log.
        """
        return await self._positions.epochs.resolve(place, self._pool)

    async def reach(self, position: int) -> None:
        """Wait until the rows are complete up to a position.

        Raises:
            ProjectionBehind: they are not after `patience` seconds.
            LogWentBack: the log lost the position meanwhile.
        """
        name, loop = self.view.name, asyncio.get_running_loop()
        epochs = self._positions.epochs
        epoch = epochs.current
        deadline = loop.time() + self._patience
        while self._positions.known(name) < position:
            reached = await self.checkpoint()
            self._positions.report(name, reached)
            left = deadline - loop.time()
            if reached >= position:
                return
            if left <= 0:
                raise ProjectionBehind(
                    f"{name} has reached position {reached}, not {position}, in {self._patience:g} s; ask again."
                )
            await self._positions.moved(name, max(position - 1, reached), min(left, self._poll))
            if epochs.current is not epoch:
                epochs.require(epoch.place(position))

    async def row(self, key: RowKey) -> tuple[Row | None, int]:
        """Return the row of a key, or None, and the checkpoint of that moment."""
        found = await self.initial_row(key)
        return (found.rows[0] if found.rows else None), found.position

    async def initial_row(self, key: RowKey) -> InitialRows:
        """Return the row of a key, if there is one, with the checkpoint of that moment."""

        async def read(live: LiveColumns) -> InitialRows:
            live.require_key()
            epoch = self._positions.epochs.current
            record = await self._pool.fetchrow(
                _SQL["row"].format(**live.names), self.view.name, *self.view.key.parts(key)
            )
            if record is None:
                return InitialRows((), 0, epoch=epoch)
            self._positions.report(self._generation_name, record["live generation"])
            existing = [record] if record["position"] is not None else []
            return InitialRows(live.rows(existing), record["complete to"], record["live edition"], epoch=epoch)

        return await self._reading(read)

    async def rows(self, keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows of some keys, by key. A key without a row is left out."""

        async def read(live: LiveColumns) -> dict[RowKey, Row]:
            live.require_key()
            records = await self._pool.fetch(_SQL["rows"].format(**live.names), *live.key.arrays(keys))
            return {self.view.key.of_row(row): row for row in live.rows(records)}

        return await self._reading(read)

    async def parked(self, keys: Sequence[RowKey]) -> set[RowKey]:
        """Return those of some keys that are parked: their rows lack events that wait as dead letters."""
        texts = {self.view.key.text(key): key for key in keys}
        return {texts[record["key"]] for record in await self._pool.fetch(_SQL["parked"], self.view.name, list(texts))}

    async def count(self, where: Filter) -> int:
        """Return the number of rows that match."""

        async def read(live: LiveColumns) -> int:
            statement = sa.select(sa.func.count()).select_from(live.table).where(to_sql(where, live))
            return (await _select(self._pool, statement))[0][0]  # type: ignore[no-any-return]  # count(*)

        return await self._reading(read)

    async def page(
        self,
        where: Filter,
        order: Sequence[Order],
        *,
        first: int | None = None,
        after: str | None = None,
        last: int | None = None,
        before: str | None = None,
    ) -> Page:
        """Return the `first` rows after a cursor, or the `last` rows before one.

        Raises:
            BadUserInput: the cursor belongs to another order.
            ReadModelRebuilding: the live generation lacks a column of the filter or the order.
        """
        backward = last is not None
        limit = last if last is not None else first
        assert limit is not None
        return await self._reading(
            lambda live: self._page(
                live, where, with_key(order, self.view.key.names), limit, after, before, backward=backward
            )
        )

    async def _page(
        self,
        live: LiveColumns,
        where: Filter,
        order: Sequence[Order],
        limit: int,
        after: str | None,
        before: str | None,
        *,
        backward: bool,
    ) -> Page:
        statement = sa.select(live.table).where(to_sql(where, live))
        if after is not None:
            statement = statement.where(beyond(live, order, parse_cursor(order, after, self.view)))
        if before is not None:
            statement = statement.where(beyond(live, reverse(order), parse_cursor(order, before, self.view)))
        for each in reverse(order) if backward else order:
            column = found_in(live, each.column, each.inside)
            statement = statement.order_by(column.desc() if each.descending else column)
        rows = await _select(self._pool, statement.limit(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        if backward:
            any_after = await self._any_beyond(live, where, order, before, rows[:1])
            return Page(live.rows(rows[::-1]), any_after, more)
        any_before = await self._any_beyond(live, where, reverse(order), after, rows[:1])
        return Page(live.rows(rows), more, any_before)

    def cursor(self, order: Sequence[Order], row: Row) -> str:
        """Return a cursor: text that names the place of a row in an order."""
        return cursor_of(with_key(order, self.view.key.names), row)

    async def initial_rows(self, where: Filter = EVERYTHING, *, after: int = 0, upto: int | None = None) -> InitialRows:
        """Return the first rows that match, in the order of their positions, with the checkpoint of that moment.

        after, upto: only rows whose last change is after the one position and not after the other.
        """
        async with self._initial_reads:
            return await self._reading(lambda live: self._initial_rows(live, where, after, upto))

    async def _initial_rows(self, live: LiveColumns, where: Filter, after: int, upto: int | None) -> InitialRows:
        limit, epoch = self._limits.initial_rows, self._positions.epochs.current
        statement = initial_rows_statement(live, where, after, upto, limit)
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            # The lock comes before the first query, which fixes the moment that the transaction sees. A swap between
            # the two would show the new table, but only the rows that were written before that moment.
            await connection.execute(
                f"set local idle_in_transaction_session_timeout = '{QUIET_SECONDS}s';"
                f'lock table {SCHEMA}."{snake_case(self.view.name)}" in access share mode'
            )
            position, edition = await self._checkpoint(connection)
            rows = await _select(connection, statement)
            return InitialRows(live.rows(rows), position, edition, cut=len(rows) == limit, epoch=epoch)

    async def keys(self, where: Filter, limit: int | None = None) -> set[RowKey]:
        """Return the keys of the rows that match, at most `limit`."""

        async def read(live: LiveColumns) -> set[RowKey]:
            columns = [live[name] for name in self.view.key.names]
            statement = sa.select(*columns).where(to_sql(where, live)).limit(limit)
            return set(map(self.view.key.of_row, await _select(self._pool, statement)))

        return await self._reading(read)

    async def changes(self, after: int) -> Changes:
        """Return the next changes after a position."""
        return await self._reading(lambda live: self._changes(live, after))

    async def _changes(self, live: LiveColumns, after: int) -> Changes:
        live.require_key()
        limit, epoch = self._limits.changed_rows, self._positions.epochs.current
        records = await self._pool.fetch(changes_sql(live), self.view.name, after, limit)
        if not records:
            return Changes((), (), after, epoch=epoch)
        first = records[0]
        self._positions.report(self._generation_name, first["live generation"])
        rows = [record for record in records if record["position"] is not None]
        cut = len(rows) == limit
        position = rows[-1]["position"] if cut else max(first["complete to"], after)
        tombstones = msgspec.json.decode(first["removed keys"], type=list[tuple[str, int]])
        removed = [(self.view.key.read(text), at) for text, at in tombstones if at <= position]
        return Changes(
            live.rows(rows),
            removed,
            position,
            cut,
            edition=first["live edition"],
            live_since=first["live since"],
            forgotten=first["is forgotten"],
            beyond=first["is beyond"],
            epoch=epoch,
        )

    async def _any_beyond(
        self, live: LiveColumns, where: Filter, order: Sequence[Order], cursor: str | None, rows: Sequence[Row]
    ) -> bool:
        """Return True if there is a row on the other side of the page's cursor; without a cursor there is none."""
        if cursor is None or not rows:
            return cursor is not None
        values = [each.value_in(rows[0]) for each in order]
        condition = sa.and_(to_sql(where, live), beyond(live, order, values))
        statement = sa.select(sa.exists(sa.select(sa.literal(1)).select_from(live.table).where(condition)))
        return (await _select(self._pool, statement))[0][0]  # type: ignore[no-any-return]  # exists


def changes_sql(live: LiveColumns) -> str:
    """Return the query of `Reader.changes`: parameters are the view's name, the position, and a number of rows."""
    return _SQL["changes"].format(**live.names)


def initial_rows_statement(
    live: LiveColumns, where: Filter, after: int, upto: int | None, limit: int
) -> sa.Select[tuple[object, ...]]:
    """Return the query of `Reader.initial_rows`."""
    position = live["position"]
    statement = sa.select(live.table).where(position > after, to_sql(where, live))
    if upto is not None:
        statement = statement.where(position <= upto)
    return statement.order_by(position).limit(limit)


async def _select(connection: Connection | asyncpg.Pool, statement: sa.sql.ClauseElement) -> list[asyncpg.Record]:
    """Return the rows of a statement.

    Raises:
        BadUserInput: the statement compares with a value that PostgreSQL cannot hold.
    """
    try:
        return await connection.fetch(*compiled(statement))
    except asyncpg.DataError as error:
        raise BadUserInput("The filter or the cursor holds a value that no row can have.") from error


def compiled(statement: sa.sql.ClauseElement) -> tuple[str, *tuple[object, ...]]:
    """Return the SQL of a statement, followed by its parameters in asyncpg's order."""
    made = statement.compile(dialect=_DIALECT)
    assert isinstance(made, sa.sql.compiler.SQLCompiler)
    assert made.positiontup is not None
    return (str(made), *(made.params[name] for name in made.positiontup))
