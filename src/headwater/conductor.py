"""The conductor: takes the events that a saga's instances wait for, and issues the commands that follow.

    an instance:  taking an event -> recorded -> driving: issue a step -> its outcome recorded -> the next step ...
                  a message falls due -> recorded -> driving

Everything that happens to an instance is a record in its stream, appended at the version that it was made on, so that
two processes never both go on from the same place. What is kept in memory and in `headwater.sagas` is the fold of it.
A crash at any moment leaves either the record, and then the instance is taken up from it, or not, and then what led to
it comes again: the event from the log, the command's outcome by its id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import msgspec

from headwater import sql
from headwater.appender import Appender, Chain
from headwater.clock import Clock
from headwater.codec import encode
from headwater.course import (
    RECORDS,
    Course,
    Phase,
    Record,
    SagaConfirmed,
    SagaFired,
    SagaRefused,
    SagaTimedOut,
    SagaTook,
    Step,
    fold,
    read_command,
)
from headwater.database import Connection, Database
from headwater.dispatch import Accepted, Dispatcher, Origin
from headwater.errors import CommandIdReused
from headwater.failure import policy_of
from headwater.feature import Domain
from headwater.follower import PASSING, Follower, outlast
from headwater.ids import derived_id
from headwater.log import Append, Appended, Log, Verdict
from headwater.messages import Event, Recorded, Refused
from headwater.positions import Positions
from headwater.saga import Saga
from headwater.supervisor import backoff
from headwater.tables import Standing
from headwater.telemetry import Progress

logger = logging.getLogger("headwater.conductor")
_SQL = sql.load(__file__)

RESUMED_AT_ONCE = 500
TIMERS_AT_ONCE = 100
_FIRST = UUID(int=0)
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


@dataclass
class Tally:
    """What has become of a saga's instances in this process since the start. steps: commands accepted. refusals: of
    steps. compensations: undos accepted. fired: messages that fell due."""

    started: int = 0
    done: int = 0
    steps: int = 0
    refusals: int = 0
    timeouts: int = 0
    compensations: int = 0
    fired: int = 0


@dataclass(slots=True, eq=False)
class _Held:
    """An instance in memory. lock: held while a record is made and appended. driver: issues its steps. failures: of the
    code on what became of a step, in a row."""

    course: Course[Any]
    failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    driver: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        return self.lock.locked() or (self.driver is not None and not self.driver.done())


class _Changed(Exception):
    """The instance is not what it was thought to be: read it again and think again."""


class Conductor:
    """Runs one saga's instances, under one lease.

    clock: what deadlines and messages go by. in_flight: commands that are on their way at once. cache: instances kept
    in memory while they wait. For the others see `Follower`.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        appender: Appender,
        dispatcher: Dispatcher,
        domain: Domain,
        saga: Saga[Any, Any],
        positions: Positions,
        *,
        clock: Clock,
        batch: int = 500,
        in_flight: int = 256,
        cache: int = 10_000,
        poll: float = 1.0,
        lease: float = 6.0,
    ) -> None:
        self._pool = database
        self._log = log
        self._appender = appender
        self._dispatcher = dispatcher
        self._codec = domain.codec
        self._commands = {command.command_name: command for command in domain.decider_of}
        self._saga = saga
        self._clock = clock
        self._policy = policy_of(saga.on_failure)
        self._in_flight = asyncio.Semaphore(in_flight)
        self._cache = cache
        self._poll = poll
        routed = [event for event in saga.events if event in domain.category_of]
        self._routed = frozenset(routed)
        self._held: OrderedDict[UUID, _Held] = OrderedDict()
        self._reading: dict[UUID, asyncio.Task[_Held]] = {}
        self._drivers: set[asyncio.Task[None]] = set()
        self._timers_moved = asyncio.Event()
        self._told: dict[UUID, Recorded[Event]] = {}
        self.tally = Tally()
        self._follower = Follower(
            database,
            log,
            positions,
            self,
            name=saga.category,
            types=log.stored_names([*routed, *RECORDS]),
            policy=self._policy,
            batch=batch,
            poll=poll,
            lease=lease,
        )

    @property
    def progress(self) -> Progress:
        """How far it has followed the log."""
        return self._follower.progress

    async def run(self, standing: Standing, well: Callable[[], None] = lambda: None) -> None:
        """Run instances until cancelled, or until the lease is another's. Runs under a supervisor."""
        await self._follower.run(standing, well)

    # ----------------------------------------------------------------------------------------- as the follower's taker

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[None]:
        """Take up what was under way, and have messages fall due. What goes wrong beside the follower ends it."""
        try:
            async with asyncio.TaskGroup() as self._group:
                beside = [self._group.create_task(self._resume()), self._group.create_task(self._run_timers())]
                try:
                    yield
                finally:
                    for task in [*beside, *self._drivers, *self._reading.values()]:
                        task.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors  # the first that went wrong; it cancelled the others
        finally:
            self._held.clear()
            self._reading.clear()

    def key_of(self, event: Recorded[Event]) -> UUID | None:
        """The instance that an event is routed to. Its own records are not taken: `write` looks at them."""
        return self._saga.key_of(event.data) if type(event.data) in self._routed else None

    async def ready(self, keys: Collection[UUID]) -> None:
        """Most instances are new when their first event comes: one look for all of them finds which."""
        unknown = [stream_id for key in keys if (stream_id := self._saga.stream_of(key)) not in self._held]
        if not unknown:
            return
        there = {row["stream_id"] for row in await self._pool.pool.fetch(_SQL["there"], unknown)}
        for stream_id in unknown:
            if stream_id not in there and stream_id not in self._held:
                self._held[stream_id] = _Held(Course(self._saga, stream_id, self._saga.initial))

    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """Record that an event came, and what follows. A record, that was parked: go on from there."""
        stream_id = self._saga.stream_of(key)
        while True:
            held = await self._hold(stream_id)
            if isinstance(event.data, Record):
                await self._take_due(held, self._clock.now())
                self._drive(held)
                return
            try:
                async with held.lock:
                    await self._take(held, key, event)
            except _Changed:
                continue
            self._drive(held)
            return

    async def _take(self, held: _Held, key: UUID, event: Recorded[Event]) -> None:
        course = held.course
        if course.over or course.handled >= event.position:
            return
        if not course.version and not self._saga.begins_with(event.data):
            return
        follows = course.follows(event.data, f"{event.event_id}", self._clock.now())
        record = SagaTook(
            saga=self._saga.name,
            at=self._clock.now(),
            then=follows,
            key=key,
            position=event.position,
            event_id=event.event_id,
            type=event.data.event_name,
        )
        self.tally.started += not course.version
        await self._append(
            held,
            record,
            event.data,
            command_id=derived_id(course.stream_id, f"{event.event_id}"),
            correlation_id=event.correlation_id,
            causation_id=event.event_id,
        )

    async def freed(self, keys: Collection[UUID]) -> None:
        """What was held up goes on: steps, and messages that fell due meanwhile."""
        for key in keys:
            held = await self._readable(self._saga.stream_of(key))
            if held is not None:
                self._drive(held)
        self._timers_moved.set()

    async def look(self, events: Sequence[Recorded[Event]]) -> None:
        """Take up the instances that another has written to, a person or the process before this one."""
        self._told = {
            event.stream_id: event
            for event in events
            if isinstance(event.data, Record) and event.data.saga == self._saga.name
        }
        for stream_id, event in list(self._told.items()):
            held = await self._readable(stream_id)
            if held is None:
                del self._told[stream_id]
                continue
            if held.course.version < event.version:
                async with held.lock:
                    if held.course.version < event.version:
                        held.course = await self._read(stream_id)
                self._drive(held, anew=True)
            # One that was read just now is not being driven yet: its record was written by the process before this one,
            # which ended before it wrote anything else.
            self._drive(held)

    async def write(self, connection: Connection) -> None:
        """Keep the instances as the records of the batch tell them."""
        if not self._told:
            return
        await self._keep(connection, [self._held[stream_id].course for stream_id in self._told])

    def written(self) -> None:
        """What is kept need not be remembered; what falls due may be another."""
        if self._told:
            self._timers_moved.set()
            self._evict(self._told)

    async def _keep(self, connection: Connection, told: Sequence[Course[Any]]) -> None:
        columns = list(zip(*(_row(self._saga, course) for course in told), strict=True))
        await connection.execute(_SQL["keep"], *columns)
        timers = [(course.stream_id, t.type, t.due_at) for course in told for t in course.timers.values()]
        streams, names, due = zip(*timers, strict=True) if timers else ((), (), ())
        timed = [course.stream_id for course in told if course.timed]
        if timed:
            await connection.execute(_SQL["stop_timers"], timed, streams, names, due)
        if timers:
            await connection.execute(_SQL["set_timers"], streams, names, due, self._saga.name)

    # -------------------------------------------------------------------------------------------------------- instances

    async def _hold(self, stream_id: UUID) -> _Held:
        held = self._held.get(stream_id)
        if held is not None:
            self._held.move_to_end(stream_id)
            return held
        reading = self._reading.get(stream_id)
        if reading is None:
            # Not of the group: what it raises is for those who asked, and ends nobody else.
            reading = self._reading[stream_id] = asyncio.create_task(self._hold_read(stream_id))
            reading.add_done_callback(lambda _: self._reading.pop(stream_id, None))
        return await asyncio.shield(reading)

    async def _readable(self, stream_id: UUID) -> _Held | None:
        """An instance; None when today's code cannot fold it, and it is set aside, so that the others go on."""
        try:
            return await self._hold(stream_id)
        except PASSING:
            raise
        except Exception as error:
            first = await self._pool.pool.fetchrow(_SQL["first"], stream_id)
            assert first is not None  # or there were nothing to read
            key, position = first
            logger.exception("saga %s: %s cannot be read", self._saga.name, key)
            if not self._follower.is_parked(key):
                self._follower.set_aside(key, position, error, self._policy.times + 1)
            return None

    async def _hold_read(self, stream_id: UUID) -> _Held:
        course: Course[Any] | None = None

        async def read() -> None:
            nonlocal course
            course = await self._read(stream_id)

        await outlast(read)
        assert course is not None
        held = self._held[stream_id] = _Held(course)
        return held

    async def _read(self, stream_id: UUID) -> Course[Any]:
        """An instance, from its stream."""
        records: list[Recorded[Record]] = []
        async with aclosing(self._log.read_stream(stream_id)) as stream:
            async for _, event in stream:
                records.append(cast("Recorded[Record]", event))
        positions = [each.data.position for each in records if isinstance(each.data, SagaTook)]
        events = {event.position: event.data for event in await self._log.at(positions)} if positions else {}
        return fold(self._saga, stream_id, records, events, self._codec)

    def _evict(self, latest: Mapping[UUID, Recorded[Event]]) -> None:
        """Forget what is over and written, and what has waited the longest."""
        for stream_id, event in latest.items():
            held = self._held.get(stream_id)
            if held is not None and held.course.over and held.course.version == event.version and not held.busy:
                del self._held[stream_id]
        if len(self._held) > self._cache:
            for stream_id in [each for each, held in self._held.items() if not held.busy][: len(self._held) // 10]:
                del self._held[stream_id]

    async def _append(
        self,
        held: _Held,
        record: Record,
        given: Any,
        *,
        command_id: UUID,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
    ) -> Appended | None:
        """Append a record, under the instance's lock, and fold it. What the log said, when the id is another stream's.

        Raises:
            _Changed: another has written to the stream.
        """
        course = held.course
        correlation_id = course.correlation_id or correlation_id or command_id
        append = Append(
            command_id,
            course.stream_id,
            self._saga.category,
            course.version,
            [(record.event_name, record.event_version, encode(record))],
            correlation_id,
            causation_id,
            f"saga {self._saga.name}",
        )
        appended: Appended | None = None

        async def submit() -> None:
            nonlocal appended
            appended = await self._appender.submit(append, Chain())

        await outlast(submit)
        assert appended is not None
        if appended.verdict is Verdict.DONE and appended.stream_id != course.stream_id:
            return appended
        if appended.verdict is not Verdict.ACCEPTED:
            held.course = await self._read(course.stream_id)
            raise _Changed
        recorded = Recorded(
            record,
            appended.position,
            course.stream_id,
            appended.version,
            record.at,
            command_id,  # its event's id is not known here, and nobody asks for it
            command_id,
            correlation_id,
            causation_id,
        )
        was = course.over
        withdrawn = course.current
        course.apply(recorded, given)
        self.tally.done += course.over and not was and course.phase is Phase.DONE
        if withdrawn is not None and withdrawn.withdrawn and course.current is withdrawn:
            self._drive(held, anew=True)
        return None

    # ------------------------------------------------------------------------------------------------------------ steps

    async def _resume(self) -> None:
        """Take up the instances whose command was on its way when the process before this one ended."""
        after = _FIRST
        while True:
            rows = await self._pool.pool.fetch(_SQL["to_resume"], self._saga.name, after, RESUMED_AT_ONCE)
            for row in rows:
                held = await self._readable(row["stream_id"])
                if held is not None:
                    self._drive(held)
            if len(rows) < RESUMED_AT_ONCE:
                return
            after = rows[-1]["stream_id"]

    def _drive(self, held: _Held, *, anew: bool = False) -> None:
        """Have an instance's steps issued. anew: what is being issued is not what is to be, any more."""
        if held.driver is not None and not held.driver.done():
            if not anew or held.driver is asyncio.current_task():
                return
            held.driver.cancel()
        if held.course.current is None:
            return
        held.driver = self._group.create_task(self._run_steps(held))
        self._drivers.add(held.driver)
        held.driver.add_done_callback(self._drivers.discard)

    async def _run_steps(self, held: _Held) -> None:
        while (step := held.course.current) is not None:
            key = held.course.key
            assert key is not None  # an instance begins by taking an event
            if self._follower.is_parked(key):
                return
            try:
                await self._run_step(held, step)
            except _Changed:
                continue
            except Exception as error:
                if held.course.over:
                    return
                held.failures += 1
                logger.exception("saga %s: %s, step %d cannot go on", self._saga.name, key, step.number)
                self._follower.set_aside(key, step.position, error, held.failures)
                return
            held.failures = 0

    async def _run_step(self, held: _Held, step: Step) -> None:
        """Issue a step until it is known what became of it, and record that."""
        if step.withdrawn:
            await self._record_failure(held, step, SagaTimedOut, {})
            return
        try:
            outcome = await self._issue_in_time(held, step)
        except TimeoutError:
            await self._record_failure(held, step, SagaTimedOut, {})
            return
        if isinstance(outcome, Refused):
            facts = msgspec.to_builtins(outcome.facts)
            await self._record_failure(
                held, step, SagaRefused, {"code": outcome.code, "message": outcome.message, "facts": facts}
            )
        elif outcome is None:
            await self._look_again(held)
        else:
            await self._record_accepted(held, step, outcome.version, outcome.position)

    async def _issue_in_time(self, held: _Held, step: Step) -> Accepted | Refused | None:
        """The same as `_issue`. Raises TimeoutError when the step's time is over."""
        if step.due_at is None:
            return await self._issue(held, step)
        issuing = asyncio.create_task(self._issue(held, step))
        late = asyncio.create_task(self._clock.sleep_until(step.due_at))
        try:
            await asyncio.wait([issuing, late], return_when=asyncio.FIRST_COMPLETED)
        finally:
            late.cancel()
            issuing.cancel()  # says nothing to one that is done
        await asyncio.wait([issuing])
        if issuing.cancelled():
            raise TimeoutError
        return issuing.result()

    async def _issue(self, held: _Held, step: Step) -> Accepted | Refused | None:
        """The command's outcome; None when its id has been taken by a record of this instance.

        A step that has a time is issued again until that is over, whatever its decider raises: then there is an answer,
        where a person would have to find one.
        """
        command = read_command(self._commands, step)
        origin = Origin(held.course.correlation_id, step.cause_id, f"saga {self._saga.name}")
        retry = self._saga.undo_retry if step.undoes is not None else None
        passing = failures = refusals = 0
        while True:
            try:
                async with self._in_flight:
                    return await self._dispatcher.execute(command, command_id=step.command_id, origin=origin)
            except Refused as refused:
                refusals += 1
                pause = None if retry is None else retry.pause(refusals)
                if pause is None:
                    return refused
            except CommandIdReused:
                return None
            except PASSING:
                passing += 1
                pause = backoff(passing)
            except Exception:
                failures += 1
                pause = self._policy.pause(failures)
                if pause is None and step.due_at is None:
                    held.failures = self._policy.times  # it has been tried so often already
                    raise
                pause = self._policy.longest if pause is None else pause
                self.progress.retries += 1
            await asyncio.sleep(pause)

    async def _look_again(self, held: _Held) -> None:
        async with held.lock:
            held.course = await self._read(held.course.stream_id)

    async def _record_accepted(self, held: _Held, step: Step, version: int, position: int) -> None:
        async with held.lock:
            course = self._still(held, step)
            record = SagaConfirmed(
                saga=self._saga.name, at=self._clock.now(), step=step.number, version=version, position=position
            )
            await self._conclude(held, record, step, derived_id(step.command_id, "confirmed"))
        if step.undoes is None:
            self.tally.steps += 1
        else:
            self.tally.compensations += 1
            logger.info(
                "saga %s: %s, step %d was compensated by %s", self._saga.name, course.key, step.undoes, step.command
            )

    async def _record_failure(self, held: _Held, step: Step, kind: Any, facts: dict[str, Any]) -> None:
        """Record that a step was not accepted, under its own command id: then it never will be. If it was after all,
        that is recorded."""
        async with held.lock:
            course = self._still(held, step)
            record = kind(saga=self._saga.name, at=self._clock.now(), step=step.number, **facts)
            accepted = await self._conclude(held, record, step, step.command_id)
        if accepted is not None:
            await self._record_accepted(held, step, accepted.version, accepted.position)
            return
        if kind is SagaRefused:
            self.tally.refusals += 1
        else:
            self.tally.timeouts += 1
        if course.phase is Phase.PARKED:
            logger.error(
                "saga %s: %s is parked, since %s; a person must see to it: headwater sagas show %s",
                *(self._saga.name, course.key, course.parked_for, course.key),
            )

    async def _conclude(self, held: _Held, record: Record, step: Step, command_id: UUID) -> Appended | None:
        course = held.course
        given = course.given(record, None, self._codec)
        record = msgspec.structs.replace(
            record, then=course.follows(given, f"step {step.number} {step.command_id}", record.at)
        )
        return await self._append(held, record, given, command_id=command_id, causation_id=step.command_id)

    @staticmethod
    def _still(held: _Held, step: Step) -> Course[Any]:
        """The instance, if the step is what it waits for."""
        current = held.course.current
        if current is None or current.number != step.number or current.command_id != step.command_id:
            raise _Changed
        return held.course

    # ----------------------------------------------------------------------------------------------------------- timers

    async def _run_timers(self) -> None:
        """Have messages fall due, as the table says; the instance's stream has the last word."""
        failures = 0
        while True:
            self._timers_moved.clear()
            now = self._clock.now()  # one moment for both: or what falls due between them is neither due nor to come
            try:
                await self._fire_due(now)
                due_at = await self._pool.pool.fetchval(_SQL["next_due"], self._saga.name, now)
                failures = 0
            except PASSING:
                failures += 1
                await asyncio.sleep(backoff(failures))
                continue
            await self._sleep(due_at)

    async def _sleep(self, due_at: datetime | None) -> None:
        moved = asyncio.create_task(self._timers_moved.wait())
        waiting: list[asyncio.Task[Any]] = [moved]
        if due_at is not None:
            waiting.append(asyncio.create_task(self._clock.sleep_until(due_at)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _fire_due(self, now: datetime) -> None:
        after = (_LONG_AGO, _FIRST)
        while True:
            rows = await self._pool.pool.fetch(_SQL["due"], self._saga.name, now, *after, TIMERS_AT_ONCE)
            await asyncio.gather(*(self._fire(row["stream_id"], row["message"], now) for row in rows))
            if len(rows) < TIMERS_AT_ONCE:
                return
            after = rows[-1]["due_at"], rows[-1]["stream_id"]

    async def _fire(self, stream_id: UUID, message: str, now: datetime) -> None:
        held = await self._readable(stream_id)
        if held is None:
            return
        key, timer = held.course.key, held.course.timers.get(message)
        if key is None or timer is None or self._follower.is_parked(key):
            return  # the table is behind the stream, or it waits for what came before
        try:
            await self._take_due(held, now)
        except PASSING:
            raise
        except Exception as error:
            logger.exception("saga %s: %s, %s cannot be taken", self._saga.name, key, message)
            self._follower.set_aside(key, timer.position, error, 1)
            return
        self._drive(held)

    async def _take_due(self, held: _Held, now: datetime) -> None:
        """Record that an instance's messages fell due, those that have by now, and what follows."""
        while due := [name for name, timer in held.course.timers.items() if timer.due_at <= now]:
            try:
                async with held.lock:
                    for message in due:
                        await self._record_fired(held, message, now)
            except _Changed:
                continue

    async def _record_fired(self, held: _Held, message: str, now: datetime) -> None:
        course = held.course
        timer = course.timers.get(message)
        if timer is None or timer.due_at > now:
            return
        record = SagaFired(saga=self._saga.name, at=self._clock.now(), type=message, due_at=timer.due_at)
        given = course.given(record, None, self._codec)
        cause = f"{message} {course.version}"
        record = msgspec.structs.replace(record, then=course.follows(given, cause, record.at))
        await self._append(
            held, record, given, command_id=derived_id(course.stream_id, cause), causation_id=timer.cause_id
        )
        self.tally.fired += 1


def _row(saga: Saga[Any, Any], course: Course[Any]) -> tuple[Any, ...]:
    """An instance as `headwater.sagas` keeps it."""
    step = course.current
    return (
        course.stream_id,
        saga.name,
        course.key,
        course.version,
        course.position,
        course.phase.value,
        msgspec.json.encode(course.state, enc_hook=repr).decode(),
        msgspec.json.encode([_step(each) for each in course.steps]).decode(),
        None if step is None else step.command,
        course.waiting_for,
        course.since,
        course.parked_for or course.reason,
        course.compensates,
        course.started_at,
        course.since if course.over else None,
        course.correlation_id,
    )


def _step(step: Step) -> dict[str, Any]:
    return {
        "number": step.number,
        "command": step.command,
        "commandId": step.command_id,
        "input": step.fields,
        "state": step.state.value,
        "undoes": step.undoes,
        "since": step.since,
        "dueAt": step.due_at,
        "reason": step.reason,
    }
