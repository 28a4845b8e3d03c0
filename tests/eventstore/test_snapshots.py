"""Snapshots: a long stream is read from its last snapshot on, and a wrong snapshot is never used."""
# No `from __future__ import annotations`: annotations are evaluated at once, so that they can name classes of a test.

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.executing import accepted
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, Recorded
from headwater.commands.dispatcher import Accepted, Dispatcher
from headwater.commands.stream_cache import Streams
from headwater.config import Settings
from headwater.domain.decider import AnyDecider
from headwater.domain.feature import Domain
from headwater.domain.messages import InvalidInput
from headwater.domain.serialization import StateCodec
from headwater.errors import DefinitionError
from headwater.eventstore.appender import Appender
from headwater.eventstore.epoch import Epochs
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.eventstore.snapshots import Point, SnapshotCounts, SnapshotStore
from headwater.ids import new_id
from headwater.postgres.database import Database
from headwater.server.node import Node
from headwater.supervisor import Supervisor

EVERY = 10


class Count(Command):
    """Add to a counter."""

    counter_id: UUID
    amount: Decimal


class Counted(Event):
    counter_id: UUID
    amount: Decimal


@dataclass(frozen=True)
class Counter:
    """The state of a counter: the sum and the number of its amounts, and the last three of them."""

    total: Decimal = Decimal(0)
    seen: int = 0
    last: tuple[Decimal, ...] = ()


def decide(command: Count, counter: Counter) -> list[Counted]:
    return [Counted(counter_id=command.counter_id, amount=command.amount)]


def evolve(counter: Counter, event: Counted) -> Counter:
    last = (*counter.last, event.amount)[-3:]
    return Counter(counter.total + event.amount, counter.seen + 1, last)


def deciding(**options: Any) -> AnyDecider:
    standard: dict[str, Any] = {"evolve": evolve, "decide": decide, "initial": Counter(), "snapshot_every": EVERY}
    return Decider(category="counter", key="counter_id", **standard | options)


COUNTERS = deciding()


class WatchedLog(Log):
    """A log that records the versions of the events that were read."""

    def __init__(self, pool: asyncpg.Pool, domain: Domain) -> None:
        super().__init__(pool, domain.codec)
        self.read_versions: list[int] = []

    async def read_stream(
        self, stream_id: UUID, after_version: int = 0, *, page: int = 1000
    ) -> AsyncGenerator[tuple[str, Recorded[Event]], None]:
        async for category, event in super().read_stream(stream_id, after_version, page=page):
            self.read_versions.append(event.version)
            yield category, event


@dataclass
class Process:
    """The parts that one process of an app has of its own."""

    dispatcher: Dispatcher
    snapshots: SnapshotStore
    log: WatchedLog
    supervisor: Supervisor
    decider: AnyDecider

    async def execute(self, counter_id: UUID, amount: Any) -> Accepted:
        """Count an amount."""
        return await accepted(self, Count(counter_id=counter_id, amount=Decimal(amount)))

    async def count(self, counter_id: UUID, amounts: Sequence[Any]) -> list[Accepted]:
        """Count amounts, and wait until the offered snapshots are stored."""
        counted = await asyncio.gather(*(self.execute(counter_id, each) for each in amounts))
        await asyncio.wait_for(self.snapshots.settled(), 10)
        return counted

    async def state(self, counter_id: UUID) -> tuple[int, Any]:
        """Return the stream's version and state, read without the cache of the process."""
        self.log.read_versions.clear()
        stream = await Streams(self.log, self.snapshots, 1000, Epochs()).get(self.decider, counter_id)
        return stream.version, stream.state


Start: TypeAlias = Callable[..., Coroutine[Any, Any, Process]]


@asynccontextmanager
async def running(dsn: str, decider: AnyDecider, *, queue: int = 1000) -> AsyncIterator[Process]:
    async with Database(dsn, pool_size=2) as database, Supervisor() as supervisor:
        appender = Appender(database, Positions())
        supervisor.start("appender", appender.run)
        snapshots = SnapshotStore(database, queue=queue)
        supervisor.start("snapshots", snapshots.run)
        domain = Domain([Feature(deciders=[decider])])
        log = WatchedLog(database.pool, domain)
        dispatcher = Dispatcher(domain, log, appender, snapshots=snapshots)
        yield Process(dispatcher, snapshots, log, supervisor, decider)


@pytest.fixture
async def process(dsn: str) -> AsyncIterator[Start]:
    """Starts processes on the test's database, and stops them after the test."""
    async with AsyncExitStack() as stack:

        async def start(decider: AnyDecider = COUNTERS, **options: int) -> Process:
            return await stack.enter_async_context(running(dsn, decider, **options))

        yield start


async def stored(connection: asyncpg.Connection) -> list[tuple[int, int]]:
    """Return (fold_version, version) of all snapshots."""
    rows = await connection.fetch("select fold_version, version from headwater.snapshots order by stream_id, 1")
    return [(fold_version, version) for fold_version, version in rows]


def counted(amounts: Sequence[Any]) -> tuple[int, Counter]:
    """Return the version and state after these amounts, folded from the first on."""
    state = Counter()
    for amount in amounts:
        state = evolve(state, Counted(counter_id=UUID(int=0), amount=Decimal(amount)))
    return len(amounts), state


# ---------------------------------------------------------------------------------------------------------------- used


async def test_a_long_stream_is_read_from_its_snapshot_on(process: Start, connection: asyncpg.Connection) -> None:
    one, other, counter_id = await process(), await process(), new_id()
    amounts = range(25)
    for each in amounts:
        await one.count(counter_id, [each])
    assert await stored(connection) == [(1, 20)]
    assert one.snapshots.counts == SnapshotCounts(stored=2)

    assert await other.state(counter_id) == counted(amounts)
    # A snapshot is looked up only after as many events as a short stream has.
    assert other.log.read_versions == [*range(1, EVERY + 1), *range(21, 26)]
    assert other.snapshots.counts == SnapshotCounts(used=1)

    places = await other.count(counter_id, [7])
    assert places[0].version == 26
    assert await one.state(counter_id) == counted([*amounts, 7])


async def test_reading_a_long_stream_stores_a_snapshot_too(process: Start, connection: asyncpg.Connection) -> None:
    unkeeping, keeping, counter_id = await process(deciding(snapshot_every=0)), await process(), new_id()
    await unkeeping.count(counter_id, range(25))
    assert await stored(connection) == []
    await keeping.state(counter_id)
    await keeping.snapshots.settled()
    assert await stored(connection) == [(1, 25)]
    assert await keeping.state(counter_id) == counted(range(25))


async def test_no_snapshot_is_looked_up_for_a_short_stream(process: Start, connection: asyncpg.Connection) -> None:
    one, counter_id = await process(), new_id()
    await one.count(counter_id, range(EVERY - 1))
    await connection.execute("alter table headwater.snapshots rename to gone")  # a look-up would fail and be counted
    assert await one.state(counter_id) == counted(range(EVERY - 1))
    assert one.snapshots.counts == SnapshotCounts()


AMOUNTS = st.lists(st.decimals(-100, 100, places=2), max_size=45)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amounts=AMOUNTS, every=st.integers(1, 12), cuts=st.lists(st.integers(0, 45), max_size=4))
async def test_the_state_equals_the_fold_of_all_events(
    dsn: str, amounts: list[Decimal], every: int, cuts: list[int]
) -> None:
    decider, counter_id = deciding(snapshot_every=every), new_id()
    places = sorted({0, *(min(cut, len(amounts)) for cut in cuts), len(amounts)})
    async with running(dsn, decider) as one, running(dsn, decider) as other:
        for place, (begin, end) in enumerate(pairwise(places)):
            await (one, other)[place % 2].count(counter_id, amounts[begin:end])
        for each in (one, other):
            assert await each.state(counter_id) == counted(amounts)


# ---------------------------------------------------------------------------------------------------- wrong, never used


async def snapshotted_stream(process: Start) -> tuple[Process, UUID]:
    """Return a process that has stored a snapshot at version 20 of a stream of 25 events, and the id of the stream."""
    one, counter_id = await process(), new_id()
    await one.count(counter_id, range(25))
    return one, counter_id


WRONG = {
    "beyond the end of a stream": (
        "update headwater.snapshots set version = 999",
        "the stream lacks the event of version 999 that it was taken after",
    ),
    "after another event": (
        "update headwater.snapshots set event_id = gen_random_uuid()",
        "the stream lacks the event of version 20 that it was taken after",
    ),
    "with another text": (
        """update headwater.snapshots set state = '{"total": "1000000", "seen": 20, "last": []}'""",
        "it was changed after it was written",
    ),
    "with another seal": (
        "update headwater.snapshots set seal = repeat('0', 32)",
        "it was changed after it was written",
    ),
    "at another version": (
        "update headwater.snapshots s set version = 12, event_id = e.event_id from headwater.events e"
        " where e.stream_id = s.stream_id and e.version = 12",
        "it was changed after it was written",
    ),
}


@pytest.mark.parametrize("statement, reason", WRONG.values(), ids=WRONG)
async def test_a_wrong_snapshot_is_deleted_and_made_again(
    process: Start,
    connection: asyncpg.Connection,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    reason: str,
) -> None:
    one, other, counter_id = await process(), await process(), new_id()
    for _ in range(2):
        await one.count(counter_id, range(EVERY))
    await connection.execute(statement)
    with caplog.at_level(logging.WARNING, "headwater.eventstore.snapshots"):
        assert await other.state(counter_id) == counted([*range(EVERY)] * 2)
    assert caplog.messages == [f"the snapshot of counter {counter_id} is deleted: {reason}"]
    assert other.log.read_versions == list(range(1, 21))
    await other.snapshots.settled()
    assert await stored(connection) == [(1, 20)]
    assert other.snapshots.counts == SnapshotCounts(stored=1, unusable=1)
    assert await other.state(counter_id) == counted([*range(EVERY)] * 2)
    assert other.snapshots.counts == SnapshotCounts(stored=1, unusable=1, used=1)


async def test_a_snapshot_that_cannot_be_read_is_ignored(
    process: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    _, counter_id = await snapshotted_stream(process)
    await connection.execute("alter table headwater.snapshots rename to gone")
    other = await process()
    assert (await other.count(counter_id, [7]))[0].version == 26
    assert f"the snapshot of counter {counter_id} is ignored: UndefinedTableError" in caplog.text
    assert other.snapshots.counts == SnapshotCounts(failed=1, unusable=1)
    assert await other.state(counter_id) == counted([*range(25), 7])


async def test_a_snapshot_that_does_not_fit_the_states_type_is_not_used(
    process: Start, caplog: pytest.LogCaptureFixture
) -> None:
    complaints = ["Expected something else"]

    @dataclass(frozen=True)
    class Strict(Counter):  # with the fields of Counter, so that the snapshot has its shape
        def __post_init__(self) -> None:
            if self.seen == 20 and complaints:
                raise ValueError(complaints.pop())

    def decide_strict(command: Count, counter: Strict) -> list[Counted]:
        raise AssertionError("it is never called")

    def evolve_strict(counter: Strict, event: Counted) -> Strict:
        return Strict(**vars(evolve(counter, event)))

    _, counter_id = await snapshotted_stream(process)
    strict = await process(deciding(decide=decide_strict, evolve=evolve_strict, initial=Strict()))
    version, state = counted(range(25))
    assert await strict.state(counter_id) == (version, Strict(**vars(state)))
    assert complaints == []
    assert "it does not fit the state's type: Expected something else" in caplog.text


async def test_a_snapshot_of_another_fold_version_is_not_used(process: Start, connection: asyncpg.Connection) -> None:
    _, counter_id = await snapshotted_stream(process)

    def doubled(counter: Counter, event: Counted) -> Counter:
        return Counter(counter.total + 2 * event.amount, counter.seen + 1)

    newer = await process(deciding(evolve=doubled, fold_version=2))
    assert await newer.state(counter_id) == (25, Counter(2 * counted(range(25))[1].total, 25))
    await newer.snapshots.settled()
    assert newer.snapshots.counts == SnapshotCounts(stored=1)
    # Storing it deletes the snapshot of the older fold. An older process that still runs would make that again.
    assert await stored(connection) == [(2, 25)]


async def test_a_snapshot_of_a_state_with_other_fields_is_not_used(
    process: Start, connection: asyncpg.Connection
) -> None:
    @dataclass(frozen=True)
    class Another:
        total: Decimal = Decimal(0)
        seen: int = 0
        last: tuple[Decimal, ...] = ()
        most: Decimal | None = None  # the stored JSON lacks it, but would decode

    def decide(command: Count, counter: Another) -> list[Counted]:
        raise AssertionError("it is never called")

    def evolve(counter: Another, event: Counted) -> Another:
        return Another(most=event.amount if counter.most is None else max(counter.most, event.amount))

    one, counter_id = await snapshotted_stream(process)
    newer = await process(deciding(decide=decide, evolve=evolve, initial=Another()))
    assert await newer.state(counter_id) == (25, Another(most=Decimal(24)))
    assert newer.snapshots.counts.unusable == 1
    # Two versions of the code may run at once: neither uses the snapshots of the other.
    await newer.snapshots.settled()
    assert await one.state(counter_id) == counted(range(25))
    await one.snapshots.settled()
    assert await newer.state(counter_id) == (25, Another(most=Decimal(24)))


async def test_a_snapshot_of_another_category_is_not_used(process: Start, connection: asyncpg.Connection) -> None:
    _, counter_id = await snapshotted_stream(process)
    strangers = Decider(
        category="stranger", key="counter_id", initial=Counter(), decide=decide, evolve=evolve, snapshot_every=EVERY
    )
    other = await process(strangers)
    complaint = f"{counter_id} is the id of a stream of counter, not of stranger"
    answer = await other.dispatcher.execute(Count(counter_id=counter_id, amount=Decimal(1)))
    assert answer == InvalidInput(path=["counter_id"], complaint=complaint)
    assert await other.snapshots.load(strangers, counter_id) is None
    assert other.snapshots.counts == SnapshotCounts(unusable=1)


async def test_a_state_without_its_event_in_the_log_is_not_stored(
    process: Start, connection: asyncpg.Connection
) -> None:
    one, counter_id = await snapshotted_stream(process)
    one.snapshots.offer(COUNTERS, counter_id, Point(30, 30, Counter(Decimal(1))))
    one.snapshots.offer(COUNTERS, new_id(), Point(1, 1, Counter(Decimal(1))))
    await one.snapshots.settled()
    assert await stored(connection) == [(1, 20)]


# --------------------------------------------------------------------------------------------------- never in the way


async def test_of_the_snapshots_of_two_processes_the_greater_version_is_kept(
    process: Start, connection: asyncpg.Connection
) -> None:
    one, other, counter_id = await process(), await process(), new_id()
    places = await one.count(counter_id, range(9))
    points = [Point(each.version, each.position, counted(range(each.version))[1]) for each in places]
    for ahead, behind in ((points[7], points[3]), (points[8], points[0])):
        for offering, point in ((one, ahead), (other, behind)):
            offering.snapshots.offer(COUNTERS, counter_id, point)
        await asyncio.gather(one.snapshots.settled(), other.snapshots.settled())
        assert await stored(connection) == [(1, ahead.version)]
    assert await other.state(counter_id) == counted(range(9))


async def test_only_the_latest_of_a_streams_waiting_snapshots_is_stored(
    process: Start, connection: asyncpg.Connection
) -> None:
    one, counter_id = await process(), new_id()
    places = await one.count(counter_id, range(9))
    for each in places:
        one.snapshots.offer(COUNTERS, counter_id, Point(each.version, each.position, counted(range(each.version))[1]))
    await one.snapshots.settled()
    assert await stored(connection) == [(1, 9)]
    assert one.snapshots.counts == SnapshotCounts(stored=1)


async def test_snapshots_beyond_the_queue_are_dropped(process: Start, connection: asyncpg.Connection) -> None:
    one = await process(queue=2)
    ids = [new_id() for _ in range(4)]
    for counter_id in ids:
        await one.count(counter_id, [1])
    for position, counter_id in enumerate(ids, 1):
        one.snapshots.offer(COUNTERS, counter_id, Point(1, position, counted([1])[1]))
    await one.snapshots.settled()
    assert await stored(connection) == [(1, 1), (1, 1)]
    assert one.snapshots.counts == SnapshotCounts(stored=2, dropped=2)


async def test_commands_are_accepted_while_the_snapshot_table_is_locked(
    process: Start, connection: asyncpg.Connection
) -> None:
    one, counter_id = await process(), new_id()
    async with connection.transaction():
        await connection.execute("lock table headwater.snapshots in share mode")  # as the creation of an index does
        for each in range(EVERY):
            await one.execute(counter_id, each)
        await until(lambda: waits_for_a_lock(connection))
        for each in range(EVERY, 3 * EVERY):
            await one.execute(counter_id, each)
        assert await one.state(counter_id) == counted(range(3 * EVERY)), "the stream is read without a snapshot"
        assert await waits_for_a_lock(connection), "the store was blocked during all of this"
        assert one.snapshots.counts == SnapshotCounts()
    await asyncio.wait_for(one.snapshots.settled(), 10)
    assert one.snapshots.counts == SnapshotCounts(stored=2), (
        "the first offer, and the latest of those made while it was blocked"
    )
    assert await stored(connection) == [(1, 3 * EVERY)]
    assert one.supervisor.troubles == {}


async def test_a_locked_snapshot_table_does_not_delay_the_shutdown(dsn: str, connection: asyncpg.Connection) -> None:
    app, counter_id = App([Feature([COUNTERS])]), new_id()
    patient = Settings(statement_timeout_seconds=3600.0, shutdown_seconds=1.0)
    async with connection.transaction():
        await connection.execute("lock table headwater.snapshots in share mode")
        async with asyncio.timeout(20), Node(app, patient, dsn, serve=True, work=False) as node:
            for each in range(EVERY):
                await accepted(node, Count(counter_id=counter_id, amount=Decimal(each)))
            await until(lambda: waits_for_a_lock(connection))
    assert node.snapshots.counts == SnapshotCounts()


async def waits_for_a_lock(connection: asyncpg.Connection) -> bool:
    """True if a statement waits for the table of snapshots."""
    query = "select count(*) from pg_locks where not granted and relation = 'headwater.snapshots'::regclass"
    return bool(await connection.fetchval(query))


async def test_commands_are_accepted_when_storing_snapshots_fails(
    process: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    one, counter_id = await process(), new_id()
    await connection.execute("alter table headwater.snapshots rename to gone")
    assert [each.version for each in await one.count(counter_id, range(EVERY))][-1] == EVERY
    assert one.snapshots.counts == SnapshotCounts(failed=1)
    assert "1 snapshots could not be stored: UndefinedTableError" in caplog.text
    assert one.supervisor.troubles == {}
    await connection.execute("alter table headwater.gone rename to snapshots")
    await one.count(counter_id, range(EVERY))
    assert await stored(connection) == [(1, 2 * EVERY)]


async def test_a_state_that_json_would_change_is_not_stored(
    process: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    @dataclass(frozen=True)
    class Unlike:
        seen: int = 0
        of: float = field(default=0.0)

    def decide(command: Count, counter: Unlike) -> list[Counted]:
        return [Counted(counter_id=command.counter_id, amount=command.amount)]

    def evolve(counter: Unlike, event: Counted) -> Unlike:
        return Unlike(counter.seen + 1, float("nan"))

    one, counter_id = await process(deciding(decide=decide, evolve=evolve, initial=Unlike())), new_id()
    await one.count(counter_id, range(EVERY))
    assert await stored(connection) == []
    assert one.snapshots.counts == SnapshotCounts(failed=1)
    assert f"the state of counter {counter_id} cannot be stored as a snapshot" in caplog.text
    assert one.supervisor.troubles == {}


# ------------------------------------------------------------------------------------------------------------ declared


class Plain:
    """A state that is neither a dataclass nor a struct."""


def decide_plain(command: Count, counter: Plain) -> Counted:
    return Counted(counter_id=command.counter_id, amount=command.amount)


def evolve_plain(counter: Plain, event: Counted) -> Plain:
    return counter


def test_a_state_that_json_cannot_carry_has_no_snapshots_and_asking_for_them_is_an_error() -> None:
    options = {"decide": decide_plain, "evolve": evolve_plain, "initial": Plain()}
    assert deciding(**options, snapshot_every=None).snapshots is None
    assert deciding(**options, snapshot_every=0).snapshots is None
    with pytest.raises(
        DefinitionError, match=r"^counter: its state cannot have snapshots: .*Plain cannot be read back"
    ):
        deciding(**options)


def test_snapshots_are_made_every_1000_events_by_default() -> None:
    snapshots = deciding(snapshot_every=None).snapshots
    assert snapshots is not None
    assert snapshots.every == 1000
    assert deciding(snapshot_every=0).snapshots is None


@pytest.mark.parametrize("options", [{"fold_version": 0}, {"snapshot_every": -1}])
def test_a_fold_version_below_1_and_a_negative_interval_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(DefinitionError, match="fold_version must be 1 or more; snapshot_every must be 0"):
        deciding(**options)


def test_the_shape_depends_on_fields_and_types_but_not_on_class_names() -> None:
    def shape(*fields: tuple[Any, ...], name: str = "State") -> str:
        return StateCodec(msgspec.defstruct(name, fields)).shape

    same = shape(("a", int), ("b", Decimal | None))
    assert same == shape(("a", int), ("b", Decimal | None), name="Renamed")
    assert same != shape(("a", int), ("c", Decimal | None))
    assert same != shape(("a", str), ("b", Decimal | None))
    assert same != shape(("a", int), ("b", Decimal))
    assert same != shape(("a", int), ("b", Decimal | None), ("c", int, 0))
