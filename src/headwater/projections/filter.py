"""Filters on read models: one tree that compiles to SQL for queries and to a Python predicate for live changes.

Both use two-valued logic, so that they agree on every row. A comparison with a missing value is false. `ne` and `notIn`
are the exact opposites of `eq` and `in`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol, TypeAlias, assert_never

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql


class Row(Protocol):
    """A stored row: its values by column name. It has a column `position`: the position of its last change."""

    def __getitem__(self, column: str, /) -> Any: ...


class ColumnsByName(Protocol):
    """The columns that a filter may name."""

    def __getitem__(self, name: str, /) -> sa.ColumnElement[object]: ...


@dataclass(frozen=True)
class Compare:
    """Compares a column with a value as it is stored: a tuple for `in` and `not_in`, a bool for `is_null`."""

    column: str
    operator: str
    value: Any


@dataclass(frozen=True)
class All:
    """True if every part is true, or there is none."""

    parts: tuple[Filter, ...] = ()


@dataclass(frozen=True)
class Some:
    """True if at least one part is true."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not:
    """True if the part is false."""

    part: Filter


Filter: TypeAlias = Compare | All | Some | Not

EVERYTHING = All()

OPERATORS = ("eq", "ne", "in", "not_in", "lt", "lte", "gt", "gte", "contains", "starts_with", "is_null")

_ORDERED = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}


def to_sql(tree: Filter, columns: ColumnsByName) -> sa.ColumnElement[bool]:
    """Return the condition of a WHERE clause. Values are bound parameters; names come from `columns`."""
    match tree:
        case Compare():
            return _compare_sql(columns[tree.column], tree.operator, tree.value)
        case All():
            return sa.and_(sa.true(), *(to_sql(part, columns) for part in tree.parts))
        case Some():
            return sa.or_(sa.false(), *(to_sql(part, columns) for part in tree.parts))
        case Not():
            return sa.not_(sa.func.coalesce(to_sql(tree.part, columns), False))
        case _:
            assert_never(tree)


def _compare_sql(column: sa.ColumnElement[object], name: str, value: Any) -> sa.ColumnElement[bool]:
    match name:
        case "eq":
            return _known(column, column == value)
        case "ne":
            return column.is_distinct_from(value)
        case "in":
            return _known(column, column == sa.any_(_array(column, value)))
        case "not_in":
            return sa.func.coalesce(column != sa.all_(_array(column, value)), True)
        case "lt" | "lte" | "gt" | "gte":
            return _known(column, _ORDERED[name](column, value))
        case "contains":
            return _known(column, sa.func.strpos(column, value) > 0)
        case "starts_with":
            return _known(column, sa.func.starts_with(column, value))
        case "is_null":
            return column.is_(None) if value else column.is_not(None)
        case _:
            raise ValueError(f"the filter has an unknown operator: {name!r}")


def _known(column: sa.ColumnElement[object], condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    """Make a condition false, not unknown, where the column is null. An index on the column stays usable."""
    return sa.and_(column.is_not(None), condition) if getattr(column, "nullable", True) else condition


def _array(column: sa.ColumnElement[object], values: tuple[Any, ...]) -> sa.ColumnElement[object]:
    # One array parameter: the text of the statement does not depend on the number of values.
    return sa.literal(list(values), postgresql.ARRAY(column.type))


def to_predicate(tree: Filter) -> Callable[[Row], bool]:
    """Return the same condition as a function of a stored row."""
    match tree:
        case Compare():
            return _compare(tree.column, tree.operator, tree.value)
        case All():
            every = tuple(map(to_predicate, tree.parts))
            return lambda row: all(part(row) for part in every)
        case Some():
            some = tuple(map(to_predicate, tree.parts))
            return lambda row: any(part(row) for part in some)
        case Not():
            part = to_predicate(tree.part)
            return lambda row: not part(row)
        case _:
            assert_never(tree)


def _compare(column: str, name: str, value: Any) -> Callable[[Row], bool]:
    match name:
        case "eq":
            return lambda row: bool(row[column] == value)
        case "ne":
            return lambda row: bool(row[column] != value)
        case "in":
            return lambda row: row[column] in value
        case "not_in":
            return lambda row: row[column] not in value
        case "lt" | "lte" | "gt" | "gte":
            return _compare_order(column, name, value)
        case "contains":
            return lambda row: row[column] is not None and value in row[column]
        case "starts_with":
            return lambda row: row[column] is not None and row[column].startswith(value)
        case "is_null":
            return lambda row: (row[column] is None) is value
        case _:
            raise ValueError(f"the filter has an unknown operator: {name!r}")


def _compare_order(column: str, name: str, value: Any) -> Callable[[Row], bool]:
    ordered = _ORDERED[name]
    if not isinstance(value, float | Decimal):
        return lambda row: row[column] is not None and ordered(row[column], value)

    def holds(row: Row) -> bool:
        found = row[column]
        if found is None:
            return False
        # PostgreSQL sorts NaN above every number; in Python each comparison with it is false. Only a fold makes one.
        return name in ("gt", "gte") if found != found else ordered(found, value)

    return holds
