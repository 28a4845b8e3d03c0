"""Projections: rows equal a fold of the log from the beginning, whatever happens to the workers."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from functools import wraps
from typing import Any, TypeAlias, assert_never
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from msgspec.structs import replace
from tests.support.waiting import reached, until

from bank.accounts.domain import Deposit, FreezeAccount, OpenAccount, UnfreezeAccount, Withdraw
from bank.accounts.views import account_view
from bank.main import app as bank
from bank.users.domain import RegisterUser
from bank.users.views import user_view
from headwater import App, Command, Decider, Event, Feature, Park, ReadModel, Recorded, Refusal, Stop, View
from headwater.config import Settings
from headwater.consumers import dead_letters
from headwater.consumers.checkpoint import Generation
from headwater.consumers.loop import Ports
from headwater.domain.failure_policy import OnFailure
from headwater.domain.serialization import stored_form
from headwater.errors import Unavailable
from headwater.eventstore.log import READ_ON_POSITIONS, Append, Log, append
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database
from headwater.projections.generations import prepare, rebuild
from headwater.projections.projector import PROJECTION_LOOP, Projector
from headwater.projections.row_codec import model_reader
from headwater.projections.tables import add_indexes, add_key
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Awaitable[Node]]

QUICK = replace(Settings(), poll_seconds=0.2)


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Write(Command):
    thing_id: UUID


class Written(Event):
    thing_id: UUID
    text: str
    amount: Decimal
    colour: Colour
    day: date
    at: datetime
    yes: bool
    ratio: float
    number: int
    link: UUID
    maybe_text: str | None = None
    maybe_amount: Decimal | None = None
    maybe_colour: Colour | None = None
    maybe_at: datetime | None = None
    texts: list[str] = msgspec.field(default_factory=list)
    amounts: list[Decimal] = msgspec.field(default_factory=list)
    colours: list[Colour] = msgspec.field(default_factory=list)
    days: list[date] = msgspec.field(default_factory=list)
    times: list[datetime] = msgspec.field(default_factory=list)
    links: list[UUID] = msgspec.field(default_factory=list)
    numbers: list[int] = msgspec.field(default_factory=list)
    ratios: list[float] = msgspec.field(default_factory=list)
    flags: list[bool] = msgspec.field(default_factory=list)
    maybe_texts: list[str] | None = None


class Counted(Event):
    thing_id: UUID


class Removed(Event):
    thing_id: UUID


class Poisoned(Event):
    thing_id: UUID


ThingEvent: TypeAlias = Written | Counted | Removed | Poisoned


def decide(command: Write, state: None) -> list[ThingEvent]:
    return [Counted(thing_id=command.thing_id)]


def evolve(state: None, event: ThingEvent) -> None:
    return None


class Tally(ReadModel, key="thing_id"):
    """How often a thing was counted since it was there."""

    thing_id: UUID
    count: int


def fold_tally(row: Tally | None, event: Recorded[Counted | Removed]) -> Tally | None:
    match event.data:
        case Counted():
            return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)
        case Removed():
            return None
        case _:
            assert_never(event.data)


class Everything(ReadModel, key="thing_id", indexes=["text", ("day", "amount")]):
    """A column of each type."""

    thing_id: UUID
    text: str
    amount: Decimal
    colour: Colour
    day: date
    at: datetime
    yes: bool
    ratio: float
    number: int
    link: UUID
    maybe_text: str | None
    maybe_amount: Decimal | None
    maybe_colour: Colour | None
    maybe_at: datetime | None
    texts: list[str]
    amounts: list[Decimal]
    colours: list[Colour]
    days: list[date]
    times: list[datetime]
    links: list[UUID]
    numbers: list[int]
    ratios: list[float]
    flags: list[bool]
    maybe_texts: list[str] | None


def fold_everything(row: Everything | None, event: Recorded[Written]) -> Everything:
    values = {name: getattr(event.data, name) for name in Everything.__struct_fields__}
    return Everything(**values)


class Fragile(ReadModel, key="thing_id"):
    """A read model with a bug."""

    thing_id: UUID
    count: int


def fold_fragile(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
    if isinstance(event.data, Poisoned):
        raise ZeroDivisionError("a bug in the fold")
    return Fragile(thing_id=event.data.thing_id, count=(row.count if row else 0) + 1)


things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)
tally_view = View(Tally, fold_tally)
everything_view = View(Everything, fold_everything)
fragile_view = View(Fragile, fold_fragile, on_failure=Stop())
things_app = App([Feature([things], [tally_view, everything_view])])
fragile_app = App([Feature([things], [fragile_view, tally_view])])


# What the tests say ------------------------------------------------------------------------------------------------


async def write(connection: asyncpg.Connection, *events: Any) -> int:
    """Append events of things; the position of the last."""
    done = await append(
        connection,
        [
            Append(
                uuid4(),
                event.thing_id,
                "thing",
                None,
                [stored_form(event)],
                uuid4(),
            )
            for event in events
        ],
    )
    return done[-1].position


async def folded(
    connection: asyncpg.Connection, app: App, view: View[Any], upto: int | None = None
) -> dict[UUID, tuple[ReadModel, int]]:
    """What a fold of the log from the beginning leaves: each key's row and the position that last changed it."""
    query = "select * from headwater.events where position <= coalesce($1, position) order by position"
    rows: dict[UUID, tuple[ReadModel, int]] = {}
    for record in await connection.fetch(query, upto):
        data = app.domain.codec.decode(record["type"], record["schema_version"], record["data"])
        if not isinstance(data, view.events):
            continue
        key = view.route_of(type(data))(data)
        names = ("position", "stream_id", "version", "recorded_at", "event_id", "command_id", "correlation_id")
        before: Any = rows.pop(key, (None, 0))
        row = view.fold(before[0], Recorded(data, *(record[name] for name in names)))
        if row is not None:
            rows[key] = before if row is before[0] else (row, record["position"])
    return rows


async def stored(connection: asyncpg.Connection, view: View[Any]) -> dict[UUID, tuple[ReadModel, int]]:
    """Each key's row and position, as clients read them."""
    read = model_reader(view)
    records: Any = await connection.fetch(f'select * from read."{view.name.lower()}"')
    return {record[view.key]: (read(record), record["position"]) for record in records}


async def tombstones(connection: asyncpg.Connection, view: View[Any]) -> dict[UUID, int]:
    records = await connection.fetch("select key, position from headwater.tombstones where projection = $1", view.name)
    return {record["key"]: record["position"] for record in records}


async def checkpoint(connection: asyncpg.Connection, view: View[Any]) -> int:
    query = "select position from headwater.projections where name = $1 and state = 'live'"
    return int(await connection.fetchval(query, view.name))


@asynccontextmanager
async def projecting(
    dsn: str,
    app: App,
    view: View[Any],
    *,
    workers: int = 1,
    window: int = READ_ON_POSITIONS,
    clock: Callable[[], float] = time.monotonic,
    **sizes: Any,
) -> AsyncIterator[list[Projector[Any]]]:
    """Projectors of one view, each as if in a process of its own."""
    async with Database(dsn) as database:
        log = Log(database.pool, app.domain.codec, window=window)
        settings = dataclasses.replace(PROJECTION_LOOP, poll=0.05, **sizes)
        projectors = [Projector(Ports(database, log, Positions()), view, settings, clock=clock) for _ in range(workers)]
        async with database.pool.acquire() as connection:
            standing = await prepare(connection, view)
        tasks = [asyncio.create_task(projector.run(standing)) for projector in projectors]
        try:
            yield projectors
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


async def bank_load(node: Node, accounts: Sequence[UUID], commands: int, dice: random.Random) -> None:
    """Random commands on accounts, some of which are refused."""

    async def one(command: Command) -> None:
        with suppress(Refusal):
            await node.dispatcher.execute(command)

    def draw() -> Command:
        account, amount = dice.choice(accounts), Decimal(dice.randrange(1, 5000)) / 100
        match dice.randrange(10):
            case 0:
                return FreezeAccount(account_id=account)
            case 1 | 2:
                return UnfreezeAccount(account_id=account)
            case 3 | 4:
                return Withdraw(account_id=account, amount=amount)
            case _:
                return Deposit(account_id=account, amount=amount)

    await asyncio.gather(*(one(draw()) for _ in range(commands)))


async def bank_accounts(node: Node, count: int) -> list[UUID]:
    user, accounts = uuid4(), [uuid4() for _ in range(count)]
    await node.dispatcher.execute(RegisterUser(user_id=user, email=f"{user}@example.com", name="Ada"))
    await asyncio.gather(
        *(node.dispatcher.execute(OpenAccount(account_id=a, owner_id=user, currency="EUR")) for a in accounts)
    )
    return accounts


# Rows are a fold ---------------------------------------------------------------------------------------------------


async def test_rows_equal_a_fold_of_the_log(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(settings=replace(QUICK, projection_batch=37))
    accounts = await bank_accounts(node, 20)
    for round_ in range(5):
        await bank_load(node, accounts, 150, random.Random(round_))
    head = await node.log.head()
    for view in (user_view, account_view):
        await reached(node.positions, view.name, head)
        assert await stored(connection, view) == await folded(connection, bank, view)
        assert await checkpoint(connection, view) == head
    assert len(await stored(connection, account_view)) == 20
    assert node.supervisor.troubles == {}


@pytest.mark.parametrize("cache", [0, 1, 3, 100])
async def test_the_cache_may_be_smaller_than_the_keys(dsn: str, connection: asyncpg.Connection, cache: int) -> None:
    dice, keys = random.Random(cache), [uuid4() for _ in range(12)]
    events = [(Removed if dice.random() < 0.2 else Counted)(thing_id=dice.choice(keys)) for _ in range(400)]
    async with projecting(dsn, things_app, tally_view, batch=7, cache=cache) as (projector,):
        for place in range(0, 400, 40):
            head = await write(connection, *events[place : place + 40])
            await reached(projector._positions, tally_view.name, head)
        assert len(projector._cache.rows) <= cache
        assert projector.progress.events == 400
    assert await stored(connection, tally_view) == await folded(connection, things_app, tally_view)


async def test_events_of_others_move_the_checkpoint_too(start: Start, connection: asyncpg.Connection) -> None:
    node = await start(settings=QUICK)
    for n in range(3):
        await node.dispatcher.execute(RegisterUser(user_id=uuid4(), email=f"{n}@example.com", name="Ada"))
    await reached(node.positions, account_view.name, 3)
    assert await checkpoint(connection, account_view) == await node.log.head() == 3
    assert await stored(connection, account_view) == {}


async def test_the_checkpoint_moves_through_a_log_in_which_nothing_is_folded(
    dsn: str, connection: asyncpg.Connection
) -> None:
    key = uuid4()
    head = await write(connection, *[Poisoned(thing_id=key)] * 95, Counted(thing_id=key))
    await connection.execute("create table passed (position bigint)")
    await connection.execute(
        "create function note() returns trigger language plpgsql as "
        "$$ begin insert into passed values (new.position); return null; end $$"
    )
    await connection.execute(
        "create trigger note after update of position on headwater.projections for each row execute function note()"
    )
    async with projecting(dsn, things_app, tally_view, window=10) as (projector,):
        await reached(projector._positions, tally_view.name, head)
    query = "select position from passed order by position"
    assert [row["position"] for row in await connection.fetch(query)] == [*range(10, 91, 10), 96]
    assert await stored(connection, tally_view) == {key: (Tally(thing_id=key, count=1), 96)}


# Removal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 1000])
async def test_removed_rows_leave_a_tombstone_until_they_are_there_again(
    dsn: str, connection: asyncpg.Connection, batch: int
) -> None:
    gone, back, kept = uuid4(), uuid4(), uuid4()
    async with projecting(dsn, things_app, tally_view, batch=batch) as (projector,):
        head = await write(connection, *(Counted(thing_id=key) for key in (gone, back, kept, kept)))
        await reached(projector._positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {}

        head = await write(connection, Removed(thing_id=gone), Removed(thing_id=back))
        await reached(projector._positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {gone: 5, back: 6}
        assert await stored(connection, tally_view) == {kept: (Tally(thing_id=kept, count=2), 4)}

        head = await write(connection, Counted(thing_id=back), Removed(thing_id=gone))
        await reached(projector._positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {gone: 5}, "removing what is not there changes nothing"
        assert (await stored(connection, tally_view))[back] == (Tally(thing_id=back, count=1), 7)

        head = await write(connection, Removed(thing_id=back))
        await reached(projector._positions, tally_view.name, head)
        assert await tombstones(connection, tally_view) == {gone: 5, back: 9}
    assert await stored(connection, tally_view) == await folded(connection, things_app, tally_view)


async def test_what_comes_and_goes_within_a_batch(dsn: str, connection: asyncpg.Connection) -> None:
    flash, again, old = uuid4(), uuid4(), uuid4()
    await write(connection, Counted(thing_id=old), Counted(thing_id=again))
    async with projecting(dsn, things_app, tally_view) as (projector,):
        await reached(projector._positions, tally_view.name, 2)
        head = await write(
            connection,
            *(Counted(thing_id=flash), Removed(thing_id=flash)),
            *(Removed(thing_id=again), Counted(thing_id=again)),
            *(Removed(thing_id=old), Counted(thing_id=old), Removed(thing_id=old)),
        )
        await reached(projector._positions, tally_view.name, head)
        assert projector.progress.batches == 2
    assert await stored(connection, tally_view) == {again: (Tally(thing_id=again, count=1), 6)}
    assert await tombstones(connection, tally_view) == {old: 9}


# Exactly once ------------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from msgspec.structs import replace
from tests.support.waiting import reached, until
from bank.main import app
from headwater.config import Settings
from headwater.server.node import Node

async def work():
    settings = replace(Settings(), projection_batch=20, projection_cache=10, poll_seconds=0.2, lease_seconds=0.6)
    async with Node(app, settings, sys.argv[1], serve=False, work=True):
        await asyncio.Event().wait()

asyncio.run(work())
"""


@asynccontextmanager
async def worker(dsn: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that keeps the bank's read models, until it is killed."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, dsn, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        assert await process.wait() == -signal.SIGKILL, "it ended by itself"


@pytest.mark.kills
async def test_exactly_once_though_the_worker_is_killed(start: Start, dsn: str, connection: asyncpg.Connection) -> None:
    dice = random.Random(20)
    node = await start(settings=QUICK, work=False)
    accounts = await bank_accounts(node, 30)
    killed = asyncio.Event()

    async def load() -> None:
        while not killed.is_set() or await node.log.head() < 4000:
            await bank_load(node, accounts, 150, dice)
            # Not far ahead, so that what is left to do after the killing is little.
            await reached(node.positions, account_view.name, await node.log.head() - 1000, seconds=60)

    loading = asyncio.create_task(load())
    for _ in range(5):
        begun = node.positions.known(account_view.name)
        async with worker(dsn):
            # At some moment of the work: right after a commit is heard of, in the middle of a later one.
            await reached(node.positions, account_view.name, begun + dice.randrange(1, 700))
        assert not loading.done(), "it has failed"
    killed.set()
    async with worker(dsn):
        await asyncio.wait_for(loading, 60)
        head = await node.log.head()
        for view in (account_view, user_view):
            await reached(node.positions, view.name, head)
    rows = await stored(connection, account_view)
    assert rows == await folded(connection, bank, account_view)
    moved = await connection.fetchval("select count(*) from headwater.events where type ~ '^Money'")
    entries = await connection.fetchval("select sum(entry_count) from read.account")
    assert entries == moved > 2000
    assert await stored(connection, user_view) == await folded(connection, bank, user_view)


async def test_two_workers_at_once_displace_each_other_and_keep_the_rows_right(
    dsn: str, connection: asyncpg.Connection
) -> None:
    dice, keys = random.Random(2), [uuid4() for _ in range(25)]

    def some(count: int) -> list[Event]:
        return [(Removed if dice.random() < 0.1 else Counted)(thing_id=dice.choice(keys)) for _ in range(count)]

    head = await write(connection, *some(600))
    async with projecting(dsn, things_app, tally_view, workers=2, batch=15, cache=8) as projectors:
        for _ in range(6):
            head = await write(connection, *some(100))
            await reached(projectors[0]._positions, tally_view.name, head)
            await reached(projectors[1]._positions, tally_view.name, head)
        first, second = (projector.progress for projector in projectors)
    assert first.displaced + second.displaced > 0
    assert first.events + second.events == head == 1200, "each event was folded into the rows once"
    assert await stored(connection, tally_view) == await folded(connection, things_app, tally_view)


async def test_a_worker_that_slept_over_anothers_work_does_not_write(dsn: str, connection: asyncpg.Connection) -> None:
    key = uuid4()
    await write(connection, Counted(thing_id=key))
    async with projecting(dsn, things_app, tally_view) as (sleeper,):
        await reached(sleeper._positions, tally_view.name, 1)
        committing: Any = sleeper._transact
        asleep, wake = asyncio.Event(), asyncio.Event()

        async def commit(*arguments: Any) -> None:
            asleep.set()
            await wake.wait()
            await committing(*arguments)

        sleeper._transact = commit  # type: ignore[method-assign, assignment]  # folded, and not yet written
        await write(connection, Counted(thing_id=key))
        await asyncio.wait_for(asleep.wait(), 10)
        async with projecting(dsn, things_app, tally_view) as (other,):
            await reached(other._positions, tally_view.name, 2)
        wake.set()
        await until(lambda: sleeper.progress.displaced == 1)
        await write(connection, Counted(thing_id=key))
        await reached(sleeper._positions, tally_view.name, 3)
    assert await stored(connection, tally_view) == {key: (Tally(thing_id=key, count=3), 3)}


# Slow folds --------------------------------------------------------------------------------------------------------


async def test_however_slow_a_fold_is_the_heart_beats_and_progress_is_written(
    dsn: str, connection: asyncpg.Connection
) -> None:
    seconds, turns = 0.0, 0
    """What the projector's clock says, which only the fold moves; and turns that others had of the event loop."""
    seen: list[tuple[float, int]] = []

    @wraps(fold_tally)
    def slow(row: Tally | None, event: Recorded[Counted | Removed]) -> Tally | None:
        nonlocal seconds
        seen.append((seconds, turns))
        seconds += 0.003
        return fold_tally(row, event)

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    keys = [uuid4() for _ in range(50)]
    head = await write(connection, *(Counted(thing_id=keys[n % 50]) for n in range(2000)))
    beating = asyncio.create_task(others())
    view = View(Tally, slow)
    async with projecting(dsn, things_app, view, batch=2000, lease=4.0, clock=lambda: seconds) as (projector,):
        await reached(projector._positions, tally_view.name, head)
    beating.cancel()
    assert len(seen) == 2000, "what was folded before the time was over is not folded again"
    had = [max(at for at, turn in seen if turn == each) - min(at for at, turn in seen if turn == each)
           for each in {turn for _, turn in seen}]  # fmt: skip
    assert max(had) < 0.015, "nobody else had a turn for so long"
    assert projector.progress.batches == 6, "a batch takes a quarter of the lease"
    assert await stored(connection, tally_view) == await folded(connection, things_app, tally_view)


async def test_an_event_is_folded_in_the_end_though_it_takes_longer_than_a_batch_may(
    dsn: str, connection: asyncpg.Connection
) -> None:
    seconds = 0.0

    def clock() -> float:
        nonlocal seconds
        seconds += 1.0  # with every look: there is never time
        return seconds

    head = await write(connection, *(Counted(thing_id=uuid4()) for _ in range(5)))
    async with projecting(dsn, things_app, tally_view, lease=0.4, clock=clock) as (projector,):
        await reached(projector._positions, tally_view.name, head)
        assert projector.progress.batches == 5
    assert await stored(connection, tally_view) == await folded(connection, things_app, tally_view)


# Failure -----------------------------------------------------------------------------------------------------------


async def test_a_fold_that_raises_stops_its_projection_before_the_event_where_that_is_declared(
    start: Start, connection: asyncpg.Connection
) -> None:
    node = await start(fragile_app, settings=QUICK, serve=False)
    one, other = uuid4(), uuid4()
    await write(
        connection,
        *(Counted(thing_id=key) for key in (one, other, one)),
        Poisoned(thing_id=one),
        *(Counted(thing_id=key) for key in (one, other)),
    )
    await until(lambda: "projection Fragile" in node.supervisor.troubles)
    assert node.supervisor.troubles == {
        "projection Fragile": (
            f"FoldFailed: Fragile: the fold of Poisoned at position 4 on row {one} raised ZeroDivisionError: "
            "a bug in the fold"
        )
    }
    assert await checkpoint(connection, fragile_view) == 3
    assert await stored(connection, fragile_view) == await folded(connection, fragile_app, fragile_view, upto=3)
    assert len(await stored(connection, fragile_view)) == 2

    await reached(node.positions, tally_view.name, 6)
    assert await stored(connection, tally_view) == await folded(connection, fragile_app, tally_view)
    head = await write(connection, Counted(thing_id=other))
    await reached(node.positions, tally_view.name, head)
    assert await checkpoint(connection, fragile_view) == 3


@pytest.mark.parametrize(
    "error",
    [IsADirectoryError("Europe"), TimeoutError(), asyncpg.InterfaceError("its own"), Unavailable("nobody")],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_fold_raises_is_its_failure_and_no_fault_of_the_database(
    dsn: str, connection: asyncpg.Connection, error: Exception
) -> None:
    def fold(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
        if isinstance(event.data, Poisoned):
            raise error
        return fold_fragile(row, event)

    view = View(Fragile, fold, on_failure=Park())
    one, other = uuid4(), uuid4()
    events = [Counted(thing_id=one), Poisoned(thing_id=one), Counted(thing_id=one), Counted(thing_id=other)]
    async with projecting(dsn, App([Feature([things], [view])]), view) as (projector,):
        head = await write(connection, *events)
        await until(lambda: projector.progress.position == head)
    rows = await connection.fetch("select position, error from headwater.dead_letters order by position")
    assert [(row["position"], (row["error"] or "").partition(":")[0]) for row in rows] == [
        (2, type(error).__name__),
        (3, ""),
    ]
    assert {row["thing_id"]: row["count"] for row in await connection.fetch("select * from read.fragile")} == {
        one: 1,
        other: 1,
    }


async def test_a_row_of_another_key_is_a_failed_fold(dsn: str, connection: asyncpg.Connection) -> None:
    one, other = uuid4(), uuid4()

    def fold(row: Fragile | None, event: Recorded[Counted | Poisoned]) -> Fragile:
        if isinstance(event.data, Poisoned):
            return Fragile(thing_id=other, count=100)
        return fold_fragile(row, event)

    view = View(Fragile, fold, on_failure=Park())
    events = [Counted(thing_id=one), Counted(thing_id=other), Poisoned(thing_id=one), Counted(thing_id=other)]
    async with projecting(dsn, App([Feature([things], [view])]), view) as (projector,):
        head = await write(connection, *events)
        await until(lambda: projector.progress.position == head)
    [(position, error)] = await connection.fetch("select position, error from headwater.dead_letters")
    said = f"RowMisplaced: the fold returned a row of Fragile {other}, for an event that is routed to {one}"
    assert (position, error.splitlines()[0]) == (3, said)
    assert {row["thing_id"]: row["count"] for row in await connection.fetch("select * from read.fragile")} == {
        one: 1,
        other: 2,
    }


@pytest.mark.parametrize("gives", [None, "text", 1])
async def test_a_route_that_gives_no_key_stops_the_projection_before_the_event(
    start: Start, connection: asyncpg.Connection, gives: Any
) -> None:
    """Whose key is not known cannot be set aside."""

    def route(event: Counted | Poisoned) -> UUID:
        return gives if isinstance(event, Poisoned) else event.thing_id

    view = View(Fragile, fold_fragile, route=route, on_failure=Park())
    node = await start(App([Feature([things], [view])]), settings=QUICK, serve=False)
    await write(connection, Counted(thing_id=uuid4()), Poisoned(thing_id=uuid4()), Counted(thing_id=uuid4()))
    await until(lambda: "projection Fragile" in node.supervisor.troubles)
    trouble = node.supervisor.troubles["projection Fragile"]
    assert trouble.startswith("FoldFailed: Fragile: the route of Poisoned at position 2 raised TypeError: ")
    assert trouble.endswith(f"route returned {gives!r}, which is no UUID")
    assert await checkpoint(connection, view) == 1


@pytest.mark.parametrize("on_failure", [Park(), Stop()], ids=["park", "stop"])
async def test_a_stored_row_that_cannot_be_read_is_a_failure_of_its_key(
    start: Start, connection: asyncpg.Connection, on_failure: OnFailure
) -> None:
    view = View(Everything, fold_everything, on_failure=on_failure)
    node = await start(App([Feature([things], [view])]), settings=replace(QUICK, projection_cache=0), serve=False)
    one, other = uuid4(), uuid4()
    await reached(node.positions, view.name, await write(connection, bare(one), bare(other)))
    await connection.execute("update read.everything_1 set colour = 'mauve' where thing_id = $1", one)
    head = await write(connection, bare(other), bare(one), bare(other))
    said = f"the stored row cannot be read: ValueError: 'mauve' is not a valid {Colour.__name__}; `headwater rebuild "
    if isinstance(on_failure, Stop):
        await until(lambda: said in node.supervisor.troubles.get("projection Everything", ""))
        assert await checkpoint(connection, view) == 3
    else:
        await reached(node.positions, view.name, head)
        letters = await connection.fetch("select key, position, error from headwater.dead_letters")
        assert [tuple(row)[:2] for row in letters] == [(one, 4)]
        assert said in letters[0]["error"]
        await connection.execute("update read.everything_1 set colour = 'red' where thing_id = $1", one)
        await dead_letters.retry(connection, dead_letters.LetterFilter())
        await until(lambda: node.worker.projectors["Everything"].progress.parked_keys == 0)
        assert await stored(connection, view) == await folded(connection, things_app, view)


# Columns -----------------------------------------------------------------------------------------------------------

TIME = datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))


def full(key: UUID) -> Written:
    return Written(
        thing_id=key,
        text="Ärger 😀 'quoted' \"{a,b}\" \\ %\n\t",
        amount=Decimal("12.500"),
        colour=Colour.GREEN,
        day=date(1, 1, 1),
        at=TIME,
        yes=True,
        ratio=0.1 + 0.2,
        number=2**63 - 1,
        link=UUID(int=2**128 - 1),
        maybe_text="",
        maybe_amount=Decimal("-0.00"),
        maybe_colour=Colour.RED,
        maybe_at=datetime(9999, 12, 31, tzinfo=UTC),
        texts=["", "a,b", '"', "\\", "null", "😀"],
        amounts=[Decimal("1.10"), Decimal("123456789012345678901234567890.123456789")],
        colours=[Colour.GREEN, Colour.RED, Colour.GREEN],
        days=[date(2026, 2, 28)],
        times=[TIME, datetime(2026, 1, 1, tzinfo=UTC)],
        links=[key, UUID(int=0)],
        numbers=[0, -(2**63), 2**63 - 1],
        ratios=[1.0, 1e300, 5e-324, 0.1],
        flags=[True, False],
        maybe_texts=[],
    )


def bare(key: UUID) -> Written:
    return Written(
        thing_id=key,
        text="",
        amount=Decimal(0),
        colour=Colour.RED,
        day=date(9999, 12, 31),
        at=TIME,
        yes=False,
        ratio=-0.0,
        number=-(2**63),
        link=key,
    )


async def test_every_type_of_column_comes_back_as_it_was(dsn: str, connection: asyncpg.Connection) -> None:
    keys = [uuid4(), uuid4()]
    async with projecting(dsn, things_app, everything_view) as (projector,):
        await reached(projector._positions, everything_view.name, await write(connection, full(keys[0]), bare(keys[1])))
    rows = await stored(connection, everything_view)
    assert rows == await folded(connection, things_app, everything_view)
    row: Any = rows[keys[0]][0]
    assert [str(each) for each in (row.amount, row.maybe_amount, *row.amounts)] == [
        *("12.500", "0.00", "1.10"),  # PostgreSQL's numeric has no negative zero
        "123456789012345678901234567890.123456789",
    ]
    assert [type(each) for each in (row.colour, row.colours[0], row.day, row.at, row.yes, row.ratios[0])] == [
        *(Colour, Colour, date, datetime, bool, float)
    ]
    assert [each.utcoffset() is not None for each in (row.at, *row.times)] == [True, True, True]

    raw: Any = await connection.fetchrow("select * from read.everything where thing_id = $1", keys[0])
    assert {name: raw[name] for name in ("text", "colour", "at", "number", "maybe_text")} == {
        "text": full(keys[0]).text,
        "colour": "grün",
        "at": TIME,
        "number": 2**63 - 1,
        "maybe_text": "",
    }


async def test_columns_are_made_from_the_declared_types(dsn: str, connection: asyncpg.Connection) -> None:
    async with projecting(dsn, things_app, everything_view) as (projector,):
        await reached(projector._positions, everything_view.name, await write(connection, bare(uuid4())))
    columns = await connection.fetch(
        "select attname, format_type(atttypid, atttypmod) as type, attnotnull from pg_attribute "
        "where attrelid = 'read.everything_1'::regclass and attnum > 0 order by attnum"
    )
    assert {name: (kind, needed) for name, kind, needed in columns if not name.startswith("maybe")} == {
        "thing_id": ("uuid", True),
        "text": ("text", True),
        "amount": ("numeric", True),
        "colour": ("text", True),
        "day": ("date", True),
        "at": ("timestamp with time zone", True),
        "yes": ("boolean", True),
        "ratio": ("double precision", True),
        "number": ("bigint", True),
        "link": ("uuid", True),
        **dict.fromkeys(
            ["texts", "amounts", "colours", "days", "times", "links", "numbers", "ratios", "flags"], ("jsonb", True)
        ),
        "position": ("bigint", True),
    }
    assert {name: needed for name, _, needed in columns if name.startswith("maybe")} == dict.fromkeys(
        ["maybe_text", "maybe_amount", "maybe_colour", "maybe_at", "maybe_texts"], False
    )
    indexes = await connection.fetch("select indexdef from pg_indexes where tablename = 'everything_1'")
    assert sorted(definition.rpartition("USING")[2].strip() for (definition,) in indexes) == [
        'btree ("position")',
        "btree (day, amount)",
        "btree (text)",
        "btree (thing_id)",
    ]


class LongNames(ReadModel, key="thing_id", name="L" + "o" * 55, indexes=["a_b", ("a", "b"), "pkey", ("c", "a_b")]):
    """Its indexes have names that are too long, or are those of others."""

    thing_id: UUID
    a: int
    b: int
    c: int
    a_b: int
    pkey: int


class ShortNames(ReadModel, key="thing_id", indexes=["a_b", ("a", "b"), "pkey", "a"]):
    """The same, and not too long."""

    thing_id: UUID
    a: int
    b: int
    a_b: int
    pkey: int


def fold_names(row: Any, event: Recorded[Counted]) -> Any:
    return row


async def test_every_declared_index_is_made_whatever_its_name(connection: asyncpg.Connection) -> None:
    query = "select indexdef from pg_indexes where tablename = $1 order by 1"

    async def indexes(standing: Generation) -> list[str]:
        return sorted(row[0].rpartition("(")[2][:-1] for row in await connection.fetch(query, standing.table))

    for model, expected in (
        (LongNames, ["a, b", "a_b", "c, a_b", "pkey", "thing_id"]),
        (ShortNames, ["a", "a, b", "a_b", "pkey", "thing_id"]),
    ):
        view = View(model, fold_names)
        first = await prepare(connection, view)
        again = await rebuild(connection, view)
        for standing in (first, again):
            await add_key(connection, view, standing.table)
            await add_indexes(connection, view, standing.table)
            await add_indexes(connection, view, standing.table)  # those that are there are not made again
            assert await indexes(standing) == sorted(['"position"', *expected])
    assert await connection.fetchval("select to_regclass('read.short_names_1_a')") == "read.short_names_1_a"
