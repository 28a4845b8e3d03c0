"""The statements that read and write the rows of one generation's table.

Many rows are written at once, as one array a column: see `RowCodec.arrays`.
"""

from __future__ import annotations

from headwater.domain.read_model import AnyView
from headwater.projections.tables import array_type, columns_of, is_json, quoted, quoted_table


def upsert_sql(view: AnyView, table: str) -> str:
    """Insert or update rows. `$1` is the array of the first column's values, and so on; `position` is the last."""
    columns = columns_of(view)
    names = [quoted(column.name) for column in columns]
    arrays = [f"${place}::{array_type(column)}[]" for place, column in enumerate(columns, 1)]
    casts = [
        f"u.{name}::jsonb" if is_json(column) else f"u.{name}" for name, column in zip(names, columns, strict=True)
    ]
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name != quoted(view.key))
    return (
        f"insert into {quoted_table(table)} ({', '.join(names)}) select {', '.join(casts)} "
        f"from unnest({', '.join(arrays)}) as u({', '.join(names)}) "
        f"on conflict ({quoted(view.key)}) do update set {changes}"
    )


def update_sql(view: AnyView, table: str) -> str:
    """Update existing rows, by the arrays of `upsert_sql`. Needs no index: without one, PostgreSQL scans the table."""
    columns = columns_of(view)
    names = [quoted(column.name) for column in columns]
    arrays = [f"${place}::{array_type(column)}[]" for place, column in enumerate(columns, 1)]
    changes = ", ".join(
        f"{name} = u.{name}::jsonb" if is_json(column) else f"{name} = u.{name}"
        for name, column in zip(names, columns, strict=True)
        if column.name != view.key
    )
    key = quoted(view.key)
    return (
        f"update {quoted_table(table)} as t set {changes} from unnest({', '.join(arrays)}) as u({', '.join(names)}) "
        f"where t.{key} = u.{key}"
    )


def delete_sql(view: AnyView, table: str) -> str:
    """Delete the rows of the keys `$1`."""
    return f"delete from {quoted_table(table)} where {quoted(view.key)} = any($1::uuid[])"


def load_sql(view: AnyView, table: str) -> str:
    """Select the rows of the keys `$1`."""
    return f"{select_sql(view, table)} where {quoted(view.key)} = any($1::uuid[])"


def select_sql(view: AnyView, table: str) -> str:
    """Select all rows."""
    names = ", ".join(quoted(column.name) for column in columns_of(view))
    return f"select {names} from {quoted_table(table)}"
