"""Read-model tables, made from the declared Python types.

Each read model has a physical table that carries its generation, `read.account_1`, and clients read the view
`read.account` on the live one. So a rebuild can fill the next generation beside it and swap the view.

    building -> live -> retired (its table is dropped after a time)
            \\-> retired (given up: what is declared now is what is live)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from headwater.consumers.checkpoint import Standing
from headwater.domain.canonical_values import spelling_of
from headwater.domain.fields import Field, Kind
from headwater.domain.messages import Event
from headwater.domain.read_model import ReadModel, View
from headwater.domain.table_names import LONGEST_NAME
from headwater.domain.table_names import SCHEMA as SCHEMA
from headwater.domain.table_names import snake_case as snake_case
from headwater.errors import HeadwaterError
from headwater.postgres import queries
from headwater.postgres.database import Connection, make_schema
from headwater.projections import row_events

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)
_DIALECT = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

# Text compares by code point, as Python's does: a live filter and a query must agree on what is less.
_TEXT = sa.Text(collation="C")
_TYPES: dict[Kind, sa.types.TypeEngine[Any]] = {
    Kind.TEXT: _TEXT,
    Kind.INT: sa.BigInteger(),
    Kind.FLOAT: sa.Double(),
    Kind.BOOL: sa.Boolean(),
    Kind.DECIMAL: sa.Numeric(),
    Kind.UUID: sa.Uuid(),
    Kind.TIME: sa.TIMESTAMP(timezone=True),
    Kind.DATE: sa.Date(),
    Kind.ENUM: _TEXT,
}


QUIET_SECONDS = 10
"""After which a transaction that makes or drops tables, and that nothing more is heard of, is ended."""

_FROM_JSON: dict[Kind, Callable[[str], Any]] = {Kind.TIME: datetime.fromisoformat, Kind.DATE: date.fromisoformat}


class Outdated(HeadwaterError):
    """This code is older than that which declared what is live; the sentence says which, and what to do."""


def columns_of(view: View[Any], *, key: bool = True) -> list[sa.Column[Any]]:
    """The columns of a read model's table: the declared fields, then `position`. key: with the primary key."""
    declared = [
        sa.Column(
            each.name,
            # A list is one JSON value, since PostgreSQL cannot unnest lists of lists of several lengths.
            postgresql.JSONB() if each.many else _TYPES[each.kind],
            primary_key=key and each.name == view.key,
            nullable=each.optional,
        )
        for each in view.fields
    ]
    return [*declared, sa.Column("position", sa.BigInteger(), nullable=False)]


def table_of(view: View[Any], name: str | None = None, *, without: Collection[str] = ()) -> sa.Table:
    """The view that clients read, or the physical table of that name. without: columns to leave out."""
    columns = [column for column in columns_of(view) if column.name not in without]
    return sa.Table(name or snake_case(view.name), sa.MetaData(), *columns, schema=SCHEMA)


def fingerprint(view: View[Any]) -> str:
    """Changes when the columns, the values of an enum, the indexes or the declared version do: then the rows must be
    made again, unless an enum has only got more values. And when the kinds of events do, that are folded: then older
    code must not go on, since it would pass over those that it does not know. See `renew`."""
    return f"{_shape(view, _enums(view))}.{kinds_of(view.events)}"


def kinds_of(events: Iterable[type[Event]]) -> str:
    """Changes when the types of events do, or their versions."""
    kinds = sorted((event.__declared__.name, event.__declared__.version) for event in events)
    return hashlib.sha256(json.dumps(kinds).encode()).hexdigest()[:8]


def _shape(view: View[Any], enums: Mapping[str, Collection[str]]) -> str:
    columns = [(c.name, c.type.compile(_DIALECT), c.nullable) for c in columns_of(view)]
    declared: list[Any] = [columns, view.key, _indexed(view), view.model.__declared__.version]
    # What a declaration does not use is left out, so that older ones have the fingerprint that they had.
    shape = json.dumps([*declared, *([enums] if enums else []), *(["history"] if view.history else [])])
    return hashlib.sha256(shape.encode()).hexdigest()[:16]


def _enums(view: View[Any]) -> dict[str, list[str]]:
    """The values that a row may hold, by column."""
    return {each.name: sorted(member.value for member in each.enum) for each in view.fields if each.enum is not None}


def _indexed(view: View[Any]) -> list[tuple[str, ...]]:
    """What the table is searched by: its position, the links, and what is declared."""
    wanted = [("position",), *((link.by,) for link in view.links.values()), *view.model.__declared__.indexes]
    return [columns for columns in dict.fromkeys(wanted) if columns != (view.key,)]


async def prepare(connection: Connection, view: View[Any]) -> Standing:
    """Where the live generation stands, its table and view made if they are not there.

    Its fingerprint may be another than that of `view`: `renew` registers the generation that takes its place.
    """
    async with alone(connection, view.name):
        row = await connection.fetchrow(_SQL["standing"], view.name)
        return await _make_first(connection, view) if row is None else Standing(*row)


async def renew(connection: Connection, view: View[Any], *, insist: bool = False) -> Standing | None:
    """Register the next generation where the live one was declared otherwise; None where there is nothing to build.

    Where enums have got more values, or the kinds of events are others, and nothing else has changed, the live
    generation is handed to this code as it is: see `adopt`.

    A declaration that was live before is that of older code, which a rolling deploy may still start: it builds nothing,
    unless `insist` says that this code is the one to go on with. Then what others are building is given up, too, and a
    build that has failed is begun again. Without it a failed build stays one: that a worker starts mends nothing.
    """
    async with alone(connection, view.name):
        made = fingerprint(view)
        known = {row["state"]: row for row in await connection.fetch(_SQL["declared"], view.name, made)}
        if insist:
            await connection.execute(_SQL["give_up"], view.name, made)
        if "live" in known:
            return None
        building = known.get("building")
        if building is not None and building["failure"] is not None and not insist:
            logger.warning(
                "generation %d of %s is not built on: %s", building["generation"], view.name, building["failure"]
            )
            return None
        if building is None and "retired" in known and not insist:
            logger.warning(
                "%s is declared as an earlier generation was; run `headwater migrate` with this code if it is to go on",
                view.model.__name__,
            )
            return None
        if await _adopt(connection, view, made):
            return None
        return await _next(connection, view)


async def adopt(connection: Connection, view: View[Any]) -> None:
    """Have the live generation be this code's from now on, if its rows are what this code declares but for more values
    of its enums, or other kinds of events.

    Older code cannot read what will be written, or would pass over events that it does not know, and nobody would look
    at them again. So this comes before this code appends anything: the fence rises with it, and what older code has yet
    to commit is void. Code whose declaration was live before is older code, and adopts nothing.
    """
    async with alone(connection, view.name):
        made = fingerprint(view)
        if not await connection.fetch(_SQL["declared"], view.name, made):
            await _adopt(connection, view, made)


async def _adopt(connection: Connection, view: View[Any], made: str) -> bool:
    """Whether the live generation is this code's now."""
    declared, before = await connection.fetchrow(_SQL["live_declaration"], view.name) or ("", "{}")
    now, had = _enums(view), json.loads(before)
    shape = declared.partition(".")[0]
    if shape != _shape(view, had) or any(not set(values) <= set(now[column]) for column, values in had.items()):
        return False
    # What older code is building would take this one's place.
    given_up = await connection.fetch(_SQL["give_up_earlier"], view.name)
    await connection.execute(_SQL["adopt"], view.name, made, json.dumps(now))
    await connection.execute(_SQL["ring"])
    if given_up:
        await _next(connection, view)
    return True


async def rebuild(connection: Connection, view: View[Any]) -> Standing:
    """Register a generation though nothing has changed. One that is being built already goes on instead, unless it has
    failed: then it is given up.

    Raises:
        Outdated: this is older code than that of the live generation.
    """
    async with alone(connection, view.name):
        states = {row["state"] for row in await connection.fetch(_SQL["declared"], view.name, fingerprint(view))}
        if states == {"retired"}:
            raise Outdated(
                f"{view.model.__name__} is declared as an earlier generation was, so this is older code than that of "
                "the live one. Run `headwater migrate` with it if it is to go on."
            )
        return await _next(connection, view)


@asynccontextmanager
async def alone(connection: Connection, name: str, *, seconds: float = 0) -> AsyncIterator[None]:
    """A transaction that alone makes or changes a projection's tables: several processes may start at once.

    seconds: that it waits for each lock, at most; 0 is without end. One that is stopped in the middle does not keep the
    others out: PostgreSQL ends what says nothing for QUIET_SECONDS.

    Raises:
        asyncpg.LockNotAvailableError: it waited so long.
    """
    async with connection.transaction():
        await connection.execute(
            f"set local lock_timeout = {round(seconds * 1000)};"
            f"set local idle_in_transaction_session_timeout = '{QUIET_SECONDS}s'"
        )
        await connection.execute(_SQL["lock"], name)
        yield


async def _next(connection: Connection, view: View[Any]) -> Standing:
    made = fingerprint(view)
    await connection.execute(_SQL["give_up_failed"], view.name, made)
    row = await connection.fetchrow(_SQL["building"], view.name, made)
    if row is not None:
        return Standing(*row)
    generation = await connection.fetchval(_SQL["next_generation"], view.name)
    await connection.execute(_SQL["ring"])
    return await _register(connection, view, generation, "building")


async def _make_first(connection: Connection, view: View[Any]) -> Standing:
    await make_schema(connection, SCHEMA)
    generation = await connection.fetchval(_SQL["next_generation"], view.name)
    standing = await _register(connection, view, generation, "live")
    await add_key(connection, view, standing.table)
    await add_indexes(connection, view, standing.table)
    await show(connection, view, standing.table)
    return standing


async def _register(connection: Connection, view: View[Any], generation: int, state: str) -> Standing:
    """A generation with its table, which has no index yet: rows come in faster so."""
    name = f"{snake_case(view.name)}_{generation}"
    table = sa.Table(name, sa.MetaData(), *columns_of(view, key=False), schema=SCHEMA)
    await connection.execute(str(CreateTable(table).compile(dialect=_DIALECT)))
    if view.history:
        await row_events.create(connection, name)
    made = fingerprint(view)
    version, enums = view.model.__declared__.version, json.dumps(_enums(view))
    await connection.execute(_SQL["register"], view.name, generation, version, made, name, state, enums)
    return Standing(generation, name, 0, 0, made)


async def add_key(connection: Connection, view: View[Any], table: str) -> None:
    """The primary key, if it is not there."""
    await _add_key(connection, _quoted(table), _quoted_name(view.key))


async def _add_key(connection: Connection, table: str, columns: str) -> None:
    if not await connection.fetchval(_SQL["has_key"], table):
        await connection.execute(f"alter table {table} add primary key ({columns})")


async def add_indexes(connection: Connection, view: View[Any], name: str) -> None:
    """The declared indexes that are not there, and that of its history."""
    if view.history:
        await _add_key(connection, row_events.quoted(name), "key, position")
    table = table_of(view, name)
    for index_name, indexed in _index_names(view, name).items():
        index = sa.Index(index_name, *(table.c[column] for column in indexed))
        await connection.execute(str(CreateIndex(index, if_not_exists=True).compile(dialect=_DIALECT)))


def _index_names(view: View[Any], table: str) -> dict[str, tuple[str, ...]]:
    """The name of each index, and its columns. Where the columns alone make no name of its own, a hash is added:
    PostgreSQL would cut it, or make no second index of that name and say nothing."""
    plain = {columns: f"{table}_{'_'.join(columns)}" for columns in _indexed(view)}
    often = Counter([*plain.values(), f"{table}_pkey"])
    return {
        name if often[name] == 1 and len(name.encode()) <= LONGEST_NAME else _hashed(name, columns): columns
        for columns, name in plain.items()
    }


def _hashed(name: str, columns: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps([name, columns]).encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}_{digest}"


async def show(connection: Connection, view: View[Any], table: str) -> None:
    """Let the view that clients read be on this table.

    Where all that it shows goes on, the view is kept, with what was granted on it; else it is made again, which fails
    while something of the operator's depends on it.
    """
    name = _quoted(snake_case(view.name))
    shown = [tuple(row) for row in await connection.fetch(_SQL["columns"], name)]
    has = [tuple(row) for row in await connection.fetch(_SQL["columns"], _quoted(table))]
    kept = shown if set(shown) <= set(has) else []
    if not kept:
        await connection.execute(f"drop view if exists {name}")
    # A view can be given more columns, at its end.
    columns = ", ".join(_quoted_name(column) for column, _ in [*kept, *(each for each in has if each not in kept)])
    await connection.execute(f"create or replace view {name} as select {columns} from {_quoted(table)}")


def upsert_sql(view: View[Any], table: str) -> str:
    """Write many rows by one array a column: `$1` the first column's values, and so on, `position` last."""
    columns = columns_of(view)
    names = [_quoted_name(column.name) for column in columns]
    # JSON travels as text: asyncpg gives and takes jsonb so.
    arrays = [f"${place}::{_array_type(column)}[]" for place, column in enumerate(columns, 1)]
    casts = [
        f"u.{name}::jsonb" if _is_json(column) else f"u.{name}" for name, column in zip(names, columns, strict=True)
    ]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != _quoted_name(view.key))
    return (
        f"insert into {_quoted(table)} ({', '.join(names)}) select {', '.join(casts)} "
        f"from unnest({', '.join(arrays)}) as u({', '.join(names)}) "
        f"on conflict ({_quoted_name(view.key)}) do update set {changes}"
    )


def update_sql(view: View[Any], table: str) -> str:
    """Change many rows that are there, by the arrays of `upsert_sql`; needs no index, but a scan."""
    columns = columns_of(view)
    names = [_quoted_name(column.name) for column in columns]
    arrays = [f"${place}::{_array_type(column)}[]" for place, column in enumerate(columns, 1)]
    changes = ", ".join(
        f"{name} = u.{name}::jsonb" if _is_json(column) else f"{name} = u.{name}"
        for name, column in zip(names, columns, strict=True)
        if column.name != view.key
    )
    key = _quoted_name(view.key)
    return (
        f"update {_quoted(table)} as t set {changes} from unnest({', '.join(arrays)}) as u({', '.join(names)}) "
        f"where t.{key} = u.{key}"
    )


def delete_sql(view: View[Any], table: str) -> str:
    """Remove the rows of the keys `$1`."""
    return f"delete from {_quoted(table)} where {_quoted_name(view.key)} = any($1::uuid[])"


def load_sql(view: View[Any], table: str) -> str:
    """The rows of the keys `$1`."""
    return f"{select_sql(view, table)} where {_quoted_name(view.key)} = any($1::uuid[])"


def select_sql(view: View[Any], table: str) -> str:
    """All rows."""
    names = ", ".join(_quoted_name(column.name) for column in columns_of(view))
    return f"select {names} from {_quoted(table)}"


def writer_of(field: Field) -> Callable[[Any], Any]:
    """From a field's Python value to what is stored. It raises ValueError for a time without a zone, and for
    the very first or last one."""
    if field.many:
        one = _scalar_writer(field)
        return lambda values: None if values is None else json.dumps([one(value) for value in values], default=str)
    return _finite if field.kind is Kind.TIME else _scalar_writer(field)


def reader_of(field: Field) -> Callable[[Any], Any]:
    """From what is stored to a field's Python value."""
    read, spell = _reader_of(field), spelling_of(field)
    # asyncpg writes zeros as an exponent, if they are many; other columns are spelled by PostgreSQL.
    if spell is None or not (field.many or field.kind is Kind.DECIMAL):
        return read
    return lambda stored: spell(read(stored))


def _reader_of(field: Field) -> Callable[[Any], Any]:
    if field.many:
        one = _element_reader(field)
        return lambda text: None if text is None else [one(value) for value in json.loads(text)]
    if field.enum is not None:
        chosen = field.enum
        return lambda value: None if value is None else chosen(value)
    return _same


def model_reader(view: View[Any]) -> Callable[[Mapping[str, Any]], ReadModel]:
    """From a stored row to the read model."""
    readers = [(each.name, reader_of(each)) for each in view.fields]
    model = view.model
    return lambda row: model(**{name: read(row[name]) for name, read in readers})


def _scalar_writer(field: Field) -> Callable[[Any], Any]:
    if field.kind is Kind.ENUM:
        return lambda member: None if member is None else member.value
    return _aware if field.kind is Kind.TIME else _same


def _element_reader(field: Field) -> Callable[[Any], Any]:
    """From an element of a JSON list. Decimals, times and ids were written as text."""
    if field.enum is not None:
        return field.enum
    chosen: Callable[[Any], Any] = _FROM_JSON.get(field.kind, field.kind.value)
    return chosen


def _aware(moment: Any) -> Any:
    """A time as it is, if it says which moment it is."""
    if moment is not None and moment.tzinfo is None:
        raise ValueError(
            f"{moment} has no time zone: which moment is stored would depend on the machine; give it one, such as UTC"
        )
    return moment


_ENDS = [end.replace(tzinfo=UTC) for end in (datetime.min, datetime.max)]  # noqa: DTZ901 - it is given here


def _finite(moment: Any) -> Any:
    """A time as it is, if it is read back so: asyncpg makes the very first and last PostgreSQL's infinity."""
    if _aware(moment) is not None and not 1 < moment.year < 9999 and moment in _ENDS:
        raise ValueError(f"{moment} would be stored as infinity, and not read back; give it another, or leave it out")
    return moment


def _same(value: Any) -> Any:
    return value


def type_of(column: sa.Column[Any]) -> str:
    """A column's type as PostgreSQL spells it."""
    return _array_type(column).lower() if not _is_json(column) else "jsonb"


def _is_json(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, postgresql.JSONB)


def _array_type(column: sa.Column[Any]) -> str:
    if _is_json(column):
        return "text"
    return column.type.compile(_DIALECT).replace(' COLLATE "C"', "")


def _quoted_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _quoted(table: str) -> str:
    return f"{SCHEMA}.{_quoted_name(table)}"


async def prepare_views(dsn: str, views: Sequence[View[Any]]) -> None:
    """Make the read models' tables, and register the next generation of those whose declaration has changed."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        for view in views:
            await prepare(connection, view)
            await renew(connection, view, insist=True)
    finally:
        await connection.close()
