"""The one spelling of a value in a row, whether a fold has just given it or it was read from the table.

PostgreSQL keeps of a time the moment and not the zone, of a decimal the digits after the point and not an exponent, of
a date no hours. A fold that sees a row must not see whether it was in memory: what it gives is spelled as it would be
read back.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from headwater.domain.fields import Field, Kind

Spell: TypeAlias = Callable[[Any], Any]
"""From a value to the same one as it is read back; the very object where that is how it is spelled."""

LARGEST = 131_071
"""The power of ten up to which PostgreSQL's numeric goes."""


def spelling_of(field: Field) -> Spell | None:
    """How a field's values are spelled; None where each is read back as it is."""
    spell = _SPELLINGS.get(field.kind)
    if spell is None or not field.many:
        return spell
    return _of_each(spell)


def _of_each(spell: Spell) -> Spell:
    """A list is stored as JSON, and has its values spelled as columns have theirs."""

    def spelled(values: Any) -> Any:
        if values is None:
            return None
        again = [spell(value) for value in values]
        return values if all(map(_is, again, values)) else again

    return spelled


def _is(one: object, other: object) -> bool:
    return one is other


def _time(moment: Any) -> Any:
    """In UTC. One without a zone stays so, and is not stored."""
    if moment is None or moment.tzinfo is UTC or moment.tzinfo is None:
        return moment
    return moment.astimezone(UTC)


def _date(day: Any) -> Any:
    """A datetime is a date, to a type checker, too."""
    return day.date() if isinstance(day, datetime) else day


def _float(number: Any) -> Any:
    """An int will do for a float, to a type checker, too."""
    return float(number) if isinstance(number, int) else number


def _decimal(number: Any) -> Any:
    """Without an exponent above zero, and without a sign before zero; the places after the point stay."""
    if type(number) is not Decimal:
        return None if number is None else _decimal(Decimal(number))
    text = str(number)
    if "E+" in text or "N" in text:
        return _plain(number)
    return number if number or text[0] != "-" else number.copy_abs()


def _plain(number: Decimal) -> Decimal:
    if number.is_nan():
        return Decimal("NaN")
    if not number:
        return Decimal(0)
    if number.adjusted() > LARGEST:  # asyncpg would write a zero
        raise ValueError(f"{number} is too large for PostgreSQL, which takes numbers below 1E+{LARGEST + 1}")
    return Decimal(f"{number:f}")


_SPELLINGS: dict[Kind, Spell] = {
    Kind.TIME: _time,
    Kind.DATE: _date,
    Kind.FLOAT: _float,
    Kind.DECIMAL: _decimal,
}
