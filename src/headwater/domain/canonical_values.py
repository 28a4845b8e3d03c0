"""The canonical form of a value in a row: the form in which PostgreSQL returns it.

PostgreSQL keeps the moment of a time but not its zone, the digits of a decimal but not its exponent, the day of a date
but not its hours, the entries of a dict but not their order, and a zero in a list but not its sign. A decimal with
declared places is shown with them. The rows of a fold are converted to this form at once, so that
a row in memory is the same as one read from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any, TypeAlias, TypeVar

from headwater.domain.class_keywords import KeywordStruct, replace
from headwater.domain.fields import Field, Kind, fields_of
from headwater.domain.value_rules import MOST_DECIMAL_PLACES, MOST_WHOLE_DIGITS

S = TypeVar("S", bound=KeywordStruct)

Canonical: TypeAlias = Callable[[Any], object]
"""Converts a value to its canonical form. Returns the same object if it already has that form."""


def canonical_form_of(field: Field) -> Canonical | None:
    """Return the function that converts a field's values; None if every value has the canonical form."""
    if field.many:
        return _of_each(_form_of_one(field) or _unchanged, field.sequence)
    return _form_of_one(field)


def _form_of_one(field: Field) -> Canonical | None:
    if field.kind is Kind.DECIMAL and field.exact is not None and field.exact.places is not None:
        return _with_places(field.exact.places)
    if field.inner is not None:
        return _of_dict(canonical_form_of(field.inner) or _unchanged)
    if field.values:
        return _of_values(field)
    return _CANONICAL.get(field.kind)


def _of_each(canonical: Canonical, sequence: type[list[Any] | tuple[Any, ...]]) -> Canonical:
    """Return the function for lists and tuples. They are stored as JSON, with elements in the same form as columns."""

    def of_list(values: Any) -> object:
        if values is None:
            return None
        again = [canonical(value) for value in values]
        if type(values) is sequence and all(map(_is, again, values)):
            return values
        return sequence(again)

    return of_list


def _of_dict(canonical: Canonical) -> Canonical:
    """Return the function for dicts. PostgreSQL orders the keys of JSON by their length in bytes, then by the bytes."""

    def of_dict(values: Any) -> object:
        if not isinstance(values, dict):
            return values
        keys = sorted(values, key=_place_of_key)
        again = [canonical(values[key]) for key in keys]
        if all(map(_is, keys, values)) and all(map(_is, again, values.values())):
            return values
        return dict(zip(keys, again, strict=True))

    return of_dict


def _place_of_key(key: Any) -> tuple[int, bytes]:
    data = str(key).encode(errors="replace")  # storing a row with a key that is no text fails
    return len(data), data


def _of_values(field: Field) -> Canonical:
    """Return the function for nested values."""
    forms = {
        value: [(each.name, form) for each in fields_of(value) if (form := canonical_form_of(each)) is not None]
        for value in field.values
    }
    return lambda value: with_canonical(value, forms.get(type(value), ()))


def with_canonical(struct: S, forms: Iterable[tuple[str, Canonical]]) -> S:
    """Return a struct with the named fields in canonical form; the same object if they already are."""
    changes: dict[str, object] | None = None
    for name, form in forms:
        value = getattr(struct, name)
        canonical = form(value)
        if canonical is not value:
            changes = {**changes, name: canonical} if changes else {name: canonical}
    return replace(struct, **changes) if changes else struct


def _unchanged(value: object) -> object:
    return value


def _is(one: object, other: object) -> bool:
    return one is other


def _time(moment: datetime | None) -> datetime | None:
    """Return the time in UTC. A time without a zone is returned unchanged; storing the row fails."""
    if moment is None or moment.tzinfo is UTC or moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC)


def _date(day: date | None) -> date | None:
    """Return a date. Type checkers accept a datetime where a date is declared."""
    return day.date() if isinstance(day, datetime) else day


def _float(number: float | None) -> float | None:
    """Return a float, with zero unsigned. Type checkers accept an int where a float is declared.

    A column keeps the sign of -0.0, but a list does not, since it is stored as JSON.
    """
    if number is None:
        return None
    if not number:
        return number if str(number) == "0.0" else 0.0
    return float(number) if isinstance(number, int) else number


def _decimal(number: Decimal | int | None) -> Decimal | None:
    """Return a decimal without an exponent above zero, with zero unsigned. The decimal places stay."""
    if type(number) is not Decimal:
        return None if number is None else _decimal(Decimal(number))
    text = str(number)
    if "E+" in text:
        return _plain(number)
    return number if number or text[0] != "-" else number.copy_abs()


def _with_places(places: int) -> Canonical:
    """Return the function for a decimal that is shown with so many places. One that has more is returned unchanged;
    storing the row fails."""
    unit = Decimal((0, (1,), -places))

    def with_places(number: Decimal | int | None) -> Decimal | None:
        number = _decimal(number)
        if number is None or not number.is_finite() or number.as_tuple().exponent == -places:
            return number
        if number.adjusted() >= MOST_WHOLE_DIGITS:
            return number
        padded = number.quantize(unit, context=_EXACTLY)
        return padded if padded == number else number

    return with_places


_EXACTLY = Context(prec=MOST_WHOLE_DIGITS + MOST_DECIMAL_PLACES)


def _plain(number: Decimal) -> Decimal:
    if not number:
        return Decimal(0)
    if number.adjusted() >= MOST_WHOLE_DIGITS:
        return number  # storing the row fails; written out, it could fill the memory
    return Decimal(f"{number:f}")


_CANONICAL: dict[Kind, Canonical] = {
    Kind.TIME: _time,
    Kind.DATE: _date,
    Kind.FLOAT: _float,
    Kind.DECIMAL: _decimal,
}
