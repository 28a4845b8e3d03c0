"""The columns of a read model's live generation, which an older or a newer version of the code may have built.

While the next generation is built, new code reads rows of the older version. After the swap, old code that still runs
reads rows of the newer version. Each reads the columns that both versions have. A missing column is an error only for
the query that asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import sqlalchemy as sa

from headwater.domain.graphql_names import field_name
from headwater.domain.read_model import AnyView
from headwater.errors import ReadModelRebuilding
from headwater.postgres import queries
from headwater.projections.key_columns import KeyColumns
from headwater.projections.row_codec import Row
from headwater.projections.tables import SCHEMA, snake_case, table_of, type_of

_SQL = queries.load(__file__)


async def read_live_columns(pool: asyncpg.Pool, view: AnyView) -> LiveColumns:
    """Read the columns of the generation that is live now. All are missing when none is."""
    rows = await pool.fetch(_SQL["columns"], view.name)
    generation = rows[0]["generation"] if rows else 0
    return LiveColumns(view, generation, {row["name"]: (row["type"], row["nullable"]) for row in rows})


class LiveColumns:
    """The columns that the live generation and this version of the code have in common, by name.

    generation: the number of the live generation; 0 when there is none.
    missing: declared columns that the generation does not have, or has with another type.
    unsure: columns that are declared as required, and that the generation allows to be null.
    table: the common columns, for SQLAlchemy.
    key: the columns of the key.
    names: what to insert into the statements of a `.sql` file.
    """

    def __init__(self, view: AnyView, generation: int, existing: Mapping[str, tuple[str, bool]]) -> None:
        declared = table_of(view)
        self.generation = generation
        self.view = view
        types = {column.name: type_of(column) for column in declared.columns}
        self.missing = {name for name, kind in types.items() if name not in existing or existing[name][0] != kind}
        nullable = {name for name, (_, nullable) in existing.items() if nullable}
        self.unsure = {column.name for column in declared.columns if not column.nullable}.intersection(nullable)
        self.table = table_of(view, without=self.missing)
        for column in self.table.columns:
            if type(column.type) is sa.Numeric:
                column.type = sa.Numeric()  # a value to compare with is not rounded to the places of the column
        self.key = KeyColumns(view)
        self.names = {
            "table": f'{SCHEMA}."{snake_case(view.name)}"',
            "is key": self.key.equal(2),
            "among keys": self.key.among(),
            "columns": ", ".join(f'"{column.name}"' for column in self.table.columns),
        }

    def __getitem__(self, name: str) -> sa.ColumnElement[object]:
        """Return a column to filter and order by.

        Raises:
            ReadModelRebuilding: the live generation does not have it.
        """
        self.require(name)
        return self.table.c[name]

    def require(self, name: str) -> None:
        """Raise `ReadModelRebuilding` if the live generation does not have a column."""
        if name in self.missing:
            raise self.error(name)

    def require_key(self) -> None:
        """Raise `ReadModelRebuilding` if the live generation does not have a column of the key."""
        for name in self.key.names:
            self.require(name)

    def rows(self, records: Sequence[asyncpg.Record]) -> Sequence[Row]:
        """Return the records as rows. Reading a missing column of a row raises `ReadModelRebuilding`."""
        if not self.missing and not self.unsure:
            return records
        return [PartialRow(record, self) for record in records]

    def error(self, name: str) -> ReadModelRebuilding:
        """Return the error for a missing column."""
        return ReadModelRebuilding(
            f"{self.view.name}.{field_name(name)} is not in the version of {self.view.name} that is live now; it is"
            " there when the other version is."
        )


class PartialRow:
    """A row of another version of the read model. Reading a column that it lacks raises `ReadModelRebuilding`."""

    def __init__(self, record: asyncpg.Record, live: LiveColumns) -> None:
        self._record = record
        self._live = live

    def __getitem__(self, name: str) -> Any:
        self._live.require(name)
        value = self._record[name]
        if value is None and name in self._live.unsure:
            raise self._live.error(name)
        return value
