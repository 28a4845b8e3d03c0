"""Commands, events and rows keep one rule for the values of each kind, which PostgreSQL keeps too."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headwater import Command, Event, ReadModel, Recorded, View
from headwater.domain.messages import InvalidInput
from headwater.domain.row_fold import fold_of
from headwater.domain.serialization import Codec, encode
from headwater.domain.validation import command_from
from headwater.errors import UnreadableEvent
from headwater.projections.generations import prepare
from headwater.projections.row_codec import RowCodec, writer_of
from headwater.projections.row_folder import FoldedRow
from headwater.projections.row_statements import load_sql, upsert_sql
from headwater.testing import recorded

KEY = UUID(int=1)


class Put(Command):
    key: UUID
    text: str | None = None
    whole: int | None = None
    ratio: float | None = None
    amount: Decimal | None = None
    at: datetime | None = None
    day: date | None = None
    texts: list[str] = msgspec.field(default_factory=list)
    wholes: list[int] = msgspec.field(default_factory=list)
    ratios: list[float] = msgspec.field(default_factory=list)
    amounts: list[Decimal] = msgspec.field(default_factory=list)
    times: list[datetime] = msgspec.field(default_factory=list)
    days: list[date] = msgspec.field(default_factory=list)


class WasPut(Event):
    key: UUID
    text: str | None = None
    whole: int | None = None
    ratio: float | None = None
    amount: Decimal | None = None
    at: datetime | None = None
    day: date | None = None
    texts: list[str] = msgspec.field(default_factory=list)
    wholes: list[int] = msgspec.field(default_factory=list)
    ratios: list[float] = msgspec.field(default_factory=list)
    amounts: list[Decimal] = msgspec.field(default_factory=list)
    times: list[datetime] = msgspec.field(default_factory=list)
    days: list[date] = msgspec.field(default_factory=list)


class Row(ReadModel, key="key", name="ValueRow"):
    key: UUID
    text: str | None = None
    whole: int | None = None
    ratio: float | None = None
    amount: Decimal | None = None
    at: datetime | None = None
    day: date | None = None
    texts: list[str] = msgspec.field(default_factory=list)
    wholes: list[int] = msgspec.field(default_factory=list)
    ratios: list[float] = msgspec.field(default_factory=list)
    amounts: list[Decimal] = msgspec.field(default_factory=list)
    times: list[datetime] = msgspec.field(default_factory=list)
    days: list[date] = msgspec.field(default_factory=list)


def fold(row: Row | None, event: Recorded[WasPut]) -> Row:
    return Row(**msgspec.structs.asdict(event.data))  # type: ignore[arg-type]  # type checkers do not see a struct


view = View(Row, fold)
FIELDS = {each.name: each for each in view.fields}

FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)
EAST = timezone(timedelta(hours=2))
TICK = timedelta(microseconds=1)

TEXT = "Expected text without NUL characters and lone surrogates"
TIMES = "Expected a time after 0001-01-01T00:00:00Z and before 9999-12-31T23:59:59.999999Z"
ZONE = "Expected a time with a time zone, such as UTC"

BROKEN: list[tuple[str, Any, str]] = [
    ("text", "a\0", TEXT),
    ("text", "\ud800", TEXT),
    ("whole", 2**63, "Expected a whole number of at most 64 bits"),
    ("whole", -(2**63) - 1, "Expected a whole number of at most 64 bits"),
    ("ratio", float("nan"), "Expected a finite number"),
    ("ratio", float("-inf"), "Expected a finite number"),
    ("amount", Decimal("NaN"), "Expected a finite decimal"),
    ("amount", Decimal("sNaN"), "Expected a finite decimal"),
    ("amount", Decimal("Infinity"), "Expected a finite decimal"),
    ("amount", Decimal("1E+131072"), "Expected at most 131072 digits before the decimal point"),
    ("amount", Decimal("1E-16384"), "Expected at most 16383 decimal places"),
    ("at", FIRST, TIMES),
    ("at", LAST, TIMES),
    ("at", FIRST.replace(tzinfo=EAST), TIMES),
    ("at", FIRST.replace(hour=2, tzinfo=EAST), TIMES),
    ("at", datetime(2026, 1, 2), ZONE),  # noqa: DTZ001 - the mistake
]
LIST_OF = {"text": "texts", "whole": "wholes", "ratio": "ratios", "amount": "amounts", "at": "times"}
PLACES = [
    *(((name,), {name: value}, complaint) for name, value, complaint in BROKEN),
    *(((LIST_OF[name], "0"), {LIST_OF[name]: [value]}, complaint) for name, value, complaint in BROKEN),
]


@pytest.mark.parametrize("place, values, complaint", PLACES, ids=repr)
def test_a_command_whose_value_breaks_a_rule_is_refused_with_the_path_to_the_value(
    place: tuple[str, ...], values: dict[str, Any], complaint: str
) -> None:
    answer = command_from(Put, {"key": KEY} | values)
    assert isinstance(answer, InvalidInput)
    assert tuple(answer.path) == place
    if "digits" not in complaint and "places" not in complaint:  # a command's decimals have narrower bounds
        assert answer.complaint == complaint


@pytest.mark.parametrize("place, values, complaint", PLACES, ids=repr)
def test_an_event_whose_value_breaks_a_rule_is_not_encoded(
    place: tuple[str, ...], values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UnreadableEvent, match=r"^WasPut cannot be written"):
        encode(WasPut(key=KEY, **values))


@pytest.mark.parametrize("place, values, complaint", PLACES, ids=repr)
def test_a_row_whose_value_breaks_a_rule_is_not_written(
    place: tuple[str, ...], values: dict[str, Any], complaint: str
) -> None:
    [(name, value)] = values.items()
    with pytest.raises(ValueError, match=f"^{'.'.join(place)}: {complaint}, not "):
        writer_of(FIELDS[name])(value)


def test_the_error_for_an_event_names_the_list_element_that_breaks_a_rule() -> None:
    with pytest.raises(UnreadableEvent) as caught:
        encode(WasPut(key=KEY, times=[LAST - TICK, LAST]))
    assert str(caught.value) == f"WasPut cannot be written: its field times.1 breaks a rule: {TIMES}"


# ------------------------------------------------------------------------------------------- values that keep the rules

ZONES = st.sampled_from([UTC, EAST, timezone(timedelta(hours=-11, minutes=-30))])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    "whole": st.integers(-(2**63), 2**63 - 1),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "amount": st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**20), max_value=10**20),
    "at": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=ZONES)  # noqa: DTZ001 - it adds the zone
    | st.sampled_from([FIRST + TICK, LAST - TICK]),
    "day": st.dates() | st.sampled_from([date.min, date.max]),
}
VALUES |= {LIST_OF.get(name, "days"): st.lists(values, max_size=3) for name, values in VALUES.items()}
GIVEN = st.fixed_dictionaries({}, optional=VALUES)


@pytest.fixture
async def connection_with_table(connection: asyncpg.Connection) -> tuple[asyncpg.Connection, str]:
    return connection, (await prepare(connection, view)).table


@pytest.fixture
def stored(connection_with_table: tuple[asyncpg.Connection, str]) -> Callable[[Row], Any]:
    connection, table = connection_with_table
    codec = RowCodec(view)

    async def stored(row: Row) -> Any:
        await connection.execute(upsert_sql(view, table), *codec.arrays([FoldedRow(row.key, row, 1, False)]))
        [record] = await connection.fetch(load_sql(view, table), [row.key])
        return codec.read(dict(record))

    return stored


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=GIVEN)
@example(values={"ratio": -0.0, "ratios": [-0.0, 0.0]})
async def test_a_value_that_a_command_accepts_is_logged_stored_in_a_row_and_read_back_equal(
    stored: Callable[[Row], Any], values: dict[str, Any]
) -> None:
    command = command_from(Put, {"key": KEY} | values)
    assert isinstance(command, Put)
    event = WasPut(**msgspec.structs.asdict(command))  # type: ignore[arg-type]  # type checkers do not see a struct
    again = Codec([WasPut]).decode("WasPut", 1, encode(event))
    assert again == event
    row = fold_of(view)(KEY, None, recorded(again))
    assert row is not None
    back = await stored(row)
    assert back == row
    assert repr(back) == repr(row)
