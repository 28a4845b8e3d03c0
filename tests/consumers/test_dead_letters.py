"""Dead letters: after a failed fold its key waits in order and all others go on; after a fix, no trace remains."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support.waiting import reached, until

from headwater import App, Command, Decider, Event, Feature, Park, ReadModel, Recorded, Retry, Stop, View
from headwater.cli import main
from headwater.config import Settings
from headwater.consumers import dead_letters
from headwater.consumers.loop import LoopSettings, Ports
from headwater.domain.failure_policy import OnFailure
from headwater.domain.serialization import stored_form
from headwater.errors import DefinitionError
from headwater.eventstore.epoch import Place
from headwater.eventstore.log import Append, Log, append
from headwater.eventstore.positions import Positions
from headwater.live.subscriptions import watch_changes, watch_row
from headwater.postgres import queries
from headwater.postgres.database import Database
from headwater.projections.generations import prepare
from headwater.projections.projector import PROJECTION_LOOP, Projector
from headwater.projections.row_codec import model_reader
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Any]

MANY = 100_000
"""The number of events around the poisoned one."""

QUICK = replace(Settings(), poll_seconds=0.1, lease_seconds=2.0)


class Count(Command):
    tally_id: UUID


class Counted(Event):
    tally_id: UUID
    note: str = ""


class Gone(Event):
    tally_id: UUID


TallyEvent: TypeAlias = Counted | Gone


def decide(command: Count, state: None) -> list[TallyEvent]:
    return [Counted(tally_id=command.tally_id)]


def evolve(state: None, event: TallyEvent) -> None:
    return None


class Tally(ReadModel, key="tally_id"):
    """The number of events of a tally, and the note of the last."""

    tally_id: UUID
    count: int
    note: str


class Bug:
    """A fold with a bug: it raises for some notes. raises: the error for each such note; none after `fix`."""

    def __init__(self) -> None:
        self.raises: dict[str, Exception] = {}
        self.folded: list[str] = []

    def fold(self, row: Tally | None, event: Recorded[TallyEvent]) -> Tally | None:
        if isinstance(event.data, Gone):
            return None
        if (error := self.raises.get(event.data.note)) is not None:
            self.folded.append(event.data.note)
            raise error
        return Tally(tally_id=event.data.tally_id, count=(row.count if row else 0) + 1, note=event.data.note)

    def fix(self) -> None:
        self.raises.clear()


@pytest.fixture
def bug() -> Bug:
    """A fold that fails on events noted `poison`."""
    bug = Bug()
    bug.raises["poison"] = ZeroDivisionError("a bug in the fold")
    return bug


AT_ONCE = Park()


def view_of(bug: Bug, on_failure: OnFailure = AT_ONCE) -> View[Tally]:
    return View(Tally, bug.fold, on_failure=on_failure)


def app_of(view: View[Any]) -> App:
    return App(
        [Feature([Decider(category="tally", key="tally_id", initial=None, decide=decide, evolve=evolve)], [view])]
    )


async def write(connection: asyncpg.Connection, *events: Counted | Gone) -> int:
    """Append events. Returns the position of the last."""
    done = await append(
        connection,
        [Append(uuid4(), e.tally_id, "tally", None, [stored_form(e)], uuid4()) for e in events],
    )
    return done[-1].position


def counted(key: UUID, note: str = "") -> Counted:
    return Counted(tally_id=key, note=note)


async def rows_of(connection: asyncpg.Connection, view: View[Any]) -> dict[UUID, tuple[ReadModel, int]]:
    read = model_reader(view)
    return {
        row["tally_id"]: (read(dict(row)), row["position"])
        for row in await connection.fetch("select * from read.tally")
    }


async def folded(
    connection: asyncpg.Connection, view: View[Any], upto: int | None = None
) -> dict[UUID, tuple[ReadModel, int]]:
    """Return the rows that a fold of the whole log gives."""
    codec = app_of(view).domain.codec
    rows: dict[UUID, tuple[Any, int]] = {}
    query = "select * from headwater.events where position <= coalesce($1, position) order by position"
    for record in await connection.fetch(query, upto):
        data: Any = codec.decode(record["type"], record["schema_version"], record["data"])
        names = ("position", "stream_id", "version", "recorded_at", "event_id", "command_id", "correlation_id")
        row = view.fold(rows.pop(data.tally_id, (None, 0))[0], Recorded(data, *(record[name] for name in names)))
        if row is not None:
            rows[data.tally_id] = row, record["position"]
    return rows


async def letters(connection: asyncpg.Connection) -> list[tuple[int, int, str | None, bool]]:
    """Return (position, attempts, first line of the error, whether a retry is due at some time), in order."""
    rows = await connection.fetch("select * from headwater.dead_letters order by key, position")
    return [
        (r["position"], r["attempts"], r["error"] and r["error"].splitlines()[0], r["next_attempt_at"] is not None)
        for r in rows
    ]


async def no_letters(connection: asyncpg.Connection) -> bool:
    return not await connection.fetchval("select count(*) from headwater.dead_letters")


@asynccontextmanager
async def projecting(
    dsn: str, view: View[Tally], *, clock: Callable[[], float] = time.monotonic, **sizes: Any
) -> AsyncIterator[Projector[Tally]]:
    """A projector that runs as if it had a lease, and must not fail."""
    async with Database(dsn) as database:
        async with database.pool.acquire() as connection:
            standing = await prepare(connection, view)
        settings = dataclasses.replace(PROJECTION_LOOP, poll=0.02, **sizes)
        projector = Projector(ports_of(database, view), view, settings, clock=clock)
        task = asyncio.create_task(projector.run(standing))
        try:
            yield projector
        finally:
            task.cancel()
            ended = (await asyncio.gather(task, return_exceptions=True))[0]
        assert isinstance(ended, asyncio.CancelledError), ended


def ports_of(database: Database, view: View[Tally]) -> Ports:
    return Ports(database, Log(database.pool, app_of(view).domain.codec), Positions())


async def passed(projector: Projector[Any], position: int) -> None:
    await until(lambda: projector.progress.position >= position, 60)


async def cli(*arguments: str) -> int:
    """Run a command in a thread, since it starts its own event loop."""
    return await asyncio.to_thread(main, arguments)


POISON = "ZeroDivisionError: a bug in the fold"


def fold_wrongly(row: Tally | None, event: Recorded[TallyEvent]) -> Tally | None:
    """A fold that raises the error that the note names, at the place that the note names."""
    assert isinstance(event.data, Counted)
    place, _, kind = event.data.note.partition(" ")
    error = {"ValueError": ValueError, "KeyError": KeyError}[kind](f"no {event.position}")
    if place == "here":
        raise error
    raise error


# Sequenced parking ---------------------------------------------------------------------------------------------------


async def test_a_poisoned_event_among_many_parks_only_its_own_key(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, keys = view_of(bug), [uuid4() for _ in range(500)]
    poisoned, at = keys[0], 0
    for place in range(0, MANY, 1000):
        await write(connection, *(counted(keys[n % 500], str(n)) for n in range(place, place + 1000)))
        if place == MANY // 2:
            at = await write(connection, counted(poisoned, "poison"))
    head = await connection.fetchval("select position from headwater.head")
    async with projecting(dsn, view, batch=1000) as projector:
        await passed(projector, head)
        assert projector.progress.parked_keys == 1
        bug.fix()  # for the fold below; the projector does not try again by itself
        rows, right = await rows_of(connection, view), await folded(connection, view)
        assert {key: row for key, row in rows.items() if key != poisoned} == {
            key: row for key, row in right.items() if key != poisoned
        }
        assert rows[poisoned] == (await folded(connection, view, at - 1))[poisoned], "as it was before the event"

        held = await letters(connection)
        assert held[0] == (at, 1, POISON, False)
        behind = [position for position, *_ in held[1:]]
        expected = await connection.fetch(
            "select position from headwater.events where stream_id = $1 and position > $2 order by position",
            poisoned,
            at,
        )
        assert behind == [row["position"] for row in expected], "the key's later events wait in order"
        assert {each[1:] for each in held[1:]} == {(0, None, False)}
        assert len(behind) == MANY // 500 // 2 - 2

        await connection.execute("update headwater.dead_letters set next_attempt_at = now() where position = $1", at)
        await until(lambda: projector.progress.parked_keys == 0)
    assert await rows_of(connection, view) == right
    assert await letters(connection) == []


AUDIT = """
create table transactions (place bigserial, passed bigint);
create function note() returns trigger language plpgsql as $$ begin
  insert into transactions (passed) values (new.position - old.position);
  return null;
end $$;
create trigger note after update on headwater.projections for each row execute function note();
"""
"""Records every transaction of a projection: each one updates its row, also one that folds letters."""


async def test_a_poisoned_key_costs_no_transaction_besides_its_own_retries(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, keys = view_of(bug, Retry(times=3, first=0.001, longest=0.001)), [uuid4() for _ in range(20)]
    await prepare(connection, view)
    await connection.execute(AUDIT)
    counts = [counted(keys[n % 20]) for n in range(1000)]

    async def transactions(*events: Counted, retries: int = 0) -> list[int]:
        """Return the number of positions that each transaction passed, after all foldable events are folded."""
        await connection.execute("truncate transactions")
        head = await write(connection, *events)
        async with projecting(dsn, view, batch=50) as projector:
            await passed(projector, head)
            await until(lambda: projector.progress.retries == retries)
        return [row["passed"] for row in await connection.fetch("select passed from transactions order by place")]

    without = await transactions(*counts)
    assert without == [50] * 20
    poisoned = await transactions(*counts[:25], counted(keys[0], "poison"), *counts[26:], retries=3)
    assert sorted(poisoned) == [0] * 3 + without, "and one for each time that the poison was tried again"


async def test_a_key_is_not_retried_before_its_first_letter_is_due(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, key = view_of(bug), uuid4()
    async with projecting(dsn, view) as projector:
        behind = await write(connection, counted(key, "poison"), counted(key))
        await passed(projector, behind)
        due = "update headwater.dead_letters set next_attempt_at = now() where position = $1"
        await connection.execute(due, behind)
        for _ in range(20):
            await passed(projector, await write(connection, counted(uuid4())))  # each batch first reads the due keys
        assert bug.folded == ["poison"]
        bug.fix()
        await dead_letters.retry(connection, dead_letters.LetterFilter("Tally", str(key)))
        await until(lambda: no_letters(connection))
    assert (await rows_of(connection, view))[key] == (Tally(tally_id=key, count=2, note=""), behind)


async def test_a_parked_key_stays_parked_over_a_restart_and_later_events_queue_behind_it(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one, other = view_of(bug), uuid4(), uuid4()
    await write(connection, counted(one), counted(one, "poison"))
    async with projecting(dsn, view) as projector:
        await passed(projector, 2)
    head = await write(connection, counted(one, "later"), counted(other), Gone(tally_id=one))
    async with projecting(dsn, view) as projector:
        await passed(projector, head)
        assert projector.progress.parked_keys == 1
        assert await letters(connection) == [(2, 1, POISON, False), (3, 0, None, False), (5, 0, None, False)]
        assert set(await rows_of(connection, view)) == {one, other}
    assert projector.progress.parked_keys == 0, "the next owner of the projection counts it"
    bug.fix()
    async with projecting(dsn, view) as projector:
        await passed(projector, head)
        await connection.execute("update headwater.dead_letters set next_attempt_at = now() where position = 2")
        await until(lambda: projector.progress.parked_keys == 0)
        assert await rows_of(connection, view) == await folded(connection, view)
        buried = await connection.fetch("select key::uuid as key, position from headwater.tombstones")
        assert [tuple(row) for row in buried] == [(one, 5)], "a removal that waited leaves its tombstone"
        head = await write(connection, counted(one))
        await passed(projector, head)
    assert await rows_of(connection, view) == await folded(connection, view)


@pytest.mark.parametrize(
    "options",
    [{"batch": 1}, {"batch": 3}, {"batch": 1000}, {"clock": itertools.count(0, 10).__next__}],
    ids=["1", "3", "1000", "no time for more than one"],
)
async def test_a_long_queue_drains_in_parts_and_in_order(
    dsn: str, connection: asyncpg.Connection, bug: Bug, options: dict[str, Any]
) -> None:
    view, keys = view_of(bug), [uuid4() for _ in range(3)]
    await write(connection, *(counted(key, "poison") for key in keys))
    head = await write(connection, *(counted(keys[n % 3], str(n)) for n in range(30)))
    async with projecting(dsn, view, **options) as projector:
        await passed(projector, head)
        assert await rows_of(connection, view) == {}
        bug.fix()
        await connection.execute("update headwater.dead_letters set next_attempt_at = now() where error is not null")
        await until(lambda: projector.progress.parked_keys == 0)
    assert await rows_of(connection, view) == await folded(connection, view)
    assert await letters(connection) == []


async def test_reading_a_batch_from_a_long_queue_does_not_scan_the_whole_queue(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, keys = view_of(bug), [uuid4() for _ in range(4)]
    await prepare(connection, view)
    await connection.execute(
        "insert into headwater.dead_letters (projection, generation, key, position) "
        "select 'Tally', 1, key, n from unnest($1::uuid[]::text[]) as u(key), generate_series(1, 5000) n",
        keys,
    )
    await connection.execute("analyze headwater.dead_letters")

    async def read(name: str, *values: Any) -> tuple[int, int]:
        """Return the number of rows that the statement returns, and the number of letters that it reads."""
        query = f"explain (analyze, timing off, format json) {queries.load(dead_letters.__file__)[name]}"
        plan = json.loads(await connection.fetchval(query, *values))[0]["Plan"]
        scans = [
            part for part in parts(plan) if part.get("Relation Name") == "dead_letters" and "Scan" in part["Node Type"]
        ]
        looked = sum(
            part["Actual Loops"] * (part["Actual Rows"] + part.get("Rows Removed by Filter", 0)) for part in scans
        )
        return plan["Actual Rows"], looked

    texts = list(map(str, keys))
    assert await read("letters", "Tally", 1, texts, 20) == (20, 20)
    assert await read("letters", "Tally", 1, texts[:1], 20) == (20, 20)
    assert await read("letters", "Tally", 1, texts, 3) == (3, 4), "one is read for each key, and the first are returned"
    assert await read("go_on", "Tally", 1, texts) == (4, 8), "each is read to find it, and again to update it"


def parts(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", []):
        yield from parts(part)


async def test_a_row_that_postgresql_rejects_parks_its_key_at_the_event_that_produced_it(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, keys = view_of(bug), [uuid4() for _ in range(20)]
    events = [counted(keys[n % 20], str(n)) for n in range(100)]
    events[47] = counted(keys[7], "".join(uuid4().hex for _ in range(500)))
    head = await write(connection, *events)
    await prepare(connection, view)
    await connection.execute("create index on read.tally_1 (note)")  # the note does not fit into it
    async with projecting(dsn, view, batch=50) as projector:
        await passed(projector, head)
        held = await letters(connection)
        assert [each[:2] for each in held] == [(48, 1), (68, 0), (88, 0)]
        assert held[0][2] is not None
        assert "index row" in held[0][2]
        rows, right = await rows_of(connection, view), await folded(connection, view)
        assert {key for key in keys if rows[key] != right[key]} == {keys[7]}
        assert rows[keys[7]][1] == 28


async def test_letters_folded_under_a_lost_lease_are_not_committed(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one = view_of(bug), uuid4()
    await write(connection, counted(one, "a"), counted(one, "poison"))
    standing = await prepare(connection, view)
    async with Database(dsn) as database:
        projector = Projector(ports_of(database, view), view, LoopSettings(poll=0.02))
        running = asyncio.create_task(projector.run(standing))
        await passed(projector, 2)

        async def overtaken() -> None:
            await connection.execute("update headwater.projections set fence = fence + 1 where name = 'Tally'")

        projector.before_commit = overtaken
        bug.fix()
        await dead_letters.retry(connection, dead_letters.LetterFilter())
        await asyncio.wait_for(running, 10)
    assert projector.progress.displaced == 1
    assert [position for position, *_ in await letters(connection)] == [2]
    assert await rows_of(connection, view) == await folded(connection, view, upto=1)


# Retries -------------------------------------------------------------------------------------------------------------


def test_retry_pauses_double_up_to_a_limit_and_have_jitter() -> None:
    policy = Retry(times=5, first=0.2, longest=2.0)
    assert [policy.pause(n, lambda: 1.0) for n in range(1, 7)] == [0.2, 0.4, 0.8, 1.6, 2.0, None]
    assert [policy.pause(n, lambda: 0.0) for n in range(1, 3)] == [0.1, 0.2]
    assert all(0.1 <= (policy.pause(1) or 0) <= 0.2 for _ in range(100))
    assert Retry(times=0).pause(1) is None
    assert Retry(times=10**6).pause(10**5) is not None
    assert View(Tally, Bug().fold).on_failure == Retry(times=5, first=0.2, longest=30.0, then=Park())


@pytest.mark.parametrize("wrong", [{"times": -1}, {"first": 0.0}, {"first": 2.0, "longest": 1.0}])
def test_a_retry_policy_with_a_number_out_of_range_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError):
        Retry(**wrong)


async def test_a_key_is_parked_until_an_operator_acts_after_its_last_retry(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one, other = view_of(bug, Retry(times=3, first=0.001, longest=0.01)), uuid4(), uuid4()
    head = await write(connection, counted(one, "poison"), counted(other), counted(one))
    async with projecting(dsn, view) as projector:
        await until(lambda: projector.progress.retries == 3)
        await until(lambda: letters_are(connection, [(1, 4, POISON, False), (3, 0, None, False)]))
        assert bug.folded == ["poison"] * 4
        assert projector.progress.position == head
        assert set(await rows_of(connection, view)) == {other}
        assert projector.progress.parked_keys == 1


async def letters_are(connection: asyncpg.Connection, expected: list[Any]) -> bool:
    return await letters(connection) == expected


async def test_a_key_whose_fold_succeeds_on_a_retry_leaves_no_dead_letter(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, key = view_of(bug, Retry(times=50, first=0.001, longest=0.01)), uuid4()
    await write(connection, counted(key, "poison"), counted(key))
    async with projecting(dsn, view) as projector:
        await until(lambda: projector.progress.retries >= 2)
        bug.fix()
        await until(lambda: projector.progress.parked_keys == 0)
    assert await rows_of(connection, view) == await folded(connection, view)
    assert await letters(connection) == []


async def test_keys_that_are_due_together_are_retried_in_one_transaction_and_delay_no_other_key(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, keys, well = view_of(bug, Retry(times=5, first=3600, longest=3600)), [uuid4() for _ in range(50)], uuid4()
    head = await write(connection, *(counted(key, "poison") for key in keys), counted(well))
    async with projecting(dsn, view) as projector:
        await passed(projector, head)
        last = await write(connection, counted(well))
        await passed(projector, last)  # long before the first pause is over
        assert {key: row[1] for key, row in (await rows_of(connection, view)).items()} == {well: last}
        assert {each[1:] for each in await letters(connection)} == {(1, POISON, True)}
        transactions = 0

        async def counting() -> None:
            nonlocal transactions
            transactions += 1

        projector.before_commit = counting
        bug.fix()
        await connection.execute("update headwater.dead_letters set next_attempt_at = now()")
        await until(lambda: projector.progress.parked_keys == 0)
        assert (transactions, projector.progress.retries) == (1, 50)
    assert await rows_of(connection, view) == await folded(connection, view)


async def test_a_key_that_fails_again_at_a_later_event_is_parked_there(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, key = view_of(bug), uuid4()
    bug.raises["second"] = ValueError("another bug")
    head = await write(connection, *(counted(key, note) for note in ("a", "poison", "b", "second", "c")))
    async with projecting(dsn, view) as projector:
        await passed(projector, head)
        del bug.raises["poison"]
        await connection.execute("update headwater.dead_letters set next_attempt_at = now() where position = 2")
        await until(lambda: letters_are(connection, [(4, 1, "ValueError: another bug", False), (5, 0, None, False)]))
        assert (await rows_of(connection, view))[key] == (Tally(tally_id=key, count=3, note="b"), 3)


# Stop ----------------------------------------------------------------------------------------------------------------


async def test_a_projection_with_the_stop_policy_stops_before_the_failing_event(
    start: Start, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one, other = view_of(bug, Retry(times=2, first=0.001, longest=0.01, then=Stop())), uuid4(), uuid4()
    node: Node = await start(app_of(view), settings=QUICK, serve=False)
    head = await write(connection, counted(one), counted(one, "poison"), counted(other))
    await until(lambda: "projection Tally" in node.supervisor.troubles)
    assert node.supervisor.troubles["projection Tally"] == (
        f"FoldFailed: Tally: the fold of Counted at position 2 on row {one} raised {POISON}"
    )
    assert node.worker.projectors["Tally"].progress.retries >= 2
    assert set(await rows_of(connection, view)) == {one}, "what came before it is written"
    assert await letters(connection) == []
    bug.fix()
    await reached(node.positions, "Tally", head)
    assert await rows_of(connection, view) == await folded(connection, view)
    await until(lambda: node.supervisor.troubles == {})


# Faults of the database ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        asyncpg.SerializationError("could not serialize access"),
        asyncpg.DeadlockDetectedError("deadlock detected"),
        asyncpg.QueryCanceledError("canceling statement due to statement timeout"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        ConnectionResetError("connection reset by peer"),
        TimeoutError(),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_fault_of_the_database_parks_no_key(
    start: Start, connection: asyncpg.Connection, bug: Bug, fault: Exception
) -> None:
    view, key = view_of(bug), uuid4()
    bug.fix()
    node: Node = await start(app_of(view), settings=QUICK, serve=False)
    await until(lambda: node.leases.held)
    projector = node.worker.projectors["Tally"]
    faults = 3

    async def failing() -> None:
        nonlocal faults
        faults -= 1
        if faults >= 0:
            raise fault

    projector.before_commit = failing
    head = await write(connection, *(counted(key) for _ in range(10)))
    await reached(node.positions, "Tally", head)
    assert faults < 0
    assert projector.progress.retries == 0
    assert await letters(connection) == []
    assert await rows_of(connection, view) == await folded(connection, view)


async def test_a_lost_connection_parks_no_key(start: Start, connection: asyncpg.Connection, bug: Bug) -> None:
    view, key = view_of(bug), uuid4()
    node: Node = await start(app_of(view), settings=QUICK, serve=False)
    for _ in range(5):
        await until(lambda: node.leases.held)
        await write(connection, *(counted(key) for _ in range(200)))
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and application_name like 'headwater projection%'"
        )
    await reached(node.positions, "Tally", 1000)
    assert await letters(connection) == []
    assert await rows_of(connection, view) == await folded(connection, view)


# Subscriptions -------------------------------------------------------------------------------------------------------


async def test_a_subscription_gets_the_row_whose_dead_letters_were_folded(
    start: Start, dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one, other = view_of(bug), uuid4(), uuid4()
    node: Node = await start(app_of(view), settings=replace(QUICK, poll_seconds=20.0))
    feed = node.serving.feeds[Tally]
    head = await write(connection, counted(one, "a"), counted(one, "poison"), counted(one, "b"), counted(other))
    await reached(node.positions, "Tally", head)
    async with aclosing(watch_changes(feed)) as changes, aclosing(watch_row(feed, one)) as rows:
        first = await anext(changes)
        assert (first.position, len(first.upserted)) == (4, 2)
        assert ((await anext(rows))[0] or {})["count"] == 1
        changed, row = asyncio.ensure_future(anext(changes)), asyncio.ensure_future(anext(rows))
        bug.fix()
        async with asyncio.timeout(10):  # half of the poll interval: the doorbell wakes it
            await dead_letters.retry(connection, dead_letters.LetterFilter())
            again = await changed
            assert (again.reset, again.position) == (True, 4), "a reset, since the row changed without a new position"
            assert {r["tally_id"]: r["count"] for r in again.upserted} == {one: 3, other: 1}
            assert ((await row)[0] or {})["count"] == 3

    # A subscriber that resumes from position 4, with the rows as they were before the retry.
    async with aclosing(watch_changes(feed, after=Place(None, 4))) as changes:
        resumed = await anext(changes)
        assert (resumed.reset, len(resumed.upserted)) == (True, 2)


# The command line ----------------------------------------------------------------------------------------------------


async def test_the_command_line_lists_shows_and_retries_dead_letters(
    start: Start,
    dsn: str,
    connection: asyncpg.Connection,
    bug: Bug,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    assert await cli("dead-letters", "list") == 0
    assert capsys.readouterr().out == "No dead letters.\n"
    assert await cli("dead-letters", "retry") == 1
    assert "no dead letter matches" in capsys.readouterr().err

    view, one, other = view_of(bug), UUID(int=1), UUID(int=2)
    node: Node = await start(app_of(view), settings=QUICK, serve=False)
    await write(connection, counted(one, "poison"), counted(other, "poison"), counted(one, "behind"))
    await reached(node.positions, "Tally", 3)

    assert await cli("dead-letters", "list") == 0
    listed = capsys.readouterr().out.splitlines()
    headings = "PROJECTION KEY POSITION TYPE ATTEMPTS BEHIND PARKED SINCE NEXT ERROR"
    assert listed[0].split() == headings.split()
    assert [line.split()[:6] for line in listed[1:]] == [
        ["Tally", str(one), "1", "Counted", "1", "1"],
        ["Tally", str(other), "2", "Counted", "1", "0"],
    ]
    assert all(line.endswith(POISON) for line in listed[1:])
    assert await cli("dead-letters", "list", "--all", "--key", str(one)) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert await cli("dead-letters", "list", "--projection", "Other") == 0
    assert capsys.readouterr().out == "No dead letters.\n"

    assert await cli("dead-letters", "show", "--position", "3") == 0
    assert '"note":"behind"' in capsys.readouterr().out.replace(" ", "")
    assert await cli("dead-letters", "show", "--key", str(one)) == 0
    shown = capsys.readouterr().out
    assert f"Tally {one}: Counted at position 1" in shown
    assert POISON in shown
    assert "test_dead_letters.py" in shown, "the place of the error"
    assert await cli("dead-letters", "show", "--position", "77") == 1
    assert "no dead letter matches" in capsys.readouterr().err

    bug.fix()
    assert await cli("dead-letters", "retry", "--key", str(one)) == 0
    assert capsys.readouterr().out == "1 key will be tried again by the worker that runs the consumer.\n"
    await until(lambda: node.worker.projectors["Tally"].progress.parked_keys == 1)
    assert await letters(connection) == [(2, 1, POISON, False)]
    assert await cli("dead-letters", "retry") == 0
    await until(lambda: no_letters(connection))
    assert await rows_of(connection, view) == await folded(connection, view)


async def test_errors_of_one_type_and_place_have_the_same_traceback_hash(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    view = View(Tally, fold_wrongly, on_failure=AT_ONCE)
    notes = ["here ValueError", "here KeyError", "there ValueError"] * 2
    await write(connection, *(counted(UUID(int=place), note) for place, note in enumerate(notes)))
    head = await write(connection, counted(UUID(int=0), "here ValueError"))

    async def hashes() -> list[str | None]:
        query = "select traceback_hash from headwater.dead_letters order by position"
        return [row[0] for row in await connection.fetch(query)]

    async with projecting(dsn, view) as projector:
        await passed(projector, head)
        found = await hashes()
        assert re.fullmatch("[0-9a-f]{16}", found[0] or "")
        assert len(set(found[:3])) == 3, "another place or another type gives another hash"
        assert found == [*found[:3] * 2, None], "the same for any event and message; a letter that waits has none"

        assert await cli("dead-letters", "show", "--all") == 0
        shown = re.findall(r"at position (\d)\n(?:  .*\n)*?  error (\S+)\n", capsys.readouterr().out)
        assert sorted(shown) == [(str(position), each or "-") for position, each in enumerate(found, 1)]

        await dead_letters.retry(connection, dead_letters.LetterFilter())
        again = "select count(*) = $1 from headwater.dead_letters where attempts = 2"
        await until(lambda: connection.fetchval(again, len(notes)))
        assert await hashes() == found, "a retry gives the same hash"


@pytest.mark.parametrize("everything", [False, True], ids=["the first", "all"])
async def test_the_discard_command_removes_the_failed_letter_or_all_of_the_key(
    start: Start,
    dsn: str,
    connection: asyncpg.Connection,
    bug: Bug,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    everything: bool,
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    view, one, other = view_of(bug), UUID(int=1), UUID(int=2)
    node: Node = await start(app_of(view), settings=QUICK, serve=False)
    notes = ("a", "poison", "b", "c")
    await write(connection, *(counted(one, note) for note in notes), counted(other, "poison"))
    await reached(node.positions, "Tally", 5)

    assert await cli("dead-letters", "discard") == 1
    assert "select the dead letters by" in capsys.readouterr().err
    assert await cli("dead-letters", "discard", "--position", "3") == 1, "only the letter before it has failed"
    assert await cli("dead-letters", "discard", "--key", str(one), *(["--all"] if everything else [])) == 0
    said = "3 events" if everything else "1 event"
    assert f"{said} will be discarded" in capsys.readouterr().out
    await until(lambda: letters_are(connection, [(5, 1, POISON, False)]))
    row = (await rows_of(connection, view))[one]
    assert row == (
        (Tally(tally_id=one, count=1, note="a"), 1) if everything else (Tally(tally_id=one, count=3, note="c"), 4)
    )
    await until(lambda: node.worker.projectors["Tally"].progress.parked_keys == 1)
    await write(connection, counted(one, "after"))
    await reached(node.positions, "Tally", 6)
    after = (await rows_of(connection, view))[one]
    assert after[1] == 6, "the key goes on"


async def test_repeated_discards_remove_no_letter_that_never_failed(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one = view_of(bug), uuid4()
    await write(connection, *(counted(one, note) for note in ("a", "poison", "b", "c")))
    async with projecting(dsn, view) as projector:
        await passed(projector, 4)

    async def discard(*, everything: bool = False, **where: Any) -> int:
        return await dead_letters.discard(connection, dead_letters.LetterFilter(**where), everything=everything)

    # No worker runs between the discards.
    assert await discard(position=3) == 0, "it waits behind another letter and has not failed"
    assert [await discard(key=str(one)) for _ in range(3)] == [1, 0, 0]
    async with projecting(dsn, view) as projector:
        await until(lambda: projector.progress.position == 4 and projector.progress.parked_keys == 0)
        assert await rows_of(connection, view) == {one: (Tally(tally_id=one, count=3, note="c"), 4)}

        await write(connection, *(counted(one, note) for note in ("poison", "d", "e")))
        await passed(projector, 7)
    assert [
        await discard(key=str(one)),
        await discard(key=str(one), everything=True),
        await discard(everything=True),
    ] == [
        1,
        2,
        0,
    ]
    async with projecting(dsn, view) as projector:
        await until(lambda: no_letters(connection))
        assert await rows_of(connection, view) == {one: (Tally(tally_id=one, count=3, note="c"), 4)}


async def test_a_due_letter_that_has_not_failed_is_not_discarded(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one = view_of(bug), uuid4()
    await write(connection, *(counted(one, note) for note in ("poison", "a", "b")))
    async with projecting(dsn, view) as projector:
        await passed(projector, 3)
    # The state in which a worker leaves a long queue that it has folded in part.
    await connection.execute("delete from headwater.dead_letters where position = 1")
    await connection.execute("update headwater.dead_letters set next_attempt_at = now() where position = 2")
    assert await dead_letters.discard(connection, dead_letters.LetterFilter(key=str(one)), everything=False) == 0


async def test_a_letter_that_is_discarded_during_a_failing_retry_stays_discarded(
    dsn: str, connection: asyncpg.Connection, bug: Bug
) -> None:
    view, one = view_of(bug), uuid4()
    await write(connection, *(counted(one, note) for note in ("a", "poison", "b")))
    async with projecting(dsn, view) as projector:
        await passed(projector, 3)
        tried, discarded = asyncio.Event(), asyncio.Event()

        async def waiting() -> None:
            tried.set()
            await discarded.wait()

        projector.before_commit = waiting
        await dead_letters.retry(connection, dead_letters.LetterFilter())
        await asyncio.wait_for(tried.wait(), 10)
        assert await dead_letters.discard(connection, dead_letters.LetterFilter(key=str(one)), everything=False) == 1
        discarded.set()
        await until(lambda: projector.progress.parked_keys == 0)
        assert await rows_of(connection, view) == {one: (Tally(tally_id=one, count=2, note="b"), 3)}
    assert await letters(connection) == []
