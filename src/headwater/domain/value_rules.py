"""The rule for the values of each kind, in the input of commands, in events and in rows alike, however deep they are.

One rule for all three ensures that a value which a command accepts can be logged, stored in a row and read back equal.
A command that breaks it is refused, an event that breaks it is not logged, and a row that breaks it is a failure of its
fold. The limits are those of PostgreSQL and of asyncpg, its driver.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence, Set
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TypeAlias
from uuid import UUID

import msgspec

from headwater.domain.fields import Field, Kind

Rule: TypeAlias = Callable[[object], str | None]
"""Returns a sentence for clients about the expected value, or None if the value keeps the rule.

A value of another type passes, because msgspec or asyncpg reports it.
"""

Broken: TypeAlias = tuple[tuple[str, ...], str]
"""The place of a value that breaks a rule, and a sentence about it."""

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
    """Return the rule of a field's kind; None if all values of its Python type can be stored as they are."""
    return _RULES.get(field.kind)


def broken_rules(value: object, place: tuple[str, ...] = ()) -> Iterator[Broken]:
    """Yield each place inside a value that breaks a rule, with a sentence about it. place: that of the value itself.

    It looks into lists, dicts, sets, tuples, structs and dataclasses. A place is a path of names, indices and keys.
    """
    kind = type(value)
    if kind in _ALWAYS_KEPT:
        return
    rule = _BY_TYPE.get(kind)
    if rule is not None:
        if (complaint := rule(value)) is not None:
            yield place, complaint
    elif isinstance(value, dict):
        for key, inner in value.items():
            if any(True for _ in broken_rules(key)):
                yield place, f"{_NO_TEXT} as keys" if isinstance(key, str) else "Expected keys that can be stored"
            else:
                yield from broken_rules(inner, (*place, str(key)))
    elif isinstance(value, list | tuple | Set):
        for index, element in enumerate(value):
            yield from broken_rules(element, (*place, str(index)))
    elif (names := _names_of(kind)) is not None:
        for name in names:
            yield from broken_rules(getattr(value, name), (*place, name))
    elif not isinstance(value, enum.Enum):
        rule = next((_BY_TYPE[each] for each in kind.__mro__ if each in _BY_TYPE), None)  # of a subclass of a type
        if rule is not None and (complaint := rule(value)) is not None:
            yield place, complaint


def _names_of(kind: type) -> Sequence[str] | None:
    """Return the fields of a struct or a dataclass; None for another type."""
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    fields: dict[str, object] | None = getattr(kind, "__dataclass_fields__", None)
    return None if fields is None else tuple(fields)


def rule_of_column(field: Field) -> Rule | None:
    """Return the rule of a row's values, or of the elements of its list: that of the kind, and the places that an
    `Exact` declares. PostgreSQL would round silently."""
    exact = field.exact
    if exact is None or exact.places is None:
        return rule_of(field)
    places, digits = exact.places, exact.digits

    def rule(value: object) -> str | None:
        complaint = _decimal(value)
        if complaint is not None or not isinstance(value, Decimal):
            return complaint
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)  # finite
        if -exponent > places:
            return f"Expected at most {places} decimal places"
        if value and value.adjusted() >= digits:
            return f"Expected at most {digits} digits before the decimal point"
        return None

    return rule


def require_rule(field: Field) -> Callable[[object], object] | None:
    """Return a function that returns a value of a row's field, or raises ValueError if it breaks the rule.

    None where every value of the Python type is stored as it is. Not for a field whose column is JSON.
    """
    rule = rule_of_column(field)
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


def _clock(value: object) -> str | None:
    if isinstance(value, time) and value.tzinfo is not None:
        return "Expected a time of day without a time zone"
    return None


_RULES: dict[Kind, Rule] = {
    Kind.TEXT: _text,
    Kind.INT: _whole,
    Kind.FLOAT: _float,
    Kind.DECIMAL: _decimal,
    Kind.TIME: complaint_about_time,
    Kind.CLOCK: _clock,
}
_BY_TYPE: dict[type, Rule] = {kind.value: rule for kind, rule in _RULES.items()}
_ALWAYS_KEPT = frozenset((bool, type(None), UUID, date, timedelta, bytes))
