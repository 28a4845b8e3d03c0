"""Converts between the Python values of a read model and the values of its columns."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from headwater.domain.canonical_values import canonical_form_of
from headwater.domain.fields import Field, Kind, decimals_of
from headwater.domain.graphql_names import field_name
from headwater.domain.read_model import ReadModel, View
from headwater.domain.value_rules import Broken, broken_rules, require_rule, rule_of_column, shortened
from headwater.errors import ReadModelRebuilding

M = TypeVar("M", bound=ReadModel)
T = TypeVar("T")

_encode = msgspec.json.Encoder(decimal_format="string").encode


class Row(Protocol):
    """A stored row: its values by column name. It has a column `position`: the position of its last change."""

    def __getitem__(self, column: str, /) -> Any: ...


class ModelRow(Protocol):
    """A row as an instance of its read model, with the position of its last change."""

    @property
    def model(self) -> ReadModel | None: ...

    @property
    def position(self) -> int: ...


class RowCodec(Generic[M]):
    """Converts the rows of one read model. `columns`: each field with its writer and its reader."""

    def __init__(self, view: View[M]) -> None:
        self.columns = [(each, writer_of(each), reader_of(each)) for each in view.fields]
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
        return {each.name: write(getattr(model, each.name)) for each, write, _ in self.columns} | {"position": position}


def model_reader(view: View[M]) -> Callable[[Row], M]:
    """Return a function from a stored row to the read model."""
    readers = [(each.name, reader_of(each)) for each in view.fields]
    model = view.model
    return lambda row: model(**{name: read(row[name]) for name, read in readers})


def writer_of(field: Field) -> Callable[[Any], Any]:
    """Return a function from a field's Python value to its column's value. It raises ValueError for a value that
    breaks the rule of its kind."""
    if field.is_json:
        return _json_writer(field)
    if field.kind is Kind.ENUM:
        return lambda member: None if member is None else member.value
    return require_rule(field) or _unchanged


def _json_writer(field: Field) -> Callable[[Any], Any]:
    decode = msgspec.json.Decoder(field.annotation).decode

    def write(value: Any) -> str | None:
        if value is None:
            return None
        for place, complaint in _broken(field, value):
            raise ValueError(f"{'.'.join(place)}: {complaint}, not {shortened(value)}")
        data = _encode(value)
        # A struct does not check what it is made of, and a row that its class cannot read would stop the projection.
        if (again := decode(data)) != value:
            raise ValueError(f"{field.name}: it would be read back as {shortened(again)}, not as {shortened(value)}")
        return data.decode()

    return write


def _broken(field: Field, value: Any) -> Iterator[Broken]:
    yield from broken_rules(value, (field.name,))
    for each, number, place in decimals_of(field, value, (field.name,)):
        rule = rule_of_column(each)
        if rule is not None and (complaint := rule(number)) is not None:
            yield place, complaint


def array_writer_of(field: Field) -> Callable[[list[Any]], list[Any]]:
    """Return a function from many of a field's Python values to its column's values: as `writer_of`, but faster."""
    rule, one = rule_of_column(field), writer_of(field)
    if field.is_json or field.kind is Kind.ENUM:
        return lambda values: [one(value) for value in values]
    if rule is None:
        return _unchanged
    # Nearly always, all values keep the rule.
    return lambda values: [one(value) for value in values] if any(map(rule, values)) else values


def reader_of(field: Field) -> Callable[[Any], Any]:
    """Return a function from a column's value to its field's Python value."""
    read, canonical = _reader_of(field), canonical_form_of(field)
    # PostgreSQL returns every other column in canonical form. asyncpg reads a decimal with many zeros as an exponent.
    if canonical is None or not (field.is_json or field.kind is Kind.DECIMAL):
        return read
    return lambda stored: canonical(read(stored))


def client_reader_of(field: Field) -> Callable[[Any], Any]:
    """Return `reader_of` for the rows that clients read, which another version of this code may have written.

    The returned function raises:
        ReadModelRebuilding: the value has the shape of another version.
    """
    read = reader_of(field)
    if not field.is_json:
        return read

    def shown(stored: Any) -> Any:
        try:
            return read(stored)
        except msgspec.ValidationError as error:
            raise ReadModelRebuilding(
                f"{field_name(field.name)} has a value of another version of the read model; it is there when this "
                "version is live."
            ) from error

    return shown


def getter_of(column: str, inside: Sequence[Field]) -> Callable[[Row], Any]:
    """Return a function from a stored row to the stored form of a column's value, or of a value inside it.

    inside: the column's field, and the fields that lead to the value; empty for the column itself.
    """
    if not inside:
        return itemgetter(column)
    read, names = client_reader_of(inside[0]), [each.name for each in inside[1:]]

    def get(row: Row) -> Any:
        value = read(row[column])
        for name in names:
            value = None if value is None else getattr(value, name)
        return value.value if isinstance(value, enum.Enum) else value

    return get


def _reader_of(field: Field) -> Callable[[Any], Any]:
    if field.is_json:
        decode = msgspec.json.Decoder(field.annotation).decode
        return lambda text: None if text is None else decode(text)
    if field.enum is not None:
        chosen = field.enum
        return lambda value: None if value is None else chosen(value)
    return _unchanged


def _unchanged(value: T) -> T:
    return value
