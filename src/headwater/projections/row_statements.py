"""The statements that read and write the rows of one generation's table.

Many rows are written at once, as one array a column: see `RowCodec.arrays`.
"""

from __future__ import annotations

from headwater.domain.read_model import AnyView
from headwater.projections.key_columns import KeyColumns
from headwater.projections.tables import array_type, columns_of, is_json, quoted, quoted_table


def upsert_sql(view: AnyView, table: str) -> str:
    """Insert or update rows. `$1` is the array of the first column's values, and so on; `position` is the last."""
    columns = columns_of(view)
    names = [quoted(column.name) for column in columns]
    arrays = [f"${place}::{array_type(column)}[]" for place, column in enumerate(columns, 1)]
    casts = [
        f"u.{name}::jsonb" if is_json(column) else f"u.{name}" for name, column in zip(names, columns, strict=True)
    ]
    key = KeyColumns(view)
    changes = ", ".join(f"{name} = excluded.{name}" for name in names if name not in key.quoted)
    return (
        f"insert into {quoted_table(table)} ({', '.join(names)}) select {', '.join(casts)} "
        f"from unnest({', '.join(arrays)}) as u({', '.join(names)}) "
        f"on conflict ({key.listed}) do update set {changes}"
    )


def update_sql(view: AnyView, table: str) -> str:
    """Update existing rows, by the arrays of `upsert_sql`. Needs no index: without one, PostgreSQL scans the table."""
    columns = columns_of(view)
    names = [quoted(column.name) for column in columns]
    arrays = [f"${place}::{array_type(column)}[]" for place, column in enumerate(columns, 1)]
    changes = ", ".join(
        f"{name} = u.{name}::jsonb" if is_json(column) else f"{name} = u.{name}"
        for name, column in zip(names, columns, strict=True)
        if column.name not in view.key.names
    )
    return (
        f"update {quoted_table(table)} as t set {changes} from unnest({', '.join(arrays)}) as u({', '.join(names)}) "
        f"where {KeyColumns(view).same('t', 'u')}"
    )


def delete_sql(view: AnyView, table: str) -> str:
    """Delete the rows of the keys of `KeyColumns.arrays`."""
    return f"delete from {quoted_table(table)} where {KeyColumns(view).among()}"


def load_sql(view: AnyView, table: str) -> str:
    """Select the rows of the keys of `KeyColumns.arrays`."""
    return f"{select_sql(view, table)} where {KeyColumns(view).among()}"


def select_sql(view: AnyView, table: str) -> str:
    """Select all rows."""
    names = ", ".join(quoted(column.name) for column in columns_of(view))
    return f"select {names} from {quoted_table(table)}"
