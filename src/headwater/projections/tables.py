"""The tables of read models, made from the declared Python types.

Each generation of a read model has a table of its own, such as `read.account_1`. Clients read the SQL view
`read.account`, which selects from the table of the live generation. A rebuild fills the table of the next generation
beside it, and then replaces the SQL view. See `generations`.

Every identifier is quoted, so that a column may have the name of any keyword of PostgreSQL.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.sql import quoted_name

from headwater.domain.fields import Field, Kind
from headwater.domain.read_model import AnyView
from headwater.domain.table_names import LONGEST_NAME
from headwater.domain.table_names import SCHEMA as SCHEMA
from headwater.domain.table_names import snake_case as snake_case
from headwater.postgres import queries
from headwater.postgres.database import Connection
from headwater.projections import row_events

_SQL = queries.load(__file__)
_DIALECT = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

# Text compares by code point, as in Python: a live filter and a query must order text alike.
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
    Kind.CLOCK: sa.Time(),
    Kind.DURATION: postgresql.INTERVAL(),
    Kind.BYTES: sa.LargeBinary(),
}
_MOST_DIGITS = 1_000
"""The most digits of a `numeric` that declares them."""


# --------------------------------------------------------------------------------------------------------- identifiers


def quoted(name: str) -> str:
    """Return an identifier in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def quoted_table(name: str) -> str:
    """Return the quoted name of a table or SQL view of read models, with its schema."""
    return f"{SCHEMA}.{quoted(name)}"


def always_quoted(name: str) -> quoted_name:
    """Return an identifier that SQLAlchemy quotes. By default it quotes only the keywords that it knows."""
    return quoted_name(name, quote=True)


# ------------------------------------------------------------------------------------------------------------- columns


def columns_of(view: AnyView, *, primary_key: bool = True) -> list[sa.Column[object]]:
    """Return the columns of a read model's table: the declared fields, then `position`."""
    declared = [
        sa.Column(
            always_quoted(each.name),
            # A list is one JSON value: PostgreSQL cannot unnest lists of lists of different lengths.
            postgresql.JSONB() if each.is_json else value_type(each, with_places=True),
            primary_key=primary_key and each.name in view.key.names,
            nullable=each.optional,
        )
        for each in view.fields
    ]
    return [*declared, sa.Column(always_quoted("position"), sa.BigInteger(), nullable=False)]


def value_type(each: Field, *, with_places: bool = False) -> sa.types.TypeEngine[Any]:
    """Return the type of a field's values in PostgreSQL, whether they are in a column or inside JSON.

    with_places: a decimal is stored with the places that it declares. A parameter must not have them: PostgreSQL would
    round the value that a client compares with.
    """
    if each.enum is not None:
        return sa.BigInteger() if any(isinstance(member.value, int) for member in each.enum) else _TEXT
    exact = each.exact
    if with_places and exact is not None and exact.places is not None and exact.digits + exact.places <= _MOST_DIGITS:
        return sa.Numeric(exact.digits + exact.places, exact.places)  # `digits` of them before the decimal point
    return _TYPES[each.kind]


def table_of(
    view: AnyView, name: str | None = None, *, without: Collection[str] = (), primary_key: bool = True
) -> sa.Table:
    """Return the table of that name, or the SQL view that clients read. without: columns to leave out."""
    columns = [column for column in columns_of(view, primary_key=primary_key) if column.name not in without]
    return sa.Table(always_quoted(name or snake_case(view.name)), sa.MetaData(), *columns, schema=always_quoted(SCHEMA))


def declared_key(view: AnyView) -> str:
    """Return the columns of the key with their types, as in CREATE TABLE."""
    columns = {str(column.name): column for column in columns_of(view)}
    return ", ".join(f"{quoted(name)} {column_type(columns[name])} not null" for name in view.key.names)


def column_type(column: sa.Column[object]) -> str:
    """Return the type of a column with its collation, in SQLAlchemy's spelling."""
    return column.type.compile(_DIALECT)


def type_of(column: sa.Column[object]) -> str:
    """Return the type of a column in PostgreSQL's spelling, without its collation."""
    return "jsonb" if is_json(column) else array_type(column).lower().replace(", ", ",")


def is_json(column: sa.Column[object]) -> bool:
    """True for the column of a list, a dict or a nested value."""
    return isinstance(column.type, postgresql.JSONB)


def array_type(column: sa.Column[object]) -> str:
    """Return the type of an element when a column's values are sent as an array. JSON is sent as text, as asyncpg
    expects it."""
    return "text" if is_json(column) else column_type(column).replace(' COLLATE "C"', "")


# ----------------------------------------------------------------------------------------------------------------- DDL


async def create_table(connection: Connection, view: AnyView, name: str) -> None:
    """Create the table of a generation, and that of its history. It has no index yet, so that COPY is faster."""
    table = table_of(view, name, primary_key=False)
    await connection.execute(str(CreateTable(table).compile(dialect=_DIALECT)))
    if view.history:
        await row_events.create(connection, name, declared_key(view))


async def add_key(connection: Connection, view: AnyView, table: str) -> None:
    """Add the primary key, if it is missing."""
    await _add_key(connection, quoted_table(table), ", ".join(map(quoted, view.key.names)))


async def _add_key(connection: Connection, table: str, columns: str) -> None:
    if not await connection.fetchval(_SQL["has_key"], table):
        await connection.execute(f"alter table {table} add primary key ({columns})")


async def add_indexes(connection: Connection, view: AnyView, name: str) -> None:
    """Add the declared indexes that are missing, and that of the history."""
    if view.history:
        await _add_key(connection, row_events.quoted(name), ", ".join(map(quoted, (*view.key.names, "position"))))
    table = table_of(view, name)
    for index_name, indexed in index_names(view, name).items():
        index = sa.Index(always_quoted(index_name), *(table.c[column] for column in indexed))
        await connection.execute(str(CreateIndex(index, if_not_exists=True).compile(dialect=_DIALECT)))


def indexed_columns(view: AnyView) -> list[tuple[str, ...]]:
    """Return the columns of each index: the position, the links, and the declared ones."""
    wanted = [("position",), *(link.fields for link in view.links.values()), *view.model.__declared__.indexes]
    return [columns for columns in dict.fromkeys(wanted) if columns != view.key.names]


def index_names(view: AnyView, table: str) -> dict[str, tuple[str, ...]]:
    """Return the name of each index with its columns.

    A name that is too long, or that two indexes would share, gets a hash at its end: PostgreSQL would cut it, or
    silently skip the second index.
    """
    plain = {columns: f"{table}_{'_'.join(columns)}" for columns in indexed_columns(view)}
    often = Counter([*plain.values(), f"{table}_pkey"])
    return {
        name if often[name] == 1 and len(name.encode()) <= LONGEST_NAME else _hashed(name, columns): columns
        for columns, name in plain.items()
    }


def _hashed(name: str, columns: tuple[str, ...]) -> str:
    digest = hashlib.sha256(json.dumps([name, columns]).encode()).hexdigest()[:8]
    return f"{name.encode()[: LONGEST_NAME - 9].decode(errors='ignore')}_{digest}"


async def show(connection: Connection, view: AnyView, table: str) -> None:
    """Let the SQL view that clients read select from this table.

    If the table has every column that the SQL view shows, the view is replaced in place and keeps its grants.
    Otherwise it is dropped and created again.

    Raises:
        asyncpg.DependentObjectsStillExistError: an object of the operator depends on the SQL view.
    """
    name = quoted_table(snake_case(view.name))
    shown = await _columns(connection, name)
    has = await _columns(connection, quoted_table(table))
    kept = shown if set(shown) <= set(has) else []
    if not kept:
        await connection.execute(f"drop view if exists {name}")
    # `create or replace view` can add columns only at the end.
    columns = ", ".join(quoted(column) for column, _ in [*kept, *(each for each in has if each not in kept)])
    await connection.execute(f"create or replace view {name} as select {columns} from {quoted_table(table)}")  # noqa: S608 - names that the app declares, quoted


async def _columns(connection: Connection, relation: str) -> list[tuple[str, str]]:
    return [(row["name"], row["type"]) for row in await connection.fetch(_SQL["columns"], relation)]
