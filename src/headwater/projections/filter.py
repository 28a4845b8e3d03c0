"""Filters on read models: one tree that compiles to SQL for queries and to a Python predicate for live changes.

Both use two-valued logic, so that they agree on every row. A comparison with a missing value is false. `ne` and `notIn`
are the exact opposites of `eq` and `in`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeAlias, assert_never

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from headwater.domain.fields import Field, Kind
from headwater.projections.row_codec import Row, getter_of
from headwater.projections.tables import value_type


class ColumnsByName(Protocol):
    """The columns that a filter may name."""

    def __getitem__(self, name: str, /) -> sa.ColumnElement[object]: ...


@dataclass(frozen=True)
class Compare:
    """Compares a column with a value as it is stored: a tuple for `in` and `not_in`, a bool for `is_null`.

    inside: for a value inside the JSON of the column, the column's field and the fields that lead to the value.
    """

    column: str
    operator: str
    value: Any
    inside: tuple[Field, ...] = ()


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
            return _compare_sql(found_in(columns, tree.column, tree.inside), tree.operator, tree.value)
        case All():
            return sa.and_(sa.true(), *(to_sql(part, columns) for part in tree.parts))
        case Some():
            return sa.or_(sa.false(), *(to_sql(part, columns) for part in tree.parts))
        case Not():
            return sa.not_(sa.func.coalesce(to_sql(tree.part, columns), False))
        case _:
            assert_never(tree)


def found_in(columns: ColumnsByName, name: str, inside: Sequence[Field]) -> sa.ColumnElement[Any]:
    """Return a column, or the value inside its JSON to which some fields lead, in the type of the last one."""
    column = columns[name]
    if not inside:
        return column
    leaf = inside[-1]
    text = sa.func.jsonb_extract_path_text(column, *(each.name for each in inside[1:]), type_=sa.Text())
    match leaf.kind:
        case Kind.BYTES:
            return sa.func.decode(text, "base64", type_=sa.LargeBinary())
        case Kind.DURATION:  # PostgreSQL reads no sign before the P of ISO 8601
            interval = value_type(leaf)
            minus = sa.literal(timedelta(0), interval) - sa.cast(sa.func.substr(text, 2, type_=sa.Text()), interval)
            return sa.case((sa.func.starts_with(text, "-"), minus), else_=sa.cast(text, interval))
        case Kind.VALUE:
            return text
        case _:
            return sa.cast(text, value_type(leaf))


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
            return _compare(getter_of(tree.column, tree.inside), tree.operator, tree.value)
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


def _compare(get: Callable[[Row], Any], name: str, value: Any) -> Callable[[Row], bool]:
    match name:
        case "eq":
            return lambda row: bool(get(row) == value)
        case "ne":
            return lambda row: bool(get(row) != value)
        case "in":
            return lambda row: get(row) in value
        case "not_in":
            return lambda row: get(row) not in value
        case "lt" | "lte" | "gt" | "gte":
            return _compare_order(get, name, value)
        case "contains":
            return lambda row: (found := get(row)) is not None and value in found
        case "starts_with":
            return lambda row: (found := get(row)) is not None and found.startswith(value)
        case "is_null":
            return lambda row: (get(row) is None) is value
        case _:
            raise ValueError(f"the filter has an unknown operator: {name!r}")


def _compare_order(get: Callable[[Row], Any], name: str, value: Any) -> Callable[[Row], bool]:
    ordered = _ORDERED[name]
    if not isinstance(value, float | Decimal):
        return lambda row: (found := get(row)) is not None and ordered(found, value)

    def holds(row: Row) -> bool:
        found = get(row)
        if found is None:
            return False
        # PostgreSQL sorts NaN above every number; in Python each comparison with it is false. Only a fold makes one.
        return name in ("gt", "gte") if found != found else ordered(found, value)

    return holds
