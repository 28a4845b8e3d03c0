"""The canonical form of a value in a row: the form in which PostgreSQL returns it.

PostgreSQL keeps the moment of a time but not its zone, the digits of a decimal but not its exponent, the day of a date
but not its hours, and a zero in a list but not its sign. The rows of a fold are converted to this form at once, so that
a row in memory is the same as one read from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from headwater.domain.fields import Field, Kind
from headwater.domain.value_rules import MOST_WHOLE_DIGITS

Canonical: TypeAlias = Callable[[Any], object]
"""Converts a value to its canonical form. Returns the same object if it already has that form."""


def canonical_form_of(field: Field) -> Canonical | None:
    """Return the function that converts a field's values; None if every value has the canonical form."""
    canonical = _CANONICAL.get(field.kind)
    if canonical is None or not field.many:
        return canonical
    return _of_each(canonical)


def _of_each(canonical: Canonical) -> Canonical:
    """Return the function for lists. Lists are stored as JSON, with elements in the same form as columns."""

    def of_list(values: list[object] | None) -> list[object] | None:
        if values is None:
            return None
        again = [canonical(value) for value in values]
        return values if all(map(_is, again, values)) else again

    return of_list


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
