"""Reading read models: by key, in pages by keyset, as what changed since a position, and not before a position."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg as sa_asyncpg

from headwater.domain.fields import Field, Kind
from headwater.domain.read_model import View
from headwater.errors import BadUserInput, ProjectionBehind
from headwater.eventstore.positions import Positions, generation_of
from headwater.postgres import queries
from headwater.postgres.database import Connection
from headwater.projections.filter import EVERYTHING, Filter, Row, to_sql
from headwater.projections.live_columns import Columns, Shape, shape_of
from headwater.projections.tables import SCHEMA, snake_case

_SQL = queries.load(__file__)
_DIALECT = sa_asyncpg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

CHANGES_AT_ONCE = 5_000

SNAPSHOT_AT_ONCE = 1_000
"""Rows of a snapshot that are read at once: so many are in memory for each that is under way, however large it is."""

SNAPSHOTS_AT_ONCE = 2
"""Parts of snapshots of one read model that are read at once: a crowd that comes back leaves connections for others."""

SWAPPED: tuple[type[Exception], ...] = (
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedTableError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)
"""What a statement meets that was made for the columns of a generation before."""

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """One step of an order. Missing values come last when ascending, first when descending."""

    column: str
    descending: bool = False


@dataclass(frozen=True)
class Page:
    """Rows in order, with whether there are more before and after."""

    rows: Sequence[Row]
    has_next: bool
    has_previous: bool


@dataclass(frozen=True)
class Changes:
    """What changed after a position: the rows as they are now, the removed keys with the positions of their removal,
    and what this is complete up to. `cut`: that is not all yet; ask again from there.

    edition: changes when rows may have changed without a new position, by a swap of generations or by dead letters that
    were folded after all. live_since: where the checkpoint stood when that last happened, if it did; cursors up to
    there need a snapshot. forgotten: some removals after the position are no longer known, since their tombstones are
    pruned; read a snapshot. beyond: the log ends before the position, so it is of another log, or of this one before a
    backup was restored; read a snapshot.
    """

    rows: Sequence[Row]
    removed: Sequence[tuple[UUID, int]]
    position: int
    cut: bool = False
    edition: int = 0
    live_since: int | None = None
    forgotten: bool = False
    beyond: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Rows as they were at a position, and the edition that they are of; see `Changes`. `cut`: those are not all yet;
    read on from the last one's position."""

    rows: Sequence[Row]
    position: int
    edition: int = 0
    cut: bool = False


class Reader:
    """Reads one view's rows. Rows come as they are stored: mappings by column, `position` among them.

    patience: seconds that a read waits for the position it was asked for. poll: seconds between looks at the checkpoint
    though nothing rang.
    """

    def __init__(
        self, pool: asyncpg.Pool, view: View[Any], positions: Positions, *, patience: float = 10.0, poll: float = 1.0
    ) -> None:
        self.view = view
        self._pool = pool
        self._positions = positions
        self._patience = patience
        self._poll = poll
        self._generation_name = generation_of(view.name)
        self._known: Shape | None = None
        self._snapshots = asyncio.Semaphore(SNAPSHOTS_AT_ONCE)

    async def _shape(self) -> Shape:
        """What can be read now, as far as this process has heard."""
        known = self._known
        if known is None or known.generation != self._positions.known(self._generation_name):
            known = self._known = await shape_of(self._pool, self.view)
            self._positions.report(self._generation_name, known.generation)
        return known

    async def _reading(self, read: Callable[[Shape], Awaitable[T]]) -> T:
        """Read, and read again when another generation has become live under it."""
        try:
            return await read(await self._shape())
        except SWAPPED:
            self._known = None
            return await read(await self._shape())

    async def checkpoint(self) -> int:
        """Up to which position the rows are complete."""
        return (await self._checkpoint(self._pool))[0]

    async def _checkpoint(self, connection: Connection | asyncpg.Pool) -> tuple[int, int]:
        """The position, and the edition that it is of."""
        row = await connection.fetchrow(_SQL["checkpoint"], self.view.name)
        position, generation, edition = (0, 0, 0) if row is None else row
        self._positions.report(self._generation_name, generation)
        return position, edition

    async def reach(self, position: int) -> None:
        """Wait until the rows are complete up to a position.

        Raises:
            ProjectionBehind: they were not, in time.
        """
        name, loop = self.view.name, asyncio.get_running_loop()
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

    async def row(self, key: UUID) -> tuple[Row | None, int]:
        """The row of a key, if there is one, and the checkpoint of that moment."""
        found = await self.snapshot_of(key)
        return (found.rows[0] if found.rows else None), found.position

    async def snapshot_of(self, key: UUID) -> Snapshot:
        """The row of a key, if there is one, at the checkpoint of that moment."""

        async def read(shape: Shape) -> Snapshot:
            shape.columns[self.view.key]
            record = await self._pool.fetchrow(_SQL["row"].format(**shape.names), self.view.name, key)
            if record is None:
                return Snapshot((), 0)
            self._positions.report(self._generation_name, record["live generation"])
            there = [record] if record["position"] is not None else []
            return Snapshot(shape.rows(there), record["complete to"], record["live edition"])

        return await self._reading(read)

    async def rows(self, keys: Sequence[UUID]) -> dict[UUID, Row]:
        """The rows of some keys, by key."""

        async def read(shape: Shape) -> dict[UUID, Row]:
            shape.columns[self.view.key]
            records = await self._pool.fetch(_SQL["rows"].format(**shape.names), keys)
            return {row[self.view.key]: row for row in shape.rows(records)}

        return await self._reading(read)

    async def count(self, where: Filter) -> int:
        """How many rows there are."""

        async def read(shape: Shape) -> int:
            statement = sa.select(sa.func.count()).select_from(shape.table).where(to_sql(where, shape.columns))
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
        """A page by keyset: `first` rows after a cursor, or the `last` before one.

        Raises:
            BadUserInput: a cursor of another order.
            ReadModelRebuilding: it filters or orders by a column that the live generation has not.
        """
        backward = last is not None
        limit = last if last is not None else first
        assert limit is not None
        return await self._reading(
            lambda shape: self._page(shape, where, self._total(order), limit, after, before, backward=backward)
        )

    async def _page(
        self,
        shape: Shape,
        where: Filter,
        order: Sequence[Order],
        limit: int,
        after: str | None,
        before: str | None,
        *,
        backward: bool,
    ) -> Page:
        columns = shape.columns
        statement = sa.select(shape.table).where(to_sql(where, columns))
        if after is not None:
            statement = statement.where(_beyond(columns, order, self._parse(order, after)))
        if before is not None:
            statement = statement.where(_beyond(columns, _reverse(order), self._parse(order, before)))
        for each in _reverse(order) if backward else order:
            statement = statement.order_by(columns[each.column].desc() if each.descending else columns[each.column])
        rows = await _select(self._pool, statement.limit(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        if backward:
            any_after = await self._any_beyond(shape, where, order, before, rows[:1])
            return Page(shape.rows(rows[::-1]), any_after, more)
        any_before = await self._any_beyond(shape, where, _reverse(order), after, rows[:1])
        return Page(shape.rows(rows), more, any_before)

    def cursor(self, order: Sequence[Order], row: Row) -> str:
        """Where a row stands in an order, to go on from."""
        order = self._total(order)
        values = [_SPELL.get(type(row[each.column]), _as_is)(row[each.column]) for each in order]
        text = json.dumps([_signature(order), *values], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    async def snapshot(self, where: Filter = EVERYTHING, *, after: int = 0, upto: int | None = None) -> Snapshot:
        """The rows that match, by position, up to so many, and the position that the read model is complete up to, of
        one moment. after, upto: only those that were last changed after the one position and not after the other."""
        async with self._snapshots:
            return await self._reading(lambda shape: self._snapshot(shape, where, after, upto))

    async def _snapshot(self, shape: Shape, where: Filter, after: int, upto: int | None) -> Snapshot:
        statement = _part(shape, where, after, upto)
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            # Before the moment of the transaction is taken, which its first query does: a swap between the two would
            # show the new rows, but only those that were written before that moment.
            await connection.execute(f'lock table {SCHEMA}."{snake_case(self.view.name)}" in access share mode')
            position, edition = await self._checkpoint(connection)
            rows = await _select(connection, statement)
            return Snapshot(shape.rows(rows), position, edition, cut=len(rows) == SNAPSHOT_AT_ONCE)

    async def keys(self, where: Filter, limit: int | None = None) -> set[UUID]:
        """The keys of the rows that match, up to so many."""

        async def read(shape: Shape) -> set[UUID]:
            statement = sa.select(shape.columns[self.view.key]).where(to_sql(where, shape.columns)).limit(limit)
            return {record[0] for record in await _select(self._pool, statement)}

        return await self._reading(read)

    async def changes(self, after: int) -> Changes:
        """What changed after a position, up to so many rows; ask again from the position that comes back."""
        return await self._reading(lambda shape: self._changes(shape, after))

    async def _changes(self, shape: Shape, after: int) -> Changes:
        shape.columns[self.view.key]
        records = await self._pool.fetch(_SQL["changes"].format(**shape.names), self.view.name, after, CHANGES_AT_ONCE)
        if not records:
            return Changes((), (), after)
        first = records[0]
        self._positions.report(self._generation_name, first["live generation"])
        rows = [record for record in records if record["position"] is not None]
        cut = len(rows) == CHANGES_AT_ONCE
        position = rows[-1]["position"] if cut else max(first["complete to"], after)
        buried = msgspec.json.decode(first["removed keys"], type=list[tuple[UUID, int]])
        removed = [(key, at) for key, at in buried if at <= position]
        return Changes(
            shape.rows(rows),
            removed,
            position,
            cut,
            edition=first["live edition"],
            live_since=first["live since"],
            forgotten=first["is forgotten"],
            beyond=first["is beyond"],
        )

    def _total(self, order: Sequence[Order]) -> tuple[Order, ...]:
        """The order made total by the key, so that no two rows stand in one place."""
        if any(each.column == self.view.key for each in order):
            return tuple(order)
        return (*order, Order(self.view.key))

    async def _any_beyond(
        self, shape: Shape, where: Filter, order: Sequence[Order], cursor: str | None, rows: Sequence[Row]
    ) -> bool:
        """Whether a row stands on the other side of the page. None does when the page starts where all rows start."""
        if cursor is None or not rows:
            return cursor is not None
        values = [rows[0][each.column] for each in order]
        condition = sa.and_(to_sql(where, shape.columns), _beyond(shape.columns, order, values))
        statement = sa.select(sa.exists(sa.select(sa.literal(1)).select_from(shape.table).where(condition)))
        return (await _select(self._pool, statement))[0][0]  # type: ignore[no-any-return]  # exists

    def _parse(self, order: Sequence[Order], cursor: str) -> list[Any]:
        kinds = {each.name: each for each in self.view.fields}
        try:
            signature, *values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
            if signature != _signature(order) or len(values) != len(order):
                raise ValueError("another order")
            return [_parse_value(kinds.get(each.column), v) for each, v in zip(order, values, strict=True)]
        except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise BadUserInput("The cursor does not belong to this order; start again without it.") from error


def _part(shape: Shape, where: Filter, after: int, upto: int | None) -> sa.Select[Any]:
    """Rows that match, by position, from after one position up to another."""
    place = shape.columns["position"]
    statement = sa.select(shape.table).where(place > after, to_sql(where, shape.columns))
    if upto is not None:
        statement = statement.where(place <= upto)
    return statement.order_by(place).limit(SNAPSHOT_AT_ONCE)


async def _select(connection: Connection | asyncpg.Pool, statement: sa.sql.ClauseElement) -> list[asyncpg.Record]:
    """A statement's rows.

    Raises:
        BadUserInput: it compares with a value that PostgreSQL cannot hold.
    """
    try:
        return await connection.fetch(*_compiled(statement))
    except asyncpg.DataError as error:
        raise BadUserInput("The filter or the cursor holds a value that no row can have.") from error


def _compiled(statement: sa.sql.ClauseElement) -> tuple[Any, ...]:
    """The SQL and its values in their order, as asyncpg takes them."""
    compiled = statement.compile(dialect=_DIALECT)
    assert isinstance(compiled, sa.sql.compiler.SQLCompiler)
    assert compiled.positiontup is not None
    return (str(compiled), *(compiled.params[name] for name in compiled.positiontup))


def _beyond(columns: Columns, order: Sequence[Order], values: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Rows that come strictly after the values, in the order: later in the first column, or the same in it and beyond
    in the others. Each column stands in the condition twice, however many there are."""
    (first, *others), (value, *values) = order, values
    later = _later(columns[first.column], value, first.descending)
    if not others:
        return later
    return sa.or_(later, sa.and_(_same(columns[first.column], value), _beyond(columns, others, values)))


def _reverse(order: Sequence[Order]) -> tuple[Order, ...]:
    return tuple(Order(each.column, not each.descending) for each in order)


def _signature(order: Sequence[Order]) -> str:
    return ",".join(("-" if each.descending else "") + each.column for each in order)


def _same(column: sa.ColumnElement[Any], value: Any) -> sa.ColumnElement[bool]:
    return column.is_(None) if value is None else column == value


def _later(column: sa.ColumnElement[Any], value: Any, descending: bool) -> sa.ColumnElement[bool]:
    nullable = getattr(column, "nullable", True)
    if descending:
        return column.is_not(None) if value is None else column < value
    if value is None:
        return sa.false()
    return sa.or_(column > value, column.is_(None)) if nullable else column > value


def _as_is(value: Any) -> Any:
    return value


_SPELL: dict[type, Any] = {
    UUID: str,
    Decimal: str,
    datetime: datetime.isoformat,
    date: date.isoformat,
    # asyncpg's own subclass
    asyncpg.pgproto.pgproto.UUID: str,
}


def _parse_value(field: Field | None, value: Any) -> Any:
    """A cursor's value as the driver takes it. `position` is the one column that no field declares."""
    if value is None:
        return None
    kind = Kind.INT if field is None else field.kind
    match kind:
        case Kind.UUID:
            return UUID(value)
        case Kind.DECIMAL:
            return Decimal(value)
        case Kind.TIME:
            return datetime.fromisoformat(value)
        case Kind.DATE:
            return date.fromisoformat(value)
        case Kind.TEXT | Kind.ENUM:
            return str(value)
        case Kind.INT:
            return int(value)
        case Kind.FLOAT:
            return float(value)
        case Kind.BOOL:
            return bool(value)
