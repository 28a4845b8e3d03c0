"""Reading read models: by key, in pages by keyset, as what changed since a position, and not before a position."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import asyncpg as sa_asyncpg

from headwater import sql
from headwater.database import Connection
from headwater.errors import BadUserInput, ProjectionBehind
from headwater.fields import Field, Kind
from headwater.filter import EVERYTHING, Filter, Row, to_sql
from headwater.positions import Positions
from headwater.tables import SCHEMA, snake_case, table_of
from headwater.view import View

_SQL = sql.load(__file__)
_DIALECT = sa_asyncpg.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

CHANGES_AT_ONCE = 5_000


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
    and what this is complete up to. `cut`: that is not all yet; ask again from there."""

    rows: Sequence[Row]
    removed: Sequence[tuple[UUID, int]]
    position: int
    cut: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Rows as they were at a position."""

    rows: Sequence[Row]
    position: int


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
        self._table = table_of(view)
        names = {"table": f'{SCHEMA}."{snake_case(view.name)}"', "key": f'"{view.key}"'}
        self._changes_sql = _SQL["changes"].format(**names)
        self._row_sql = _SQL["row"].format(**names)
        self._rows_sql = _SQL["rows"].format(**names)

    async def checkpoint(self) -> int:
        """Up to which position the rows are complete."""
        return await self._pool.fetchval(_SQL["checkpoint"], self.view.name) or 0

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
        record = await self._pool.fetchrow(self._row_sql, self.view.name, key)
        if record is None:
            return None, 0
        return (record if record[self.view.key] is not None else None), record["complete to"]

    async def rows(self, keys: Sequence[UUID]) -> dict[UUID, Row]:
        """The rows of some keys, by key."""
        records = await self._pool.fetch(self._rows_sql, keys)
        return {record[self.view.key]: record for record in records}

    async def count(self, where: Filter) -> int:
        """How many rows there are."""
        statement = sa.select(sa.func.count()).select_from(self._table).where(to_sql(where, self._table.c))
        return (await _select(self._pool, statement))[0][0]  # type: ignore[no-any-return]  # count(*)

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
        """
        order = self._total(order)
        backward = last is not None
        limit = last if last is not None else first
        assert limit is not None
        columns = self._table.c
        statement = sa.select(self._table).where(to_sql(where, columns))
        if after is not None:
            statement = statement.where(self._beyond(order, self._parse(order, after)))
        if before is not None:
            statement = statement.where(self._beyond(_reverse(order), self._parse(order, before)))
        for each in _reverse(order) if backward else order:
            statement = statement.order_by(columns[each.column].desc() if each.descending else columns[each.column])
        rows = await _select(self._pool, statement.limit(limit + 1))
        more, rows = len(rows) > limit, rows[:limit]
        if backward:
            return Page(rows[::-1], await self._any_beyond(where, order, before, rows[:1]), more)
        return Page(rows, more, await self._any_beyond(where, _reverse(order), after, rows[:1]))

    def cursor(self, order: Sequence[Order], row: Row) -> str:
        """Where a row stands in an order, to go on from."""
        order = self._total(order)
        values = [_SPELL.get(type(row[each.column]), _as_is)(row[each.column]) for each in order]
        text = json.dumps([_signature(order), *values], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    async def snapshot(self, where: Filter = EVERYTHING) -> Snapshot:
        """The rows that match, and the position that they are complete up to, of one moment."""
        statement = sa.select(self._table).where(to_sql(where, self._table.c)).order_by(self._table.c.position)
        async with (
            self._pool.acquire() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            position = await connection.fetchval(_SQL["checkpoint"], self.view.name) or 0
            return Snapshot(await _select(connection, statement), position)

    async def keys(self, where: Filter) -> set[UUID]:
        """The keys of the rows that match."""
        key = self._table.c[self.view.key]
        statement = sa.select(key).where(to_sql(where, self._table.c))
        return {record[0] for record in await _select(self._pool, statement)}

    async def changes(self, after: int) -> Changes:
        """What changed after a position, up to so many rows; ask again from the position that comes back."""
        records = await self._pool.fetch(self._changes_sql, self.view.name, after, CHANGES_AT_ONCE)
        if not records:
            return Changes((), (), after)
        rows = [record for record in records if record["position"] is not None]
        cut = len(rows) == CHANGES_AT_ONCE
        position = rows[-1]["position"] if cut else max(records[0]["complete to"], after)
        buried = msgspec.json.decode(records[0]["removed keys"], type=list[tuple[UUID, int]])
        return Changes(rows, [(key, at) for key, at in buried if at <= position], position, cut)

    def _total(self, order: Sequence[Order]) -> tuple[Order, ...]:
        """The order made total by the key, so that no two rows stand in one place."""
        if any(each.column == self.view.key for each in order):
            return tuple(order)
        return (*order, Order(self.view.key))

    def _beyond(self, order: Sequence[Order], values: Sequence[Any]) -> sa.ColumnElement[bool]:
        """Rows that come strictly after the values, in the order."""
        arms = []
        for place, each in enumerate(order):
            same = [_same(self._table.c[o.column], value) for o, value in zip(order[:place], values, strict=False)]
            arms.append(sa.and_(*same, _later(self._table.c[each.column], values[place], each.descending)))
        return sa.or_(*arms)

    async def _any_beyond(self, where: Filter, order: Sequence[Order], cursor: str | None, rows: Sequence[Row]) -> bool:
        """Whether a row stands on the other side of the page. None does when the page starts where all rows start."""
        if cursor is None or not rows:
            return cursor is not None
        values = [rows[0][each.column] for each in order]
        condition = sa.and_(to_sql(where, self._table.c), self._beyond(order, values))
        statement = sa.select(sa.exists(sa.select(sa.literal(1)).select_from(self._table).where(condition)))
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
