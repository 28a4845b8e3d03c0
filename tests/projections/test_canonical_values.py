"""A fold sees the same values of its row, whether the row was in memory or in the table."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import asyncpg
import msgspec
import pytest
from msgspec import field
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, Park, ReadModel, Recorded, View
from headwater.consumers.loop import LoopSettings, Ports
from headwater.domain.row_fold import fold_of
from headwater.eventstore.log import Append, Log, append
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database
from headwater.projections.generations import prepare, rebuild
from headwater.projections.history import History
from headwater.projections.projector import Projector
from headwater.projections.rebuild import BuildSettings, Rebuild
from headwater.projections.verify import Verifier
from headwater.testing import folded, recorded

BERLIN = ZoneInfo("Europe/Berlin")
INDIA = timezone(timedelta(hours=5, minutes=30))
LATE = datetime(2026, 1, 1, 0, 30, tzinfo=INDIA)


class Give(Command):
    cup_id: UUID


class Given(Event):
    cup_id: UUID
    amount: Decimal
    at: datetime


class Shown(Event):
    cup_id: UUID


def decide(command: Give, state: None) -> list[Given | Shown]:
    return [Shown(cup_id=command.cup_id)]


def evolve(state: None, event: Given | Shown) -> None:
    return None


class Cup(ReadModel, key="cup_id"):
    """shown: the previous row as the fold saw it."""

    cup_id: UUID
    amount: Decimal
    at: datetime
    day: date
    share: float
    maybe_amount: Decimal | None = None
    maybe_at: datetime | None = None
    amounts: list[Decimal] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    days: list[date] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    shown: str = ""


def fold(row: Cup | None, event: Recorded[Given | Shown]) -> Cup | None:
    match event.data:
        case Given(cup_id=cup_id, amount=amount, at=at):
            return Cup(
                cup_id=cup_id,
                amount=amount,
                at=at,
                day=at,  # a datetime is a date
                share=1,  # and an int a float
                amounts=[amount, Decimal("0.50")],
                times=[at.astimezone(BERLIN), at.astimezone(UTC)],
                days=[at],
                shares=[1, 2.5],
            )
        case Shown() if row is not None:
            values = {name: getattr(row, name) for name in Cup.__struct_fields__ if name not in ("cup_id", "shown")}
            return Cup(cup_id=row.cup_id, **values, shown=repr(list(values.values())))
        case _:
            return row


cups = Decider(category="cup", key="cup_id", initial=None, decide=decide, evolve=evolve)
view = View(Cup, fold, on_failure=Park())
app = App([Feature([cups], [view])])

AMOUNTS = {
    "1E+2": "100",
    "-1.50E+3": "-1500",
    "1E+40": "1" + "0" * 40,
    "12.50": "12.50",
    "1E-7": "1E-7",
    "-0.00": "0.00",
    "-0": "0",
    "0E+3": "0",
}


def shown_of(amount: str) -> str:
    """Return what a fold sees of a cup that was given this amount at LATE."""
    at, number = LATE.astimezone(UTC), Decimal(AMOUNTS[amount])
    return repr(
        [number, at, LATE.date(), 1.0, None, None, [number, Decimal("0.50")], [at, at], [LATE.date()], [1.0, 2.5]]
    )


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with Database(dsn, pool_size=3) as database:
        yield database


def unchecked(event: Given | Shown) -> tuple[str, int, str]:
    """Return an event as the log stores it, even if its values break the rules of their kinds."""
    data = msgspec.json.Encoder(decimal_format="string").encode(event).decode()
    return event.__declared__.name, event.__declared__.version, data


async def write(connection: asyncpg.Connection, *events: Given | Shown) -> int:
    done = await append(
        connection,
        [Append(uuid4(), e.cup_id, "cup", None, [unchecked(e)], uuid4()) for e in events],
    )
    return done[-1].position


async def projected(database: Database, connection: asyncpg.Connection, cache: int, *events: Given | Shown) -> None:
    """Project each event in a batch of its own."""
    log = Log(database.pool, app.domain.codec)
    projector = Projector(Ports(database, log, Positions()), view, LoopSettings(poll=0.05, batch=1, cache=cache))
    task = asyncio.create_task(projector.run(await prepare(connection, view)))
    try:
        head = await write(connection, *events)
        await until(lambda: projector.progress.position == head)
    finally:
        task.cancel()
        await asyncio.wait([task])


async def built(database: Database, connection: asyncpg.Connection, cache: int) -> None:
    """Build the next generation, and write after each event."""
    log = Log(database.pool, app.domain.codec, page=1)
    await Rebuild(database, log, view, settings=BuildSettings(cache=cache, events=1)).build(
        await rebuild(connection, view)
    )


async def rows(connection: asyncpg.Connection) -> dict[UUID, str]:
    return {row["cup_id"]: row["shown"] for row in await connection.fetch("select cup_id, shown from read.cup")}


def given(keys: dict[str, UUID]) -> list[Given | Shown]:
    return [
        *(Given(cup_id=key, amount=Decimal(amount), at=LATE) for amount, key in keys.items()),
        *(Shown(cup_id=key) for key in keys.values()),
    ]


@pytest.mark.parametrize("cache", [0, 1000])
async def test_a_fold_sees_the_stored_values_even_of_a_row_in_memory(
    database: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, cache: int
) -> None:
    keys = {amount: uuid4() for amount in AMOUNTS}
    expected = {key: shown_of(amount) for amount, key in keys.items()}
    events = given(keys)
    await projected(database, connection, cache, *events)
    assert await rows(connection) == expected

    log = Log(database.pool, app.domain.codec)
    report = await Verifier(log, view, stream_of=app.domain.stream_of(view)).live(database, None)
    assert (report.checked, report.differences) == (len(keys), [])
    for key in keys.values():
        past: Any = await History(app.domain, view, log, database.pool).row(key, len(events))
        assert past["shown"] == expected[key]

    await connection.execute("update read.cup_1 set shown = 'another'")
    await built(database, connection, cache)
    assert await rows(connection) == expected


def test_folded_of_the_testing_module_shows_the_same_values() -> None:
    key = uuid4()
    row = folded(view, [recorded(each) for each in given({"1E+2": key})])
    assert row is not None
    assert row.shown == shown_of("1E+2")


async def test_a_number_beyond_postgresqls_range_counts_as_a_failed_fold(
    database: Database, connection: asyncpg.Connection
) -> None:
    largest, too_large, cup = Decimal("1E+131071"), Decimal("1E+131072"), uuid4()
    await projected(
        database,
        connection,
        0,
        Given(cup_id=cup, amount=largest, at=LATE),
        Given(cup_id=cup, amount=too_large, at=LATE),
    )
    assert await connection.fetchval("select amount = 10::numeric ^ 131071 from read.cup where cup_id = $1", cup)
    [(position, error)] = await connection.fetch("select position, error from headwater.dead_letters")
    assert (position, error.splitlines()[0]) == (
        2,
        "ValueError: amount: Expected at most 131072 digits before the decimal point, not Decimal('1E+131072')",
    )


def test_a_row_in_canonical_form_is_returned_as_the_same_object() -> None:
    at = LATE.astimezone(UTC)
    cup = Cup(cup_id=uuid4(), amount=Decimal("1.50"), at=at, day=at.date(), share=0.5, times=[at], amounts=[Decimal(1)])

    def kept(row: Cup | None, event: Recorded[Shown]) -> Cup:
        return cup

    assert fold_of(View(Cup, kept))(cup.cup_id, None, recorded(Shown(cup_id=cup.cup_id))) is cup
