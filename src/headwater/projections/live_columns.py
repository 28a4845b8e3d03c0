"""The shape of a read model's live generation, which may be of older or newer code than what reads it.

While the next generation is built, new code reads the old rows; after the swap, old code that still runs reads the new
ones. Each reads the columns that both know; what is missing is an error where it is asked for, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import sqlalchemy as sa

from headwater.domain.graphql_names import field_name
from headwater.domain.read_model import View
from headwater.errors import ReadModelRebuilding
from headwater.postgres import queries
from headwater.projections.filter import Row
from headwater.projections.tables import SCHEMA, snake_case, table_of, type_of

_SQL = queries.load(__file__)


async def shape_of(pool: asyncpg.Pool, view: View[Any]) -> Shape:
    """The shape of what is live now; all is lacking when there is nothing."""
    columns = await pool.fetch(_SQL["shape"], view.name)
    generation = columns[0]["generation"] if columns else 0
    return Shape(view, generation, {each["name"]: (each["type"], each["optional"]) for each in columns})


class Partial:
    """A row of another version of the read model: what is not in it is an error when it is asked for, and only then."""

    def __init__(self, record: asyncpg.Record, shape: Shape) -> None:
        self._record = record
        self._shape = shape

    def __getitem__(self, name: str) -> Any:
        if name in self._shape.lacking:
            raise self._shape.error(name)
        value = self._record[name]
        if value is None and name in self._shape.doubtful:
            raise self._shape.error(name)
        return value


class Shape:
    """What of a read model's columns the live generation has.

    lacking: declared columns that are not there, or are of another type. doubtful: those that may be null, though they
    are declared not to be. names: for the statements of a `.sql` file.
    """

    def __init__(self, view: View[Any], generation: int, has: Mapping[str, tuple[str, bool]]) -> None:
        declared = table_of(view)
        self.generation = generation
        self.view = view
        types = {column.name: type_of(column) for column in declared.columns}
        self.lacking = {name for name, kind in types.items() if name not in has or has[name][0] != kind}
        self.doubtful = {
            column.name for column in declared.columns if not column.nullable and has.get(column.name, ("", False))[1]
        }
        self.table = table_of(view, without=self.lacking)
        self.columns = Columns(self)
        self.names = {
            "table": f'{SCHEMA}."{snake_case(view.name)}"',
            "key": f'"{view.key}"',
            "columns": ", ".join(f'"{column.name}"' for column in self.table.columns),
        }

    def rows(self, records: Sequence[asyncpg.Record]) -> Sequence[Row]:
        """Rows as the rest of the code takes them."""
        if not self.lacking and not self.doubtful:
            return records
        return [Partial(record, self) for record in records]

    def error(self, name: str) -> ReadModelRebuilding:
        """Why a column cannot be read."""
        return ReadModelRebuilding(
            f"{self.view.name}.{field_name(name)} is not in the version of {self.view.name} that is live now; it is"
            " there when the other version is."
        )


class Columns:
    """The columns to filter and order by."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def __getitem__(self, name: str) -> sa.ColumnElement[Any]:
        if name in self._shape.lacking:
            raise self._shape.error(name)
        return self._shape.table.c[name]
