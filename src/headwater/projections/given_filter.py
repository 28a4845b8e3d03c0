"""Reads filters and orders as Python programs write them: the words of GraphQL, in the spelling of Python.

{"owner_id": {"eq": owner}, "balance": {"gte": 10}}       both must hold
{"address": {"city": {"eq": "Oslo"}}}                     a value inside a nested one
{"or": [{"status": {"eq": Status.OPEN}}, {"closed_at": {"is_null": False}}]}
["-balance", "account_id"]                                the largest balance first
["address.city"]                                          by a value inside a nested one
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

from headwater.domain.fields import Field, Kind, fields_of, filterable, ordered_paths
from headwater.domain.read_model import AnyView
from headwater.domain.value_rules import rule_of, shortened
from headwater.errors import BadUserInput
from headwater.projections.filter import EVERYTHING, All, Compare, Filter, Not, Some
from headwater.projections.order import Order

T = TypeVar("T")

GivenFilter: TypeAlias = Mapping[str, Any]
"""`{column: {operator: value}}`; for a nested value, `{column: {field: {operator: value}}}`. Entries side by side must
all hold; `and`, `or` and `not` combine filters."""

_EQUALITY = ("eq", "ne", "in", "not_in")
_ORDER = ("lt", "lte", "gt", "gte")
_TEXT = ("contains", "starts_with")
_UNORDERED = (Kind.UUID, Kind.BOOL, Kind.ENUM, Kind.BYTES)


def filter_from(view: AnyView, given: GivenFilter | None) -> Filter:
    """Return the tree of a filter.

    Raises:
        BadUserInput: it names no column or operator of the read model, or a value has another type than the column.
    """
    if given is None:
        return EVERYTHING
    if not isinstance(given, Mapping):
        raise BadUserInput(f'A filter is a mapping such as {{"{view.key.names[0]}": {{"eq": ...}}}}, not {given!r}.')
    columns = {each.name: each for each in filterable(view.fields)}
    parts: list[Filter] = []
    for name, inner in given.items():
        match name:
            case "and" | "or":
                members = tuple(filter_from(view, each) for each in _listed(name, inner))
                parts.append(All(members) if name == "and" else Some(members))
            case "not":
                parts.append(Not(filter_from(view, inner)))
            case _:
                parts.extend(_comparisons((_named(view.name, name, columns),), inner))
    return All(tuple(parts))


def order_from(view: AnyView, given: Sequence[str] | str) -> list[Order]:
    """Return an order from names of columns. A minus before the name makes it descending.

    Raises:
        BadUserInput: there is no such column, rows cannot be ordered by it, or it is named twice.
    """
    paths = {".".join(each.name for each in path): path for path in ordered_paths(view.fields)}
    order: dict[str, Order] = {}
    for text in [given] if isinstance(given, str) else given:
        name = text.removeprefix("-")
        path = _named(view.name, name, paths)
        if name in order:
            raise BadUserInput(f"The order names {name} twice.")
        order[name] = Order(path[0].name, text.startswith("-"), _inside(path))
    return list(order.values())


def _inside(path: tuple[Field, ...]) -> tuple[Field, ...]:
    """Return the fields that lead into a column; none for the column itself."""
    return path if path[1:] else ()


def _named(model: str, name: str, columns: Mapping[str, T]) -> T:
    if name not in columns:
        raise BadUserInput(f"{model} has no column {name!r} for this{_instead(name, columns)}")
    return columns[name]


def _instead(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known)}."


def _listed(name: str, given: object) -> Sequence[GivenFilter]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise BadUserInput(f"{name!r} in a filter takes a list of filters, not {given!r}.")
    return given


def _comparisons(path: tuple[Field, ...], given: object) -> list[Filter]:
    """Return the comparisons with a column, or with a value inside it. path: the fields that lead there."""
    column = path[-1]
    if not isinstance(given, Mapping):
        raise BadUserInput(f'The filter compares {column.name} with {given!r}; write {{"eq": {given!r}}}.')
    if column.kind is Kind.VALUE:
        return _comparisons_inside(path, given)
    allowed = _operators(column)
    for operator in given:
        if operator not in allowed:
            raise BadUserInput(f"{column.name} cannot be compared by {operator!r}{_instead(operator, allowed)}")
    return [
        Compare(path[0].name, operator, _value(column, operator, value), _inside(path))
        for operator, value in given.items()
    ]


def _comparisons_inside(path: tuple[Field, ...], given: Mapping[str, object]) -> list[Filter]:
    value = path[-1].values[0]
    fields = {each.name: each for each in filterable(fields_of(value))}
    parts: list[Filter] = []
    for name, inner in given.items():
        if name == "is_null":
            parts.append(Compare(path[0].name, name, _value(path[-1], name, inner), _inside(path)))
        else:
            parts.extend(_comparisons((*path, _named(value.__name__, name, fields)), inner))
    return parts


def _operators(column: Field) -> Sequence[str]:
    ordered = () if column.kind in _UNORDERED else _ORDER
    return (*_EQUALITY, *ordered, *(_TEXT if column.kind is Kind.TEXT else ()), "is_null")


def _value(column: Field, operator: str, value: object) -> object:
    if operator == "is_null":
        if not isinstance(value, bool):
            raise BadUserInput(f"is_null of {column.name} takes True or False, not {value!r}.")
        return value
    if operator not in ("in", "not_in"):
        return _stored(column, value)
    if isinstance(value, str) or not isinstance(value, Collection):
        raise BadUserInput(f"{operator!r} of {column.name} takes a list, not {value!r}.")
    return tuple(_stored(column, each) for each in value)


def _stored(column: Field, value: object) -> object:
    """Return a value as the column stores it."""
    if value is None:
        raise BadUserInput(f'{column.name} is compared with None; write {{"is_null": True}}.')
    if column.kind is Kind.DECIMAL and isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    wanted = column.enum or column.kind.value
    if not isinstance(value, wanted) or _is_another(value, column.kind):
        raise BadUserInput(f"{column.name} is compared with {value!r}, which is no {wanted.__name__}.")
    rule = rule_of(column)  # not that of the column: a value with more places than it has is just another one
    if rule is not None and (complaint := rule(value)) is not None:
        raise BadUserInput(f"{column.name} is compared with {shortened(value)}. {complaint}.")
    return value.value if isinstance(value, enum.Enum) else value


def _is_another(value: object, kind: Kind) -> bool:
    """True for a value whose class only derives from the Python type of the kind."""
    return (isinstance(value, bool) and kind is not Kind.BOOL) or (isinstance(value, datetime) and kind is Kind.DATE)
