"""The SQL of a read model's key: its columns, and conditions on them. Keys are in stored form: see `domain.row_key`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from headwater.domain.read_model import AnyView
from headwater.domain.row_key import KeyPart, RowKey
from headwater.projections.tables import array_type, columns_of, quoted


class KeyColumns:
    """The columns of a read model's key, in the order of its fields.

    listed: their quoted names, with commas. Numbers of parameters are those of the first one, `$1` by default.
    """

    def __init__(self, view: AnyView) -> None:
        columns = {str(column.name): column for column in columns_of(view)}
        self.key = view.key
        self._columns = [columns[name] for name in view.key.names]
        self.names = view.key.names
        self.quoted = [quoted(name) for name in self.names]
        self.listed = ", ".join(self.quoted)
        self.count = len(self.names)

    def unnest(self, first: int = 1) -> str:
        """Return `unnest(...)` of one array parameter a column, see `arrays`."""
        arrays = (f"${number}::{array_type(column)}[]" for number, column in enumerate(self._columns, first))
        return f"unnest({', '.join(arrays)})"

    def arrays(self, keys: Collection[RowKey]) -> list[list[KeyPart]]:
        """Return one array a column."""
        if self.count == 1:
            return [list(keys)]  # type: ignore[arg-type]  # no key of one column is a tuple
        return [[key[place] for key in keys] for place in range(self.count)]  # type: ignore[index]  # they are tuples

    def among(self, first: int = 1) -> str:
        """Return the condition that a row has one of the keys of `arrays`."""
        if self.count == 1:
            return f"{self.listed} = any(${first}::{array_type(self._columns[0])}[])"
        return f"({self.listed}) in (select * from {self.unnest(first)})"  # noqa: S608 - names that the app declares, quoted

    def equal(self, first: int = 1) -> str:
        """Return the condition that a row has the key whose parts are the parameters."""
        return " and ".join(f"{name} = ${number}" for number, name in enumerate(self.quoted, first))

    def same(self, one: str, other: str) -> str:
        """Return the condition that rows of two tables have the same key."""
        return " and ".join(f"{one}.{name} = {other}.{name}" for name in self.quoted)

    def within(self, after: RowKey | None, upto: RowKey | None) -> tuple[str, list[KeyPart]]:
        """Return the condition that a row's key is in a range, and its parameters. None: the range has no such end."""
        conditions, values = [], list[KeyPart]()
        for sign, end in ((">", after), ("<=", upto)):
            if end is not None:
                numbers = ", ".join(f"${number}" for number in range(len(values) + 1, len(values) + self.count + 1))
                conditions.append(f"({self.listed}) {sign} ({numbers})")
                values += self.key.parts(end)
        return " and ".join(conditions) or "true", values

    def records(self, routed: Sequence[tuple[RowKey, int]]) -> Sequence[tuple[object, ...]]:
        """Return a record of the parts and the position for each key and position."""
        if self.count == 1:
            return routed
        return [(*self.key.parts(key), position) for key, position in routed]
