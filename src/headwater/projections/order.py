"""The order of a page, and cursors: text that names the place of a row in an order."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from headwater.domain.fields import Field, Kind
from headwater.domain.read_model import AnyView
from headwater.errors import BadUserInput
from headwater.projections.filter import ColumnsByName, Row


@dataclass(frozen=True)
class Order:
    """One column of an order. Missing values come last when ascending, first when descending."""

    column: str
    descending: bool = False


def with_key(order: Sequence[Order], key: str) -> tuple[Order, ...]:
    """Return the order with the key as its last column, so that no two rows are equal in it."""
    if any(each.column == key for each in order):
        return tuple(order)
    return (*order, Order(key))


def reverse(order: Sequence[Order]) -> tuple[Order, ...]:
    """Return the opposite order."""
    return tuple(Order(each.column, not each.descending) for each in order)


def beyond(live: ColumnsByName, order: Sequence[Order], values: Sequence[object]) -> sa.ColumnElement[bool]:
    """Return the condition for rows strictly after the values in the order.

    Such a row is later in the first column, or equal in it and beyond in the others. The condition names each column
    twice, however many columns there are.
    """
    (first, *others), (value, *values) = order, values
    later = _later(live[first.column], value, first.descending)
    if not others:
        return later
    return sa.or_(later, sa.and_(_same(live[first.column], value), beyond(live, others, values)))


def cursor_of(order: Sequence[Order], row: Row) -> str:
    """Return the cursor of a row in an order that includes the key."""
    values = [_to_json(row[each.column]) for each in order]
    text = json.dumps([_signature(order), *values], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def parse_cursor(order: Sequence[Order], cursor: str, view: AnyView) -> list[object]:
    """Return the values of a cursor, one a column of the order.

    Raises:
        BadUserInput: the cursor belongs to another order, or is none.
    """
    kinds = {each.name: each for each in view.fields}
    try:
        signature, *values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if signature != _signature(order) or len(values) != len(order):
            raise ValueError("another order")
        return [_parse_value(kinds.get(each.column), v) for each, v in zip(order, values, strict=True)]
    except (ValueError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise BadUserInput("The cursor does not belong to this order; start again without it.") from error


def _signature(order: Sequence[Order]) -> str:
    return ",".join(("-" if each.descending else "") + each.column for each in order)


def _same(column: sa.ColumnElement[object], value: object) -> sa.ColumnElement[bool]:
    return column.is_(None) if value is None else column == value


def _later(column: sa.ColumnElement[object], value: object, descending: bool) -> sa.ColumnElement[bool]:
    nullable = getattr(column, "nullable", True)
    if descending:
        return column.is_not(None) if value is None else column < value
    if value is None:
        return sa.false()
    return sa.or_(column > value, column.is_(None)) if nullable else column > value


def _to_json(value: object) -> object:
    """Return a stored value in a form that JSON has; `_parse_value` is the inverse."""
    match value:
        case UUID() | Decimal():
            return str(value)
        case date():  # datetime is a subclass
            return value.isoformat()
        case _:
            return value


def _parse_value(field: Field | None, value: Any) -> object:
    """Return a cursor's value as asyncpg takes it. Only `position` is a column without a field."""
    if value is None:
        return None
    kind = Kind.INT if field is None else field.kind
    match kind:
        case Kind.UUID:
            return UUID(value)
        case Kind.DECIMAL:
            return Decimal(value)
        case Kind.TIME:
            return datetime.fromisoformat(value)
        case Kind.DATE:
            return date.fromisoformat(value)
        case Kind.TEXT | Kind.ENUM:
            return str(value)
        case Kind.INT:
            return int(value)
        case Kind.FLOAT:
            return float(value)
        case Kind.BOOL:
            return bool(value)
