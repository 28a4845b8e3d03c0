"""The scheduler: each due moment is fired once, also when workers die, pause or run at the same time.

The tests' clock moves only when a test advances it; advancing waits until the scheduler is idle again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

import asyncpg
import pytest

from headwater import Command, Decider, Event, Feature, Refusal, Schedule
from headwater.clock import Clock, SystemClock, VirtualClock
from headwater.commands.dispatcher import Accepted, Dispatcher
from headwater.consumers.checkpoint import Generation
from headwater.consumers.scheduler import ScheduleCounts, Scheduler
from headwater.domain.feature import Domain
from headwater.errors import Contended, OutcomeUnknown, Overloaded, Unavailable
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.ids import derived_id
from headwater.postgres.database import Database
from headwater.supervisor import LONGEST_PAUSE, Supervisor

START = datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)
BELLS = UUID("6b1e6f0e-8a3c-4a3e-9d2f-0f6f4c7d9a11")
MINUTE = timedelta(minutes=1)
LONG_POLL = 60.0


class Broken(Refusal):
    """The bell is broken."""


class Ring(Command):
    bell_id: UUID
    due: datetime


class Rung(Event):
    bell_id: UUID
    due: datetime


def decide(command: Ring, state: None) -> Rung | Broken:
    if command.bell_id == bell("broken"):
        return Broken()
    if command.bell_id == bell("zone"):
        raise IsADirectoryError("as ZoneInfo raises")
    return Rung(bell_id=command.bell_id, due=command.due)


def evolve(state: None, event: Rung) -> None:
    return None


def bell(name: str) -> UUID:
    return derived_id(BELLS, name)


def ringing(name: str) -> Callable[[datetime], Ring]:
    """Return a schedule's function: it makes the command that rings the bell of that name."""
    return lambda due: Ring(bell_id=bell(name), due=due)


def every_minute(name: str = "minutely") -> Schedule:
    return Schedule(name, ringing(name), every=MINUTE)


def faulty(due: datetime) -> Ring:
    raise ValueError(f"no bell for {due:%H:%M}")


bells = Decider(category="bell", key="bell_id", initial=None, decide=decide, evolve=evolve)
domain = Domain([Feature([bells])])


class Watched(VirtualClock):
    """A virtual clock that records until when the scheduler sleeps. `rest` waits until that is in the future."""

    def __init__(self, start: datetime) -> None:
        super().__init__(start)
        self.until: datetime | None = None
        self._resting = asyncio.Condition()

    async def sleep_until(self, moment: datetime) -> None:
        async with self._resting:
            self.until = moment
            self._resting.notify_all()
        await super().sleep_until(moment)

    async def rest(self) -> None:
        async with self._resting:
            await asyncio.wait_for(
                self._resting.wait_for(lambda: self.until is not None and self.until > self.now()), 20
            )


class Died(BaseException):
    """Simulates the end of the process."""


class FaultyDispatcher(Dispatcher):
    """A dispatcher that raises each of `faults` once, before a command, and dies after a command if `dies` is set.

    sent: set when a command arrives. go: commands wait for it.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.faults: list[Exception] = []
        self.dies = False
        self.sent, self.go = asyncio.Event(), asyncio.Event()
        self.go.set()

    async def issue(self, command: Command, **options: Any) -> Accepted | Refusal:
        self.sent.set()
        await self.go.wait()
        if self.faults:
            raise self.faults.pop(0)
        answer = await super().issue(command, **options)
        if self.dies:
            raise Died
        return answer


class Worker:
    """A process that fires schedules: its scheduler, clock and dispatcher, and the task that runs it."""

    def __init__(self, scheduler: Scheduler, clock: Clock, dispatcher: FaultyDispatcher) -> None:
        self.scheduler = scheduler
        self.dispatcher = dispatcher
        self._clock = clock
        self.task: asyncio.Task[None] | None = None

    @property
    def clock(self) -> Watched:
        assert isinstance(self._clock, Watched)
        return self._clock

    @asynccontextmanager
    async def working(self, fence: int = 1) -> AsyncIterator[Worker]:
        """Run the scheduler until the end of the block. Enters when the scheduler is idle."""
        self.task = asyncio.create_task(self.scheduler.run(standing(fence)))
        try:
            await self.clock.rest()
            yield self
        finally:
            self.task.cancel()
            await asyncio.wait([self.task])

    async def advance(self, by: timedelta) -> None:
        """Advance the clock, and wait until everything that is due then is done."""
        await self.clock.advance(by)
        await self.clock.rest()


Start: TypeAlias = Callable[..., Coroutine[Any, Any, Worker]]


@pytest.fixture
async def worker(dsn: str, connection: asyncpg.Connection) -> AsyncIterator[Start]:
    """Start workers on the test's database, in which the lease of the schedules has the fencing token 1."""
    await connection.execute(
        "insert into headwater.projections (name, generation, version, fingerprint, table_name, state, fence) "
        "values ('schedules', 1, 1, '', '', 'live', 1)"
    )
    async with AsyncExitStack() as stack:

        async def start(
            *schedules: Schedule, now: datetime = START, clock: Clock | None = None, poll: float = LONG_POLL
        ) -> Worker:
            database = await stack.enter_async_context(Database(dsn, pool_size=4))
            supervisor = await stack.enter_async_context(Supervisor())
            appender = Appender(database, Positions())
            supervisor.start("appender", appender.run)
            dispatcher = FaultyDispatcher(domain, Log(database.pool, domain.codec), appender)
            clock = clock or Watched(now)
            return Worker(Scheduler(database, dispatcher, schedules, clock=clock, poll=poll), clock, dispatcher)

        yield start


def standing(fence: int) -> Generation:
    return Generation(1, "", 0, fence, "")


async def rung(connection: asyncpg.Connection, name: str = "minutely") -> list[str]:
    """Return the due moments of a bell's events in the log, as hours and minutes."""
    query = "select (data ->> 'due')::timestamptz as due from headwater.events where stream_id = $1 order by position"
    return [f"{row['due'].astimezone(UTC):%H:%M}" for row in await connection.fetch(query, bell(name))]


async def row(connection: asyncpg.Connection, name: str = "minutely") -> tuple[Any, ...]:
    """Return when it was first seen, the last fired moment, the outcome and when that was recorded."""
    query = "select begun_at, fired_at, outcome, finished_at from headwater.schedules where name = $1"
    [found] = await connection.fetch(query, name)
    return tuple(found)


def at(clock: str) -> datetime:
    return datetime.combine(START.date(), datetime.strptime(clock, "%H:%M").time(), UTC)  # noqa: DTZ007 - the zone is given


# Due moments ---------------------------------------------------------------------------------------------------------


async def test_all_three_kinds_of_schedule_fire_at_their_due_moments(
    worker: Start, connection: asyncpg.Connection
) -> None:
    hourly = Schedule("hourly", ringing("hourly"), cron="0 * * * *", timezone="Asia/Kolkata")
    once = Schedule("once", ringing("once"), at=at("12:02"))
    async with (await worker(every_minute(), hourly, once)).working() as alive:
        assert await row(connection) == (START, None, None, None), "it begins at the moment of its first start"
        assert alive.clock.until == at("12:01"), "it sleeps until the next moment"
        await alive.advance(timedelta(seconds=29))
        assert await connection.fetchval("select count(*) from headwater.events") == 0
        await alive.advance(timedelta(seconds=1))
        assert await rung(connection) == ["12:01"]
        assert await row(connection) == (START, at("12:01"), "accepted", at("12:01"))
        for _ in range(31):
            await alive.advance(MINUTE)
        assert await rung(connection) == [f"12:{minute:02}" for minute in range(1, 33)]
        assert await rung(connection, "hourly") == ["12:30"], "it is 18:00 in Kolkata"
        assert await rung(connection, "once") == ["12:02"]
        assert alive.scheduler.counts == ScheduleCounts(fired=34)
        actors = await connection.fetch("select distinct actor from headwater.events order by actor")
        assert [row["actor"] for row in actors] == ["schedule hourly", "schedule minutely", "schedule once"]


async def test_a_moment_is_fired_within_a_second(worker: Start) -> None:
    heard: asyncio.Queue[timedelta] = asyncio.Queue()

    def ring(due: datetime) -> Ring:
        heard.put_nowait(datetime.now(UTC) - due)
        return Ring(bell_id=bell("soon"), due=due)

    soon = datetime.now(UTC) + timedelta(milliseconds=700)
    ringer = await worker(Schedule("soon", ring, at=soon), clock=SystemClock())
    task = asyncio.create_task(ringer.scheduler.run(standing(1)))
    delay = await asyncio.wait_for(heard.get(), 10)
    task.cancel()
    await asyncio.wait([task])
    assert timedelta(0) <= delay < timedelta(seconds=1)


async def test_only_the_last_of_several_missed_moments_is_fired(worker: Start, connection: asyncpg.Connection) -> None:
    async with (await worker(every_minute())).working() as first:
        await first.advance(MINUTE)
    async with (await worker(every_minute(), now=at("17:30"))).working() as second:
        assert await rung(connection) == ["12:01", "17:30"]
        assert await row(connection) == (START, at("17:30"), "accepted", at("17:30"))
        await second.advance(MINUTE)
        assert await rung(connection) == ["12:01", "17:30", "17:31"]


async def test_a_schedule_at_one_moment_is_fired_late_but_once(worker: Start, connection: asyncpg.Connection) -> None:
    past = Schedule("past", ringing("past"), at=at("11:00"))
    coming = Schedule("coming", ringing("coming"), at=at("13:00"))
    async with (await worker(past, coming)).working():
        assert await rung(connection, "past") == ["11:00"], "the moment was over before the declaration"
        assert await rung(connection, "coming") == []
    async with (await worker(past, coming, now=at("15:00"))).working():
        assert await rung(connection, "coming") == ["13:00"], "the moment passed while no worker ran"
    async with (await worker(past, coming, now=at("16:00"))).working() as last:
        assert last.scheduler.counts == ScheduleCounts()
        assert last.clock.until == datetime.max.replace(tzinfo=UTC)
    assert await rung(connection, "past") + await rung(connection, "coming") == ["11:00", "13:00"]


# Fired once with several workers -------------------------------------------------------------------------------------


async def test_two_schedulers_that_run_at_once_fire_each_moment_once(
    worker: Start, connection: asyncpg.Connection
) -> None:
    """Both run as if they had the lease."""
    names = [f"bell {number}" for number in range(5)]
    one, other = [await worker(*map(every_minute, names)) for _ in range(2)]
    async with one.working(), other.working():
        for _ in range(5):
            await asyncio.gather(one.advance(MINUTE), other.advance(MINUTE))
    for name in names:
        assert await rung(connection, name) == ["12:01", "12:02", "12:03", "12:04", "12:05"]
    assert one.scheduler.counts.fired + other.scheduler.counts.fired == 25, "only one of them counts it"


async def test_a_moment_whose_worker_died_before_recording_it_is_fired_again_without_effect(
    worker: Start, connection: asyncpg.Connection
) -> None:
    doomed = await worker(every_minute(), now=START)
    async with doomed.working():
        doomed.dispatcher.dies = True
        await doomed.clock.advance(MINUTE)
        assert doomed.task is not None
        await asyncio.wait([doomed.task])
        assert isinstance(doomed.task.exception(), Died)
    assert await rung(connection) == ["12:01"]
    assert await row(connection) == (START, None, None, None)
    async with (await worker(every_minute(), now=at("12:01"))).working() as next_one:
        assert await row(connection) == (START, at("12:01"), "accepted", at("12:01"))
        assert await rung(connection) == ["12:01"]
        await next_one.advance(MINUTE)
    assert await rung(connection) == ["12:01", "12:02"]


async def test_a_scheduler_that_has_lost_its_lease_writes_nothing_and_returns(
    worker: Start, connection: asyncpg.Connection
) -> None:
    slept = await worker(every_minute())
    async with slept.working():
        await connection.execute("update headwater.projections set fence = 2 where name = 'schedules'")
        await slept.clock.advance(MINUTE)
        assert slept.task is not None
        await asyncio.wait_for(slept.task, 20)
        assert await rung(connection) == []
        assert await row(connection) == (START, None, None, None)
        assert slept.scheduler.counts == ScheduleCounts()


async def test_an_idle_scheduler_returns_after_it_has_lost_its_lease(
    worker: Start, connection: asyncpg.Connection
) -> None:
    idle = await worker(every_minute(), poll=0.02)
    async with idle.working():
        await connection.execute("update headwater.projections set fence = 2 where name = 'schedules'")
        assert idle.task is not None
        await asyncio.wait_for(idle.task, 20)


async def test_a_scheduler_that_loses_its_lease_while_it_sends_a_command_records_no_outcome(
    worker: Start, connection: asyncpg.Connection, dsn: str
) -> None:
    """The command is in flight when another worker takes over. It is written, and the other worker finds it."""
    slept = await worker(every_minute())
    slept.dispatcher.go.clear()
    async with slept.working():
        await slept.clock.advance(MINUTE)
        await asyncio.wait_for(slept.dispatcher.sent.wait(), 20)
        await connection.execute("update headwater.projections set fence = 2 where name = 'schedules'")
        slept.dispatcher.go.set()
        assert slept.task is not None
        await asyncio.wait_for(slept.task, 20)
    assert await row(connection) == (START, None, None, None)
    assert slept.scheduler.counts == ScheduleCounts()
    async with (await worker(every_minute(), now=at("12:01"))).working(fence=2) as other:
        assert other.scheduler.counts == ScheduleCounts(fired=1)
    assert await rung(connection) == ["12:01"]
    assert await row(connection) == (START, at("12:01"), "accepted", at("12:01"))


async def test_a_scheduler_without_the_lease_registers_no_schedule(
    worker: Start, connection: asyncpg.Connection
) -> None:
    stranger = await worker(every_minute())
    await asyncio.wait_for(stranger.scheduler.run(standing(7)), 20)
    assert await connection.fetch("select * from headwater.schedules") == []


# Refusals and faults -------------------------------------------------------------------------------------------------


async def test_a_refusal_is_recorded_as_the_outcome(
    worker: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with (await worker(every_minute("broken"), every_minute())).working() as alive:
        await alive.advance(MINUTE)
        assert await row(connection, "broken") == (START, at("12:01"), "BROKEN", at("12:01") + timedelta(seconds=30))
        await alive.advance(MINUTE)
        assert (await row(connection, "broken"))[1] == at("12:02")
        assert alive.scheduler.counts == ScheduleCounts(fired=2, refused=2)
    said = [record for record in caplog.records if record.name == "headwater.consumers.scheduler"]
    assert [(record.levelno, record.message) for record in said] == [
        (
            logging.WARNING,
            f"schedule broken: Ring, due at 2026-03-01T{moment}:00+00:00, was refused: BROKEN The bell is broken.",
        )
        for moment in ("12:01", "12:02")
    ]


async def test_a_schedule_whose_function_raises_does_not_stop_the_others(
    worker: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Schedule("faulty", faulty, every=MINUTE)
    nothing = Schedule("nothing", lambda due: None, every=MINUTE)  # type: ignore[arg-type, return-value]  # the wrong type on purpose
    async with (await worker(broken, nothing, every_minute())).working() as alive:
        await alive.advance(MINUTE)
        await alive.advance(MINUTE)
        assert await rung(connection) == ["12:01", "12:02"]
        assert alive.scheduler.counts == ScheduleCounts(fired=2, failed=4)
    _, fired_at, outcome, _ = await row(connection, "faulty")
    assert fired_at == at("12:02")
    assert outcome.startswith("ValueError: no bell for 12:02\n  ")
    assert "in faulty" in outcome
    first = next(record for record in caplog.records if record.name == "headwater.consumers.failure_log")
    assert first.levelno == logging.ERROR
    assert first.message == (
        "schedules: schedule faulty, due at 2026-03-01T12:01:00+00:00, failed: ValueError: no bell for 12:01"
    )
    assert first.exc_info is not None


async def test_an_exception_in_a_decision_is_recorded_as_the_outcome(
    worker: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with (await worker(every_minute("zone"), every_minute())).working() as alive:
        await alive.advance(MINUTE)
        await alive.advance(MINUTE)
        assert await rung(connection) == ["12:01", "12:02"]
        assert alive.scheduler.counts == ScheduleCounts(fired=2, failed=2)
    _, fired_at, outcome, _ = await row(connection, "zone")
    assert fired_at == at("12:02")
    assert outcome.startswith("IsADirectoryError: as ZoneInfo raises\n  ")
    assert "test_scheduler.py" in outcome.splitlines()[-1]
    assert "IsADirectoryError" in caplog.text


@pytest.mark.parametrize(
    "fault",
    [Overloaded(""), Unavailable(""), OutcomeUnknown(""), Contended(""), ConnectionResetError("gone")],
    ids=repr,
)
async def test_a_fault_is_waited_out_and_skips_nothing(
    worker: Start, connection: asyncpg.Connection, fault: Exception
) -> None:
    pause = timedelta(seconds=LONGEST_PAUSE)
    async with (await worker(every_minute("first"), every_minute("second"))).working() as alive:
        alive.dispatcher.faults = [fault] * 3
        await alive.advance(timedelta(seconds=30))
        assert (await rung(connection, "first"), await rung(connection, "second")) == ([], [])
        await alive.advance(pause)
        assert (await rung(connection, "first"), await rung(connection, "second")) == ([], ["12:01"])
        await alive.advance(pause)
        assert (await rung(connection, "first"), await rung(connection, "second")) == (["12:01"], ["12:01"])
        await alive.advance(MINUTE)
        assert (await rung(connection, "first"))[1:] == (await rung(connection, "second"))[1:] == ["12:02"]
        assert alive.scheduler.counts == ScheduleCounts(fired=4)


async def test_a_moment_delayed_by_a_fault_is_fired_before_the_next_one(
    worker: Start, connection: asyncpg.Connection
) -> None:
    async with (await worker(every_minute())).working() as alive:
        alive.dispatcher.faults = [OutcomeUnknown("")]
        await alive.advance(timedelta(seconds=30))
        assert await rung(connection) == []
        assert alive.clock.until is not None
        assert at("12:01") < alive.clock.until <= at("12:01") + timedelta(seconds=1), "it tries again soon"
        await alive.advance(MINUTE)
        assert await rung(connection) == ["12:01", "12:02"]


async def test_the_supervisor_restarts_a_scheduler_that_lost_its_connection(
    worker: Start, connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    alive = await worker(every_minute())
    well = asyncio.Event()

    def recovered() -> None:
        supervisor.well("schedules")
        well.set()

    async with Supervisor() as supervisor:
        supervisor.start("schedules", lambda: alive.scheduler.run(standing(1), recovered))
        await alive.clock.rest()
        await connection.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
            "where application_name = 'headwater schedules' and datname = current_database()"
        )
        well.clear()
        await alive.clock.advance(MINUTE)
        await asyncio.wait_for(well.wait(), 20)
        await alive.clock.rest()
        assert supervisor.troubles == {}
    assert await rung(connection) == ["12:01"]
    assert "schedules died; it starts again" in caplog.text
