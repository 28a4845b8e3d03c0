"""Filter inputs: one of each kind of value, and one of each read model. They become `headwater.filter` trees."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import strawberry

from headwater.errors import BadUserInput
from headwater.fields import Field, Kind
from headwater.filter import EVERYTHING, All, Compare, Filter, Not, Some
from headwater.graphql.building import graphql_enum, new_class
from headwater.names import camel
from headwater.view import View

_EQUALITY = ("eq", "ne", "in", "not_in")
_ORDER = ("lt", "lte", "gt", "gte")
_TEXT = ("contains", "starts_with")

_KINDS: dict[Kind, tuple[str, Any, tuple[str, ...]]] = {
    Kind.UUID: ("UUIDFilter", UUID, _EQUALITY),
    Kind.TEXT: ("StringFilter", str, (*_EQUALITY, *_TEXT, *_ORDER)),
    Kind.INT: ("IntFilter", int, (*_EQUALITY, *_ORDER)),
    Kind.FLOAT: ("FloatFilter", float, (*_EQUALITY, *_ORDER)),
    Kind.BOOL: ("BooleanFilter", bool, ("eq", "ne")),
    Kind.DECIMAL: ("DecimalFilter", Decimal, (*_EQUALITY, *_ORDER)),
    Kind.TIME: ("DateTimeFilter", datetime, (*_EQUALITY, *_ORDER)),
    Kind.DATE: ("DateFilter", date, (*_EQUALITY, *_ORDER)),
}
_LARGEST_LIST = 1_000
_DEEPEST = 8


class Filters:
    """The filter inputs of one schema, each made once."""

    def __init__(self) -> None:
        self._of_kind: dict[Any, type[Any]] = {}

    def of(self, view: View[Any]) -> type[Any]:
        """`AccountFilter`: a filter for each column, and `and`, `or`, `not`. Several together must all hold."""
        cls = new_class(f"{view.name}Filter")
        for each in _filterable(view):
            cls.__annotations__[each.name] = self._column(each) | None
            setattr(cls, each.name, strawberry.UNSET)
        for name, kind in (("and", list[cls]), ("or", list[cls]), ("not", cls)):  # type: ignore[valid-type]  # made here
            cls.__annotations__[f"{name}_"] = kind | None
            setattr(cls, f"{name}_", strawberry.field(name=name, default=strawberry.UNSET))
        return strawberry.input(cls, description=f"Which of {view.name}. What stands side by side must all hold.")

    def _column(self, each: Field) -> Any:
        if each.enum is not None:
            return self._make(each.enum, f"{each.enum.__name__}Filter", graphql_enum(each.enum), _EQUALITY)
        return self._make(each.kind, *_KINDS[each.kind])

    def _make(self, key: Any, name: str, value: Any, operators: tuple[str, ...]) -> type[Any]:
        if key not in self._of_kind:
            cls = new_class(name)
            for operator in operators:
                cls.__annotations__[f"{operator}_"] = (list[value] if operator in ("in", "not_in") else value) | None
                setattr(cls, f"{operator}_", strawberry.field(name=camel(operator), default=strawberry.UNSET))
            cls.__annotations__["is_null_"] = bool | None
            cls.is_null_ = strawberry.field(name="isNull", default=strawberry.UNSET)
            self._of_kind[key] = strawberry.input(cls)
        return self._of_kind[key]


def _filterable(view: View[Any]) -> list[Field]:
    return [each for each in view.fields if not each.many]


def filter_of(view: View[Any], given: Any, depth: int = 0) -> Filter:
    """The tree of a filter input.

    Raises:
        BadUserInput: an explicit null where a value must stand, a list that is too long, or nesting that is too deep.
    """
    if given is None or given is strawberry.UNSET:
        return EVERYTHING
    if depth > _DEEPEST:
        raise BadUserInput(f"A filter may be nested {_DEEPEST} deep.")
    parts = [
        part for each in _filterable(view) for part in _column_parts(each, _given(getattr(given, each.name), each.name))
    ]
    for name, combine in (("and", All), ("or", Some)):
        inner = _given(getattr(given, f"{name}_"), name)
        if inner is not strawberry.UNSET:
            parts.append(combine(tuple(filter_of(view, each, depth + 1) for each in inner)))
    inner = _given(given.not_, "not")
    if inner is not strawberry.UNSET:
        parts.append(Not(filter_of(view, inner, depth + 1)))
    return All(tuple(parts))


def _column_parts(each: Field, comparisons: Any) -> list[Filter]:
    if comparisons is strawberry.UNSET:
        return []
    given: Mapping[str, Any] = {name.rstrip("_"): value for name, value in vars(comparisons).items()}
    return [
        Compare(each.name, operator, _stored(value))
        for operator, value in (
            (name, _given(value, f"{camel(each.name)}.{camel(name)}")) for name, value in given.items()
        )
        if value is not strawberry.UNSET
    ]


def _given(value: Any, name: str) -> Any:
    # A null is what a client sends whose variable was not set: taken as "no filter" it would show everything.
    if value is None:
        raise BadUserInput(f"filter: {name} is null. Leave it out, or ask with isNull.")
    return value


def _stored(value: Any) -> Any:
    """A value as it is stored."""
    if isinstance(value, list):
        if len(value) > _LARGEST_LIST:
            raise BadUserInput(f"A list in a filter may hold {_LARGEST_LIST} values.")
        return tuple(map(_stored, value))
    return value.value if isinstance(value, enum.Enum) else value
