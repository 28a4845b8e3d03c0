"""The order of a page, and cursors: text that names the place of a row in an order."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import sqlalchemy as sa

from headwater.domain.fields import Field
from headwater.domain.read_model import AnyView
from headwater.errors import BadUserInput
from headwater.projections.filter import ColumnsByName, found_in
from headwater.projections.row_codec import Row, getter_of


@dataclass(frozen=True)
class Order:
    """One column of an order. Missing values come last when ascending, first when descending.

    inside: for a value inside the JSON of the column, the column's field and the fields that lead to the value.
    """

    column: str
    descending: bool = False
    inside: tuple[Field, ...] = ()

    @property
    def path(self) -> str:
        """The column, or the path to the value inside it, with dots."""
        return ".".join([self.column, *(each.name for each in self.inside[1:])])

    def value_in(self, row: Row) -> Any:
        """Return the value of a stored row that it is ordered by."""
        return getter_of(self.column, self.inside)(row)


def with_key(order: Sequence[Order], key: Sequence[str]) -> tuple[Order, ...]:
    """Return the order with the columns of the key as its last ones, so that no two rows are equal in it."""
    named = {each.column for each in order}
    return (*order, *(Order(column) for column in key if column not in named))


def reverse(order: Sequence[Order]) -> tuple[Order, ...]:
    """Return the opposite order."""
    return tuple(replace(each, descending=not each.descending) for each in order)


def beyond(live: ColumnsByName, order: Sequence[Order], values: Sequence[object]) -> sa.ColumnElement[bool]:
    """Return the condition for rows strictly after the values in the order.

    Such a row is later in the first column, or equal in it and beyond in the others. The condition names each column
    twice, however many columns there are.
    """
    (first, *others), (value, *values) = order, values
    column = found_in(live, first.column, first.inside)
    later = _later(column, value, first.descending)
    if not others:
        return later
    return sa.or_(later, sa.and_(_same(column, value), beyond(live, others, values)))


def cursor_of(order: Sequence[Order], row: Row) -> str:
    """Return the cursor of a row in an order that includes the key."""
    values = [_to_json(each.value_in(row)) for each in order]
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
        fields = [each.inside[-1] if each.inside else kinds.get(each.column) for each in order]
        return [_parse_value(field, value) for field, value in zip(fields, values, strict=True)]
    except (
        *(ValueError, TypeError, AttributeError, ArithmeticError, RecursionError),
        msgspec.ValidationError,
    ) as error:
        raise BadUserInput("The cursor does not belong to this order; start again without it.") from error


def _signature(order: Sequence[Order]) -> str:
    return ",".join(("-" if each.descending else "") + each.path for each in order)


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
        case date() | time():  # datetime is a subclass of date
            return value.isoformat()
        case timedelta():
            return msgspec.to_builtins(value)
        case _:
            return value


def _parse_value(field: Field | None, value: Any) -> object:
    """Return a cursor's value as asyncpg takes it. Only `position` is a column without a field."""
    if value is None:
        return None
    if field is None:
        return int(value)
    if field.enum is not None:
        return field.enum(value).value
    return msgspec.convert(value, field.kind.value)
