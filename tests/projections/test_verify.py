"""Verify: a difference between the stored rows and the log is found and reported."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from msgspec import field
from tests.support.commands import clean_environ, run_command
from tests.support.rebuilding import WatchedLog

from bank.accounts.views import account_view
from bank.main import app as bank
from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, View, replace
from headwater.eventstore.log import Append, Log, append
from headwater.postgres.database import Database
from headwater.projections.generations import prepare, rebuild, renew
from headwater.projections.key_range import KeyRange, LogRow
from headwater.projections.rebuild import Rebuild
from headwater.projections.verify import NotVerifiable, Verifier
from headwater.projections.verify_report import Difference, VerifyReport

FILL = (Path(__file__).parents[2] / "benchmarks" / "fill.sql").read_text()
EVENTS, ACCOUNTS = 600, 60


# A read model with every kind of column, whose rows gather events of several streams ----------------------------------


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Note(Command):
    note_id: UUID


class Noted(Event):
    note_id: UUID
    shelf_id: UUID
    price: Decimal
    mood: Mood = Mood.GOOD
    prices: list[Decimal] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    share: float = 0.5
    at: datetime | None = None


class Shelf(ReadModel, key="shelf_id"):
    shelf_id: UUID
    price: Decimal
    mood: Mood
    prices: list[Decimal]
    times: list[datetime]
    shares: list[float]
    share: float
    noted: int
    at: datetime


def decide(command: Note, state: None) -> list[Noted]:
    return []


def evolve(state: None, event: Noted) -> None:
    return None


def fold(row: Shelf | None, event: Recorded[Noted]) -> Shelf | None:
    if event.data.price < 0:
        raise ValueError("below zero")
    if event.data.price == 0:
        return None
    return Shelf(
        shelf_id=event.data.shelf_id,
        price=event.data.price,
        mood=event.data.mood,
        prices=event.data.prices,
        times=event.data.times,
        shares=event.data.shares,
        share=event.data.share,
        noted=(row.noted if row else 0) + 1,
        at=event.data.at or event.recorded_at,
    )


notes = Decider(category="note", key="note_id", initial=None, decide=decide, evolve=evolve)
shelf_view = View(Shelf, fold)
shelves = App([Feature([notes], [shelf_view])])


# Helpers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with Database(dsn, pool_size=3) as database:
        yield database


async def built(database: Database, connection: asyncpg.Connection, app: App, view: View[Any]) -> None:
    """Build the rows from the log."""
    await prepare(connection, view)
    standing = await rebuild(connection, view)
    await Rebuild(database, Log(database.pool, app.domain.codec), view).build(standing)


def unchecked(event: Noted) -> tuple[str, int, str]:
    """Return an event as the log stores it, even if its values break the rules of their kinds."""
    data = msgspec.json.Encoder(decimal_format="string").encode(event).decode()
    return event.__declared__.name, event.__declared__.version, data


async def note(connection: asyncpg.Connection, *events: Noted) -> None:
    stored = [(event.note_id, unchecked(event)) for event in events]
    await append(connection, [Append(uuid4(), key, "note", None, [each], uuid4()) for key, each in stored])


async def fill(connection: asyncpg.Connection) -> None:
    await connection.execute(FILL.format(events=EVENTS, streams=ACCOUNTS))


def verifier(
    database: Database, app: App = bank, view: View[Any] = account_view, *, by_stream: bool = True, **options: Any
) -> Verifier[Any]:
    stream_of = app.domain.stream_of(view) if by_stream else None
    return Verifier(Log(database.pool, app.domain.codec), view, stream_of=stream_of, **options)


def key_of(number: int) -> UUID:
    return UUID(int=number)


def found(report: VerifyReport) -> list[tuple[str, str, str, str]]:
    return sorted((each.key, each.column, str(each.stored), str(each.folded)) for each in report.differences)


HOW: list[dict[str, Any]] = [{}, {"rows": 7}, {"by_stream": False}, {"by_stream": False, "rows": 1}]
"""At once or in ranges of keys; by the stream's id or by the event's route."""


# Differences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_correct_rows_have_no_difference(
    database: Database, connection: asyncpg.Connection, how: dict[str, Any]
) -> None:
    await fill(connection)
    await built(database, connection, bank, account_view)
    report = await verifier(database, **how).live(database, None)
    assert report == VerifyReport("Account", 2, EVENTS, checked=ACCOUNTS)
    report = await verifier(database, **how).live(database, 20)
    assert report == VerifyReport("Account", 2, EVENTS, checked=20)
    assert report.lines() == ["Account: 20 rows compared at position 600: no difference"]


async def test_every_kind_of_column_is_compared_without_a_false_difference(
    database: Database, connection: asyncpg.Connection
) -> None:
    shelf = uuid4()
    await note(
        connection,
        Noted(note_id=uuid4(), shelf_id=uuid4(), price=Decimal("1.50"), share=0.0),
        Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(2), prices=[Decimal("0.10"), Decimal(7)]),
        # PostgreSQL writes 1e23 without an exponent, so JSON returns an integer.
        Noted(note_id=uuid4(), shelf_id=uuid4(), price=Decimal(1), shares=[1e23, 0.1, -5e-324, 1.7976931348623157e308]),
        Noted(
            note_id=uuid4(), shelf_id=shelf, price=Decimal(3), mood=Mood.BAD, times=[datetime(2026, 1, 2, tzinfo=UTC)]
        ),
    )
    await built(database, connection, shelves, shelf_view)
    assert await verifier(database, shelves, shelf_view, by_stream=False).live(database, None) == VerifyReport(
        "Shelf", 2, 4, checked=3
    )
    await connection.execute("update read.shelf set times = '[]', noted = 3 where shelf_id = $1", shelf)
    report = await verifier(database, shelves, shelf_view, by_stream=False).live(database, None)
    assert found(report) == [
        (str(shelf), "noted", "3", "2"),
        (str(shelf), "times", "[]", "['2026-01-02T00:00:00Z']"),
    ]


NAIVE = datetime.fromisoformat("2026-01-02T12:00:00")


NO_ZONE = "Expected a time with a time zone, such as UTC, not datetime.datetime(2026, 1, 2, 12, 0)"
OUT_OF_RANGE = "Expected a time after 0001-01-01T00:00:00Z and before 9999-12-31T23:59:59.999999Z, not datetime"
LAST, FIRST = (end.replace(tzinfo=UTC) for end in (datetime.max, datetime.min))  # noqa: DTZ901 - the zone is added


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ({"at": NAIVE}, f"at: {NO_ZONE}"),
        ({"times": [NAIVE]}, f"times.0: {NO_ZONE.replace('not ', 'not [')}"),
        ({"at": LAST}, f"at: {OUT_OF_RANGE}"),
        ({"times": [LAST]}, f"times.0: {OUT_OF_RANGE.replace('not ', 'not [')}"),
        ({"at": FIRST}, f"at: {OUT_OF_RANGE}"),
    ],
    ids=str,
)
async def test_a_time_that_postgresql_would_change_is_not_stored(
    database: Database, connection: asyncpg.Connection, times: dict[str, Any], why: str
) -> None:
    shelf, other = uuid4(), uuid4()
    await note(
        connection,
        Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(1), **times),
        Noted(note_id=uuid4(), shelf_id=other, price=Decimal(1)),
    )
    await built(database, connection, shelves, shelf_view)
    error = await connection.fetchval("select error from headwater.dead_letters where key = $1::uuid::text", shelf)
    assert error.startswith(f"ValueError: {why}")
    checks = verifier(database, shelves, shelf_view, by_stream=False)
    assert await checks.live(database, None) == VerifyReport("Shelf", 2, 2, checked=1, parked=1)
    await connection.execute("delete from headwater.dead_letters")
    columns = "price, mood, prices, times, shares, share, noted, at, 1"
    await connection.execute(f"insert into read.shelf select $1, {columns} from read.shelf", shelf)
    (difference,) = (await checks.live(database, None)).differences
    assert (difference.key, difference.column, difference.stored) == (str(shelf), "fold", "a row")
    assert why in str(difference.folded)


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_every_change_to_the_stored_rows_is_found(
    database: Database, connection: asyncpg.Connection, how: dict[str, Any]
) -> None:
    await fill(connection)
    await built(database, connection, bank, account_view)
    await connection.execute("update read.account set balance = balance + 1 where account_id = $1", key_of(3))
    await connection.execute("update read.account set currency = 'USD', position = 1 where account_id = $1", key_of(59))
    await connection.execute("delete from read.account where account_id = $1", key_of(7))
    await connection.execute(
        "insert into read.account select $1, owner_id, currency, status, balance, entry_count, opened_at, updated_at, "
        "1 from read.account limit 1",
        extra := UUID(int=2**128 - 1),
    )
    expected = [
        (str(key_of(3)), "balance", "1.09", "0.09"),
        (str(key_of(7)), "row", "no row", "a row"),
        (str(key_of(59)), "currency", "USD", "EUR"),
        (str(key_of(59)), "position", "1", "599"),
        (str(extra), "row", "a row", "no row"),
    ]
    report = await verifier(database, **how).live(database, None)
    assert found(report) == expected
    assert report.checked == ACCOUNTS + 1
    assert report.lines()[0] == "Account: 61 rows compared at position 600: 5 differences"
    assert f"  {key_of(3)}  balance: stored 1.09, folded 0.09" in report.lines()
    verified = "select differences from headwater.projections where name = 'Account' and state = 'live'"
    assert await connection.fetchval(verified) == 5

    sampled = await verifier(database, **how).live(database, 10 * ACCOUNTS)
    assert set(found(sampled)) <= set(expected)
    assert {each.key for each in sampled.differences} >= {str(key_of(3)), str(key_of(59)), str(extra)}


@pytest.mark.parametrize("how", HOW, ids=str)
async def test_all_differences_are_counted_and_the_first_are_listed(
    database: Database, connection: asyncpg.Connection, how: dict[str, Any]
) -> None:
    await fill(connection)
    await built(database, connection, bank, account_view)
    await connection.execute("update read.account set balance = -1, currency = 'USD'")
    report = await verifier(database, **how, listed=5).live(database, None)
    assert (report.found, len(report.differences), report.checked) == (2 * ACCOUNTS, 5, ACCOUNTS)
    heading, *kept, rest = report.lines()
    assert heading == "Account: 60 rows compared at position 600: 120 differences"
    assert kept == [f"  {each}" for each in report.differences]
    assert rest == "  and 115 more"
    verified = "select differences from headwater.projections where name = 'Account' and state = 'live'"
    assert await connection.fetchval(verified) == 2 * ACCOUNTS


def test_a_range_of_keys_drops_the_upper_ones_when_it_holds_too_many_rows() -> None:
    keys = [uuid4() for _ in range(300)]
    part = KeyRange(None, None, 10, LogRow)
    for key in keys * 2:
        part.row(key.int)
        assert len(part.folded) <= 20
    kept = sorted(keys)[: len(part.folded)]
    assert sorted(part.folded) == [key.int for key in kept], "the lowest keys, without a gap"
    assert (part.row(kept[-1].int), part.row(part.upto + 1)) == (part.folded[kept[-1].int], None)


async def test_all_rows_are_verified_in_ranges_even_if_most_were_removed(
    database: Database, connection: asyncpg.Connection
) -> None:
    """Removed rows are not in the table, so that a range turns out to be too large only while the log is folded."""
    gone = [uuid4() for _ in range(300)]
    there = [uuid4() for _ in range(25)]
    noted = [
        Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(price))
        for price, shelf_ids in ((1, gone), (2, there), (0, gone))
        for shelf in shelf_ids
    ]
    await note(connection, *noted)
    await built(database, connection, shelves, shelf_view)
    await connection.execute("update read.shelf set price = 7 where shelf_id = $1", there[3])
    await connection.execute("delete from read.shelf where shelf_id = $1", there[20])
    report = await verifier(database, shelves, shelf_view, by_stream=False, rows=10).live(database, None)
    assert found(report) == sorted([(str(there[3]), "price", "7", "2"), (str(there[20]), "row", "no row", "a row")])
    assert report.checked == 325


async def test_a_sample_finds_a_missing_row(database: Database, connection: asyncpg.Connection) -> None:
    """Its key is drawn from the log, since the table does not have it."""
    await fill(connection)
    await built(database, connection, bank, account_view)
    await connection.execute("delete from read.account")
    report = await verifier(database).live(database, 5)
    assert [(each.column, each.stored, each.folded) for each in report.differences] == [("row", "no row", "a row")] * 5


async def test_a_sample_is_drawn_from_the_whole_log(database: Database, connection: asyncpg.Connection) -> None:
    """Not only from its start, which alone would yield enough keys."""
    await connection.execute(FILL.format(events=1_000, streams=1_000))
    await built(database, connection, bank, account_view)
    await connection.execute("delete from read.account where position > 800")
    assert (await verifier(database).live(database, 200)).found > 0


async def test_rows_and_position_are_read_at_one_moment(database: Database, connection: asyncpg.Connection) -> None:
    """A commit of the projection during the verification causes no difference."""
    shelf = uuid4()
    await note(connection, Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(1)))
    await built(database, connection, shelves, shelf_view)
    log = WatchedLog(database.pool, shelves.domain.codec)

    async def meanwhile() -> None:
        await note(connection, Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(2)))
        await connection.execute("update read.shelf set price = 2, noted = 2, position = 2")
        await connection.execute(
            "update headwater.projections set position = 2 where name = 'Shelf' and state = 'live'"
        )

    log.on_stream = meanwhile  # after the position was read, before the rows are
    assert await Verifier(log, shelf_view).live(database, None) == VerifyReport("Shelf", 2, 1, checked=1)


async def test_a_parked_key_is_no_difference_but_a_failed_fold_is(
    database: Database, connection: asyncpg.Connection
) -> None:
    good, parked = uuid4(), uuid4()
    await note(
        connection,
        *(
            Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(price))
            for shelf, price in ((good, 1), (parked, 1), (parked, -1), (parked, 3))
        ),
    )
    await built(database, connection, shelves, shelf_view)
    checks = verifier(database, shelves, shelf_view, by_stream=False)
    report = await checks.live(database, None)
    assert report == VerifyReport("Shelf", 2, 4, checked=1, parked=1)
    assert report.lines() == ["Shelf: 1 row compared at position 4, 1 parked: no difference"]

    await connection.execute("delete from headwater.dead_letters")
    report = await checks.live(database, None)
    assert report.differences == [
        Difference(str(parked), "fold", "a row", "raised ValueError at position 3: below zero")
    ]


async def test_a_folded_row_that_cannot_be_stored_is_a_difference(
    database: Database, connection: asyncpg.Connection
) -> None:
    """All other rows are still compared."""
    wrong: dict[UUID, dict[str, Any]] = {
        uuid4(): {"mood": "good"},
        uuid4(): {"prices": 5},
        uuid4(): {},
    }

    def fold_wrong(row: Shelf | None, event: Recorded[Noted]) -> Shelf | None:
        made = fold(row, event)
        return replace(made, **wrong[event.data.shelf_id]) if made else None

    await note(connection, *(Noted(note_id=uuid4(), shelf_id=shelf, price=Decimal(1)) for shelf in wrong))
    await built(database, connection, shelves, shelf_view)
    checks = verifier(database, shelves, View(Shelf, fold_wrong), by_stream=False)
    for sample in (None, 100):
        report = await checks.live(database, sample)
        assert (report.checked, len(report.differences)) == (3, 2)
        assert {(each.key, each.column, each.stored) for each in report.differences} == {
            (str(key), "fold", "a row") for key, fields in wrong.items() if fields
        }
        errors = {str(each.folded).partition(":")[0] for each in report.differences}
        assert errors in (
            {"gave what cannot be stored", f"raised TypeError at position {place}"} for place in (1, 2, 3)
        )
        assert any("AttributeError: 'str' object has no attribute 'value'" in line for line in report.lines())


async def test_a_row_of_another_key_counts_as_a_failed_fold(database: Database, connection: asyncpg.Connection) -> None:
    one, other = uuid4(), uuid4()

    def fold_worse(row: Shelf | None, event: Recorded[Noted]) -> Shelf | None:
        after = fold(row, event)
        return replace(after, shelf_id=other) if after is not None and event.data.price == 2 else after

    await note(connection, *(Noted(note_id=uuid4(), shelf_id=one, price=Decimal(price)) for price in (1, 2)))
    await built(database, connection, shelves, shelf_view)
    report = await verifier(database, shelves, View(Shelf, fold_worse), by_stream=False).live(database, None)
    reason = f"the fold returned a row of Shelf {other}, for an event that is routed to {one}"
    assert report.differences == [
        Difference(str(one), "fold", "a row", f"raised RowMisplaced at position 2: {reason}"),
    ]


async def test_a_failed_route_is_reported(database: Database, connection: asyncpg.Connection) -> None:
    await note(connection, Noted(note_id=uuid4(), shelf_id=uuid4(), price=Decimal(1)))
    await built(database, connection, shelves, shelf_view)
    astray = View(Shelf, fold, route=lambda event: "astray")
    expected = r"^the route of Noted at position 1 raised TypeError: .* returned 'astray', which is neither a key"
    with pytest.raises(NotVerifiable, match=expected):
        await verifier(database, shelves, astray, by_stream=False).live(database, None)


async def test_rows_of_another_version_of_the_code_are_not_compared(
    database: Database, connection: asyncpg.Connection
) -> None:
    class Other(ReadModel, name="Shelf", key="shelf_id"):
        shelf_id: UUID

    def fold_other(row: Any, event: Any) -> Any:
        return None

    fold_other.__annotations__ = {"row": Other | None, "event": Recorded[Noted], "return": Other | None}
    await prepare(connection, shelf_view)
    other = View(Other, fold_other)
    await renew(connection, other)
    with pytest.raises(NotVerifiable, match="the rows of Shelf were made by another version of this code"):
        await verifier(database, shelves, other, by_stream=False).live(database, None)


# The command ---------------------------------------------------------------------------------------------------------


async def test_the_verify_command_exits_with_1_if_there_is_a_difference(
    dsn: str, database: Database, connection: asyncpg.Connection
) -> None:
    await fill(connection)
    await built(database, connection, bank, account_view)
    verify = partial(run_command, "verify", DATABASE_URL=dsn)
    right, sampled, wrong_name = await asyncio.gather(
        verify("Account", "--all"), verify("--sample", "9"), verify("Acount")
    )
    assert right[:2] == (0, "Account: 60 rows compared at position 600: no difference\n"), right
    assert sampled[0] == 0, sampled
    assert "Account: 9 rows compared at position 600: no difference\n" in sampled[1]
    assert "User: 0 rows compared at position 0: no difference\n" in sampled[1]
    assert wrong_name[:2] == (1, "")
    await connection.execute("update read.account set balance = 5 where account_id = $1", key_of(3))
    code, out, _ = await verify("--all")
    assert code == 1
    assert f"  {key_of(3)}  balance: stored 5, folded 0.09\n" in out


async def test_the_verify_command_skips_rows_of_another_version_and_exits_with_1(
    dsn: str, database: Database, connection: asyncpg.Connection
) -> None:
    await fill(connection)
    await connection.execute("update headwater.projections set fingerprint = 'another' where name = 'User'")
    sentence = "headwater: the rows of User were made by another version of this code"
    code, out, complaint = await run_command("verify", "--all", DATABASE_URL=dsn)
    assert (code, complaint.startswith(sentence), complaint.count("\n")) == (1, True, 1)
    assert [line.split(":")[0] for line in out.splitlines()] == ["Account", "Transfer", "balance", "transfer_money"]
    code, out, complaint = await run_command("verify", "User", DATABASE_URL=dsn)
    assert (code, out, complaint.startswith(sentence)) == (1, "", True)


async def test_the_exit_code_is_right_even_if_the_output_pipe_is_closed(
    dsn: str, database: Database, connection: asyncpg.Connection
) -> None:
    await fill(connection)
    await built(database, connection, bank, account_view)
    await connection.execute("update read.account set currency = 'USD'")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "headwater", "verify", "--all", "--app", "bank.main:app"]
    environ = clean_environ() | {"DATABASE_URL": dsn}
    process = await asyncio.create_subprocess_exec(*command, stdout=write, stderr=PIPE, env=environ)
    os.close(write)
    _, complaint = await process.communicate()
    assert (process.returncode, complaint) == (1, b"")


@pytest.mark.parametrize("by_stream", [False, True])
async def test_slow_folds_yield_to_the_event_loop(
    database: Database, connection: asyncpg.Connection, by_stream: bool
) -> None:
    """The heartbeat of a worker runs while it verifies a sample before a swap."""
    shelf, turns, seen = uuid4(), 0, set[int]()
    await note(connection, *(Noted(note_id=shelf, shelf_id=shelf, price=Decimal(n + 1)) for n in range(50)))
    await built(database, connection, shelves, shelf_view)

    def fold_slowly(row: Shelf | None, event: Recorded[Noted]) -> Shelf | None:
        seen.add(turns)
        return fold(row, event)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    report = await verifier(database, shelves, View(Shelf, fold_slowly), by_stream=by_stream, slice_seconds=-1.0).live(
        database, 10
    )
    beside.cancel()
    assert (report.checked, report.found) == (1, 0)
    assert len(seen) >= 50
