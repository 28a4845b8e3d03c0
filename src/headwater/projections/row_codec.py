"""Converts between the Python values of a read model and the values of its columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar

from headwater.domain.canonical_values import canonical_form_of
from headwater.domain.fields import Field, Kind
from headwater.domain.read_model import ReadModel, View
from headwater.domain.value_rules import require_rule, rule_of
from headwater.projections.filter import Row

M = TypeVar("M", bound=ReadModel)
T = TypeVar("T")

_FROM_JSON: dict[Kind, Callable[[str], Any]] = {Kind.TIME: datetime.fromisoformat, Kind.DATE: date.fromisoformat}


class ModelRow(Protocol):
    """A row as an instance of its read model, with the position of its last change."""

    @property
    def model(self) -> ReadModel | None: ...

    @property
    def position(self) -> int: ...


class RowCodec(Generic[M]):
    """Converts the rows of one read model. `columns`: each field with the function that converts its values."""

    def __init__(self, view: View[M]) -> None:
        self.columns = [(each, writer_of(each)) for each in view.fields]
        self._arrays = [(attrgetter(each.name), array_writer_of(each)) for each in view.fields]
        self.names = [*(each.name for each in view.fields), "position"]
        self.read = model_reader(view)

    def arrays(self, rows: Sequence[ModelRow]) -> list[list[object]]:
        """Return one array a column, `position` last, as `row_statements` takes them. No model may be None.

        Raises:
            Exception: a fold returned a value that its field cannot have.
        """
        models = [row.model for row in rows]
        arrays = [write(list(map(read, models))) for read, write in self._arrays]
        return [*arrays, [row.position for row in rows]]

    def stored(self, model: M, position: int) -> dict[str, Any]:
        """Return a row as PostgreSQL would return it, by column."""
        return {each.name: write(getattr(model, each.name)) for each, write in self.columns} | {"position": position}


def model_reader(view: View[M]) -> Callable[[Row], M]:
    """Return a function from a stored row to the read model."""
    readers = [(each.name, reader_of(each)) for each in view.fields]
    model = view.model
    return lambda row: model(**{name: read(row[name]) for name, read in readers})


def writer_of(field: Field) -> Callable[[Any], Any]:
    """Return a function from a field's Python value to its column's value. It raises ValueError for a value that
    breaks the rule of its kind."""
    one = _scalar_writer(field)
    if field.many:
        return lambda values: None if values is None else json.dumps([one(value) for value in values], default=str)
    return one


def array_writer_of(field: Field) -> Callable[[list[Any]], list[Any]]:
    """Return a function from many of a field's Python values to its column's values: as `writer_of`, but faster."""
    rule, one = rule_of(field), writer_of(field)
    if field.many or field.kind is Kind.ENUM:
        return lambda values: [one(value) for value in values]
    if rule is None:
        return _unchanged
    # Nearly always, all values keep the rule.
    return lambda values: [one(value) for value in values] if any(map(rule, values)) else values


def reader_of(field: Field) -> Callable[[Any], Any]:
    """Return a function from a column's value to its field's Python value."""
    read, canonical = _reader_of(field), canonical_form_of(field)
    # PostgreSQL returns every other column in canonical form. asyncpg reads a decimal with many zeros as an exponent.
    if canonical is None or not (field.many or field.kind is Kind.DECIMAL):
        return read
    return lambda stored: canonical(read(stored))


def _reader_of(field: Field) -> Callable[[Any], Any]:
    if field.many:
        one = _element_reader(field)
        return lambda text: None if text is None else [one(value) for value in json.loads(text)]
    if field.enum is not None:
        chosen = field.enum
        return lambda value: None if value is None else chosen(value)
    return _unchanged


def _scalar_writer(field: Field) -> Callable[[Any], Any]:
    if field.kind is Kind.ENUM:
        return lambda member: None if member is None else member.value
    return require_rule(field) or _unchanged


def _element_reader(field: Field) -> Callable[[Any], Any]:
    """Return a function from an element of a JSON list. Decimals, times and ids are text there."""
    if field.enum is not None:
        return field.enum
    chosen: Callable[[Any], Any] = _FROM_JSON.get(field.kind, field.kind.value)
    return chosen


def _unchanged(value: T) -> T:
    return value
