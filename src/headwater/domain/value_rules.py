"""The rule for the values of each kind, in the input of commands, in events and in rows alike.

One rule for all three ensures that a value which a command accepts can be logged, stored in a row and read back equal.
A command that breaks it is refused, an event that breaks it is not logged, and a row that breaks it is a failure of its
fold. The limits are those of PostgreSQL and of asyncpg, its driver.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeAlias

from headwater.domain.fields import Field, Kind

Rule: TypeAlias = Callable[[object], str | None]
"""Returns a sentence for clients about the expected value, or None if the value keeps the rule.

A value of another type passes, because msgspec or asyncpg reports it.
"""

MOST_WHOLE_DIGITS = 131_072
MOST_DECIMAL_PLACES = 16_383
"""The limits of PostgreSQL's `numeric`."""

_SHORT = 1_000
"""Characters of a decimal that is within all limits if it has no exponent. The look at the text is fast: it is taken
for each event."""

_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)

_NO_TEXT = "Expected text without NUL characters and lone surrogates"
_TIMES = "Expected a time after 0001-01-01T00:00:00Z and before 9999-12-31T23:59:59.999999Z"


def rule_of(field: Field) -> Rule | None:
    """Return the rule of a field's values, or of the elements of its list; None if all values of its Python type can be
    stored as they are."""
    return _RULES.get(field.kind)


def broken_rule(field: Field, value: object) -> tuple[tuple[str, ...], str] | None:
    """Return the place where a field's value breaks the rule of its kind, and a sentence about it; None if it keeps it.

    The place is the field's name, and the index of the element where the field is a list.
    """
    rule = _RULES.get(field.kind)
    if rule is None or value is None:
        return None
    if not field.many:
        complaint = rule(value)
        return None if complaint is None else ((field.name,), complaint)
    if isinstance(value, list | tuple):
        for index, element in enumerate(value):
            if (complaint := rule(element)) is not None:
                return (field.name, str(index)), complaint
    return None


def require_rule(field: Field) -> Callable[[object], object] | None:
    """Return a function that returns a value of the field, or raises ValueError if it breaks the rule.

    None where every value of the Python type is stored as it is. A list is given as its elements, one at a time.
    """
    rule = _RULES.get(field.kind)
    if rule is None:
        return None

    def required(value: object) -> object:
        if value is not None and (complaint := rule(value)) is not None:
            raise ValueError(f"{field.name}: {complaint}, not {shortened(value)}")
        return value

    return required


def shortened(value: object) -> str:
    """Return the value's repr, shortened. PostgreSQL can store the repr even of a text that it cannot store."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(value: object) -> str | None:
    if not isinstance(value, str):
        return None
    if "\0" in value:
        return _NO_TEXT
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return _NO_TEXT
    return None


def _whole(value: object) -> str | None:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "Expected a whole number of at most 64 bits"
    return None


def _float(value: object) -> str | None:
    try:
        finite = not isinstance(value, float | int) or math.isfinite(value)
    except OverflowError:  # an int too large for a float
        finite = False
    return None if finite else "Expected a finite number"


def _decimal(value: object) -> str | None:
    if not isinstance(value, Decimal):
        return None
    text = str(value)
    if len(text) <= _SHORT and "E" not in text and "n" not in text and "N" not in text:
        return None  # a short number in plain digits: neither an infinity, nor NaN, nor beyond a limit
    if not value.is_finite():
        return "Expected a finite decimal"
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)  # finite
    if value and value.adjusted() >= MOST_WHOLE_DIGITS:  # asyncpg would store 0
        return f"Expected at most {MOST_WHOLE_DIGITS} digits before the decimal point"
    if exponent < -MOST_DECIMAL_PLACES:
        return f"Expected at most {MOST_DECIMAL_PLACES} decimal places"
    return None


def complaint_about_time(value: object) -> str | None:
    """Return a sentence for clients about a time that breaks the rule, or None."""
    # Without a time zone, the stored moment would depend on the machine. asyncpg stores the first and the last moment
    # of `datetime` as PostgreSQL's infinities, which it does not read back as they were.
    if not isinstance(value, datetime):
        return None
    if value.tzinfo is UTC and 1 < value.year < 9999:
        return None
    if value.tzinfo is None or value.utcoffset() is None:
        return "Expected a time with a time zone, such as UTC"
    if 1 < value.year < 9999:
        return None
    try:
        moment = value.astimezone(UTC)
    except OverflowError:  # beyond the years that UTC has here
        return _TIMES
    return None if _EARLIEST < moment < _LATEST else _TIMES


_RULES: dict[Kind, Rule] = {
    Kind.TEXT: _text,
    Kind.INT: _whole,
    Kind.FLOAT: _float,
    Kind.DECIMAL: _decimal,
    Kind.TIME: complaint_about_time,
}
