"""The canonical form of a value in a row: the form in which PostgreSQL returns it.

PostgreSQL keeps the moment of a time but not its zone, the digits of a decimal but not its exponent, the day of a date
but not its hours, and a zero in a list but not its sign. Rows that a fold returns are brought into this form at once,
so that a fold cannot tell whether its row was read from the table or was still in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from headwater.domain.fields import Field, Kind
from headwater.domain.value_rules import MOST_WHOLE_DIGITS

Canonical: TypeAlias = Callable[[Any], Any]
"""From a value to its canonical form: the same object if it is in that form already."""


def canonical_form_of(field: Field) -> Canonical | None:
    """Return the function that brings a field's values into canonical form; None where every value is in it."""
    canonical = _CANONICAL.get(field.kind)
    if canonical is None or not field.many:
        return canonical
    return _of_each(canonical)


def _of_each(canonical: Canonical) -> Canonical:
    """Return the function for lists: they are stored as JSON, and their elements take the same form as columns."""

    def of_list(values: Any) -> Any:
        if values is None:
            return None
        again = [canonical(value) for value in values]
        return values if all(map(_is, again, values)) else again

    return of_list


def _is(one: object, other: object) -> bool:
    return one is other


def _time(moment: Any) -> Any:
    """In UTC. A time without a zone stays as it is, and is refused when the row is stored."""
    if moment is None or moment.tzinfo is UTC or moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC)


def _date(day: Any) -> Any:
    """As a date. Type checkers accept a datetime where a date is declared."""
    return day.date() if isinstance(day, datetime) else day


def _float(number: Any) -> Any:
    """As a float without a sign before zero. Type checkers accept an int where a float is declared.

    A column keeps the sign of -0.0, but a list does not, since it is stored as JSON.
    """
    if number is None:
        return None
    if not number:
        return number if str(number) == "0.0" else 0.0
    return float(number) if isinstance(number, int) else number


def _decimal(number: Any) -> Any:
    """Without an exponent above zero and without a sign before zero. The decimal places stay."""
    if type(number) is not Decimal:
        return None if number is None else _decimal(Decimal(number))
    text = str(number)
    if "E+" in text:
        return _plain(number)
    return number if number or text[0] != "-" else number.copy_abs()


def _plain(number: Decimal) -> Decimal:
    if not number:
        return Decimal(0)
    if number.adjusted() >= MOST_WHOLE_DIGITS:
        return number  # refused when the row is stored; written out, it could fill the memory
    return Decimal(f"{number:f}")


_CANONICAL: dict[Kind, Canonical] = {
    Kind.TIME: _time,
    Kind.DATE: _date,
    Kind.FLOAT: _float,
    Kind.DECIMAL: _decimal,
}
