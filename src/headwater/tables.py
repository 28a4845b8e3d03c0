"""Read-model tables, made from the declared Python types.

Each read model has a physical table that carries its generation, `read.account_1`, and clients read the view
`read.account` on the live one. So a rebuild can fill the next generation beside it and swap the view.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from headwater import sql
from headwater.database import Connection
from headwater.errors import DefinitionError
from headwater.fields import Field, Kind
from headwater.view import ReadModel, View

_SQL = sql.load(__file__)
_DIALECT = postgresql.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # SQLAlchemy leaves it untyped

SCHEMA = "read"

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


_FROM_JSON: dict[Kind, Callable[[str], Any]] = {Kind.TIME: datetime.fromisoformat, Kind.DATE: date.fromisoformat}


def snake_case(name: str) -> str:
    """`BankAccount` as `bank_account`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True)
class Standing:
    """Where a projection stands: which table it writes, and up to which position it is complete."""

    generation: int
    table: str
    position: int
    fence: int


def columns_of(view: View[Any]) -> list[sa.Column[Any]]:
    """The columns of a read model's table: the declared fields, then `position`."""
    declared = [
        sa.Column(
            each.name,
            # A list is one JSON value, since PostgreSQL cannot unnest lists of lists of several lengths.
            postgresql.JSONB() if each.many else _TYPES[each.kind],
            primary_key=each.name == view.key,
            nullable=each.optional,
        )
        for each in view.fields
    ]
    return [*declared, sa.Column("position", sa.BigInteger(), nullable=False)]


def table_of(view: View[Any], name: str | None = None) -> sa.Table:
    """The view that clients read, or the physical table of that name."""
    return sa.Table(name or snake_case(view.name), sa.MetaData(), *columns_of(view), schema=SCHEMA)


def fingerprint(view: View[Any]) -> str:
    """Changes when the columns, the indexes or the declared version do: then the rows must be made again."""
    columns = [(c.name, c.type.compile(_DIALECT), c.nullable) for c in columns_of(view)]
    shape = json.dumps([columns, view.key, _indexed(view), view.model.model_version])
    return hashlib.sha256(shape.encode()).hexdigest()[:16]


def _indexed(view: View[Any]) -> list[tuple[str, ...]]:
    """What the table is searched by: its position, the links, and what is declared."""
    wanted = [("position",), *((link.by,) for link in view.links.values()), *view.model.model_indexes]
    return [columns for columns in dict.fromkeys(wanted) if columns != (view.key,)]


async def prepare(connection: Connection, view: View[Any], *, replace: bool) -> Standing:
    """Where the projection stands, its table and view made if they are not there.

    When the declaration has changed and `replace` is given, the rows are made again from the beginning of the log, in a
    new table.

    Raises:
        DefinitionError: the declaration has changed, and `replace` is not given.
    """
    async with connection.transaction():
        # Several processes may start at once; one of them makes the table.
        await connection.execute(_SQL["lock"], view.name)
        row = await connection.fetchrow(_SQL["standing"], view.name)
        if row is None:
            return await _make(connection, view, 1)
        if row["fingerprint"] == fingerprint(view):
            return Standing(row["generation"], row["table_name"], row["position"], row["fence"])
        if not replace:
            raise DefinitionError(
                f"{view.model.__name__} is declared otherwise than the table of {view.name} was made; run "
                "`headwater migrate`, or start a worker of this version, to make its rows again"
            )
        await connection.execute(f"drop view if exists {_quoted(snake_case(view.name))}")
        await connection.execute(f"drop table if exists {_quoted(row['table_name'])}")
        await connection.execute(_SQL["forget"], view.name, row["generation"])
        return await _make(connection, view, row["generation"] + 1)


async def _make(connection: Connection, view: View[Any], generation: int) -> Standing:
    name = f"{snake_case(view.name)}_{generation}"
    table = table_of(view, name)
    await connection.execute(f"create schema if not exists {SCHEMA}")
    await connection.execute(str(CreateTable(table).compile(dialect=_DIALECT)))
    for indexed in _indexed(view):
        index = sa.Index(f"{name}_{'_'.join(indexed)}"[:63], *(table.c[column] for column in indexed))
        await connection.execute(str(CreateIndex(index).compile(dialect=_DIALECT)))
    columns = ", ".join(_quoted_name(column.name) for column in table.columns)
    await connection.execute(f"create view {_quoted(snake_case(view.name))} as select {columns} from {_quoted(name)}")
    await connection.execute(_SQL["register"], view.name, generation, view.model.model_version, fingerprint(view), name)
    return Standing(generation, name, 0, 0)


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


def delete_sql(view: View[Any], table: str) -> str:
    """Remove the rows of the keys `$1`."""
    return f"delete from {_quoted(table)} where {_quoted_name(view.key)} = any($1::uuid[])"


def load_sql(view: View[Any], table: str) -> str:
    """The rows of the keys `$1`."""
    names = ", ".join(_quoted_name(column.name) for column in columns_of(view))
    return f"select {names} from {_quoted(table)} where {_quoted_name(view.key)} = any($1::uuid[])"


def writer_of(field: Field) -> Callable[[Any], Any]:
    """From a field's Python value to what is stored."""
    if field.many:
        one = _scalar_writer(field)
        return lambda values: None if values is None else json.dumps([one(value) for value in values], default=str)
    return _scalar_writer(field)


def reader_of(field: Field) -> Callable[[Any], Any]:
    """From what is stored to a field's Python value."""
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
    return _same


def _element_reader(field: Field) -> Callable[[Any], Any]:
    """From an element of a JSON list. Decimals, times and ids were written as text."""
    if field.enum is not None:
        return field.enum
    chosen: Callable[[Any], Any] = _FROM_JSON.get(field.kind, field.kind.value)
    return chosen


def _same(value: Any) -> Any:
    return value


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
