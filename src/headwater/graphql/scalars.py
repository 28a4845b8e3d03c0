"""The scalars of the schema. Decimals and positions are strings, so that no client rounds them."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import NewType

import msgspec
import strawberry
from strawberry.types.scalar import ScalarDefinition

from headwater.eventstore.epoch import Place, parse_place

Position = NewType("Position", Place)
JSON = NewType("JSON", object)

_encode = msgspec.json.Encoder(decimal_format="string").encode
_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d(?!\d)", re.ASCII)
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
        if not isinstance(value, str) or not _DAY.match(value):  # Python also reads weeks: 2020-W01-1
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


def parse_clock(value: object) -> time:
    """Parse a time of day without an offset."""
    try:
        if not isinstance(value, str):
            raise TypeError(value)
        clock = time.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise ValueError('Expected a time of day such as "12:00:00"') from error
    if clock.tzinfo is not None:
        raise ValueError("Expected a time of day without an offset")
    return clock


def parse_duration(value: object) -> timedelta:
    """Parse a duration in ISO 8601, of days, hours, minutes and seconds."""
    try:
        if not isinstance(value, str):
            raise TypeError(value)
        return msgspec.convert(value, timedelta)
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        raise ValueError('Expected a duration such as "PT90S"') from error


def spell_duration(value: timedelta) -> str:
    """Format a duration in ISO 8601, in days and seconds."""
    text: str = msgspec.to_builtins(value)
    return text


def parse_bytes(value: object) -> bytes:
    """Parse bytes in base64, of the standard alphabet, with padding."""
    try:
        if not isinstance(value, str):
            raise TypeError(value)
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError("Expected bytes in base64") from error


def spell_bytes(value: bytes) -> str:
    """Format bytes in base64."""
    return base64.b64encode(value).decode()


def spell_json(value: object) -> msgspec.Raw:
    """Return JSON as the transports insert it: stored JSON text unchanged, or the JSON of a dict."""
    return msgspec.Raw(value if isinstance(value, str | bytes) else _encode(value))


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
        serialize=spell_json,
    ),
    time: strawberry.scalar(
        name="Time",
        description='A time of day without an offset, such as "12:00:00".',
        serialize=time.isoformat,
        parse_value=parse_clock,
    ),
    timedelta: strawberry.scalar(
        name="Duration",
        description='A duration in ISO 8601, such as "PT90S".',
        serialize=spell_duration,
        parse_value=parse_duration,
    ),
    bytes: strawberry.scalar(
        name="Base64", description="Bytes in base64.", serialize=spell_bytes, parse_value=parse_bytes
    ),
}
