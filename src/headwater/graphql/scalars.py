"""The scalars of the schema. Decimals and positions are strings, so that no client rounds them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import NewType

import msgspec
import strawberry
from strawberry.types.scalar import ScalarDefinition

from headwater.eventstore.epoch import Place, parse_place

Position = NewType("Position", Place)
JSON = NewType("JSON", object)

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_LONGEST_DECIMAL = 60


def parse_decimal(value: object) -> Decimal:
    """Parse a decimal number from a string without exponent, or from an integer. Floats are not exact and refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > _LONGEST_DECIMAL or not _DECIMAL.fullmatch(value):
        raise ValueError('Expected a decimal as a string, such as "12.50"')
    try:
        return Decimal(value)
    except InvalidOperation as error:
        raise ValueError("Expected a decimal") from error


def parse_time(value: object) -> datetime:
    """Parse a time in RFC 3339 with an offset."""
    try:
        if not isinstance(value, str):
            raise TypeError(value)
        time = datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise ValueError('Expected a time such as "2026-01-31T12:00:00Z"') from error
    if time.tzinfo is None:
        raise ValueError("Expected a time with an offset, such as Z or +01:00")
    return time.astimezone(UTC)


def spell_time(time: datetime) -> str:
    """Format a time in RFC 3339, in UTC."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_position(value: object) -> Place:
    """Parse a position as the server gave it, or the number of one in the current epoch of the log."""
    place = parse_place(value) if isinstance(value, str) else None
    if place is None:
        raise ValueError('Expected a position as the server gave it, such as "1f0c9a2b-b42", or its number, "42"')
    return place


def spell_decimal(value: Decimal) -> str:
    """Format a decimal in plain digits, without an exponent."""
    return format(value, "f")


SCALARS: dict[object, ScalarDefinition] = {
    Decimal: strawberry.scalar(
        name="Decimal", description="Exact decimal, as a string.", serialize=spell_decimal, parse_value=parse_decimal
    ),
    datetime: strawberry.scalar(
        name="DateTime", description="RFC 3339 with offset, UTC.", serialize=spell_time, parse_value=parse_time
    ),
    Position: strawberry.scalar(
        name="Position",
        description="A place in the log, as opaque text that also says of which epoch of the log it is. "
        "Give it back as it came; the server compares. In commit order.",
        serialize=Place.spell,
        parse_value=parse_position,
    ),
    JSON: strawberry.scalar(
        name="JSON",
        description="Any JSON value.",
        # The stored JSON text. The transports encode results with msgspec, which inserts it unchanged.
        serialize=msgspec.Raw,
    ),
}
