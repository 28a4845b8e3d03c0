"""Filter inputs for each kind of value and each read model, and their translation into filter trees."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import strawberry

from headwater.domain.fields import Field, Kind, fields_of, filterable
from headwater.domain.graphql_names import field_name
from headwater.domain.read_model import ReadModel, View
from headwater.domain.value import Value
from headwater.errors import BadUserInput
from headwater.graphql.building import Annotation, Generated, graphql_enum, new_class
from headwater.projections.filter import EVERYTHING, All, Compare, Filter, Not, Some

_EQUALITY = ("eq", "ne", "in", "not_in")
_ORDER = ("lt", "lte", "gt", "gte")
_TEXT = ("contains", "starts_with")

_KINDS: dict[Kind, tuple[str, type, tuple[str, ...]]] = {
    Kind.UUID: ("UUIDFilter", UUID, _EQUALITY),
    Kind.TEXT: ("StringFilter", str, (*_EQUALITY, *_TEXT, *_ORDER)),
    Kind.INT: ("IntFilter", int, (*_EQUALITY, *_ORDER)),
    Kind.FLOAT: ("FloatFilter", float, (*_EQUALITY, *_ORDER)),
    Kind.BOOL: ("BooleanFilter", bool, ("eq", "ne")),
    Kind.DECIMAL: ("DecimalFilter", Decimal, (*_EQUALITY, *_ORDER)),
    Kind.TIME: ("DateTimeFilter", datetime, (*_EQUALITY, *_ORDER)),
    Kind.DATE: ("DateFilter", date, (*_EQUALITY, *_ORDER)),
    Kind.CLOCK: ("TimeFilter", time, (*_EQUALITY, *_ORDER)),
    Kind.DURATION: ("DurationFilter", timedelta, (*_EQUALITY, *_ORDER)),
    Kind.BYTES: ("Base64Filter", bytes, _EQUALITY),
}
# Writing the SQL of a part blocks the event loop for a fraction of a millisecond.
_MOST_PARTS = 200
_MOST_VALUES = 1_000
_DEEPEST = 8


class Filters:
    """Makes the filter inputs of one schema, each once."""

    def __init__(self) -> None:
        self._of_kind: dict[type[enum.Enum] | Kind, Generated] = {}
        self._of_value: dict[type[Value], Generated] = {}

    def of(self, view: View[ReadModel]) -> Generated:
        """Return `AccountFilter`: a filter for each column, and `and`, `or`, `not`."""
        cls = new_class(f"{view.name}Filter")
        self._add(cls, view.fields)
        for name, kind in (("and", list[cls]), ("or", list[cls]), ("not", cls)):  # type: ignore[valid-type]  # made here
            cls.__annotations__[f"{name}_"] = kind | None
            setattr(cls, f"{name}_", strawberry.field(name=name, default=strawberry.UNSET))
        return strawberry.input(cls, description=f"Selects rows of {view.name}. Entries side by side must all hold.")

    def _add(self, cls: Generated, fields: Iterable[Field]) -> None:
        for each in filterable(fields):
            cls.__annotations__[each.name] = self._column(each) | None
            setattr(cls, each.name, strawberry.UNSET)

    def _column(self, each: Field) -> Generated:
        if each.kind is Kind.VALUE:
            return self._value(each.values[0])
        if each.enum is not None:
            return self._make(each.enum, f"{each.enum.__name__}Filter", graphql_enum(each.enum), _EQUALITY)
        return self._make(each.kind, *_KINDS[each.kind])

    def _value(self, value: type[Value]) -> Generated:
        """Return `AddressFilter`: a filter for each value inside a nested one, and `isNull`."""
        if value not in self._of_value:
            name = value.__declared__.name
            cls = new_class(f"{name}Filter")
            self._add(cls, fields_of(value))
            cls.__annotations__["is_null_"] = bool | None
            cls.is_null_ = strawberry.field(name="isNull", default=strawberry.UNSET)
            described = f"Selects by the values inside {name}. Entries side by side must all hold."
            self._of_value[value] = strawberry.input(cls, description=described)
        return self._of_value[value]

    def _make(self, key: type[enum.Enum] | Kind, name: str, value: Annotation, operators: tuple[str, ...]) -> Generated:
        if key not in self._of_kind:
            cls = new_class(name)
            for operator in operators:
                cls.__annotations__[f"{operator}_"] = (list[value] if operator in ("in", "not_in") else value) | None
                setattr(cls, f"{operator}_", strawberry.field(name=field_name(operator), default=strawberry.UNSET))
            cls.__annotations__["is_null_"] = bool | None
            cls.is_null_ = strawberry.field(name="isNull", default=strawberry.UNSET)
            self._of_kind[key] = strawberry.input(cls)
        return self._of_kind[key]


def filter_of(view: View[ReadModel], given: Any) -> Filter:
    """Return the tree of a filter input.

    Raises:
        BadUserInput: an entry is null, or the filter has too many parts or is nested too deep.
    """
    return _Reading(view).tree(given, 0)


class _Reading:
    """Reads one filter input and counts its parts and values."""

    def __init__(self, view: View[ReadModel]) -> None:
        self._columns = filterable(view.fields)
        self._parts = 0
        self._values = 0

    def tree(self, given: Any, depth: int) -> Filter:
        if given is None or given is strawberry.UNSET:
            return EVERYTHING
        if depth > _DEEPEST:
            raise BadUserInput(f"A filter may be nested {_DEEPEST} deep.")
        parts = self._columns_of(self._columns, given, ())
        for name, combine in (("and", All), ("or", Some)):
            inner = _given(getattr(given, f"{name}_"), name)
            if inner is not strawberry.UNSET:
                parts.append(combine(tuple(self._member(each, depth) for each in inner)))
        inner = _given(given.not_, "not")
        if inner is not strawberry.UNSET:
            parts.append(Not(self._member(inner, depth)))
        return All(tuple(parts))

    def _member(self, given: Any, depth: int) -> Filter:
        self._count_part()
        return self.tree(given, depth + 1)

    def _columns_of(self, fields: Iterable[Field], given: Any, above: tuple[Field, ...]) -> list[Filter]:
        """Return the comparisons of an input. above: the fields that lead to the nested value that it is about."""
        return [
            part
            for each in fields
            if (inner := _given(getattr(given, each.name), _path((*above, each)))) is not strawberry.UNSET
            for part in self._column((*above, each), inner)
        ]

    def _column(self, path: tuple[Field, ...], comparisons: Any) -> list[Filter]:
        last = path[-1]
        if last.kind is Kind.VALUE:
            parts = self._columns_of(filterable(fields_of(last.values[0])), comparisons, path)
            is_null = _given(comparisons.is_null_, f"{_path(path)}.isNull")
            return parts if is_null is strawberry.UNSET else [*parts, self._compare(path, "is_null", is_null)]
        given: Mapping[str, object] = {name.rstrip("_"): value for name, value in vars(comparisons).items()}
        return [
            self._compare(path, operator, _given(value, f"{_path(path)}.{field_name(operator)}"))
            for operator, value in given.items()
            if value is not strawberry.UNSET
        ]

    def _compare(self, path: tuple[Field, ...], operator: str, value: object) -> Filter:
        self._count_part()
        if isinstance(value, list):
            self._values += len(value)
            if self._values > _MOST_VALUES:
                raise BadUserInput(f"The lists of a filter may hold {_MOST_VALUES} values together.")
        return Compare(path[0].name, operator, _stored(value), path if path[1:] else ())

    def _count_part(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise BadUserInput(f"A filter may have {_MOST_PARTS} parts: comparisons, and members of and, or and not.")


def _path(path: Iterable[Field]) -> str:
    return ".".join(field_name(each.name) for each in path)


def _given(value: Any, name: str) -> Any:
    # A client sends null for a variable that it did not set. Taken as "no filter" it would select everything.
    if value is None:
        raise BadUserInput(f"filter: {name} is null. Leave it out, or use isNull.")
    return value


def _stored(value: object) -> object:
    """Return the value in its stored form."""
    if isinstance(value, list):
        return tuple(map(_stored, value))
    return value.value if isinstance(value, enum.Enum) else value
