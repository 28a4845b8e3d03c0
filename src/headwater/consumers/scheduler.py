"""The scheduler issues the command of each due moment once, across any number of workers. It runs under a lease.

    leased -> read the rows -> register new schedules -> read the rows
                            -> a moment is due: issue its command -> store the outcome -> read the rows
                            -> a passing fault: the same moment is retried after a pause; other schedules go on
                            -> no moment is due: wait for the next one -> read the rows
                            -> the lease was lost: end

A command's id is derived from its schedule and its moment. A worker that issues it again, because another one died
before it stored the outcome or was paused until its lease expired, gets the first answer and appends nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias, assert_never
from uuid import UUID

import asyncpg

from headwater.clock import Clock, SystemClock
from headwater.commands.dispatcher import Dispatcher, Origin
from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import described
from headwater.consumers.failure_log import FailureLog
from headwater.domain.messages import Refusal
from headwater.domain.schedule import Schedule
from headwater.ids import internal_id
from headwater.logs import handling
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Connection, Database
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

SCHEDULES = "schedules"
"""The name of the unit."""

ACCEPTED = "accepted"
"""The stored outcome of an accepted command. That of a refused command is its code, that of a failed one the error."""

Kind: TypeAlias = Literal["fired", "refused", "failed"]

_FIRED = UUID("2f1c1d0e-5a36-5d6e-9c57-3a0f6f2f8b61")
_SYSTEM = SystemClock()
_ALWAYS = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class ScheduleCounts:
    """Due moments since the start, by outcome. fired: accepted; failed: an error in the code."""

    fired: int = 0
    refused: int = 0
    failed: int = 0

    def count(self, kind: Kind) -> None:
        """Count one outcome."""
        match kind:
            case "fired":
                self.fired += 1
            case "refused":
                self.refused += 1
            case "failed":
                self.failed += 1
            case _:
                assert_never(kind)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The outcome of a due moment. text: as the row stores it."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class _Fault:
    """A moment whose command met a fault that passes. again: the time of the next attempt."""

    due: datetime
    failures: int
    again: datetime


@dataclass(frozen=True, slots=True)
class _Stored:
    """A schedule's row. begun_at: when the database first knew it. fired_at: the last moment with an outcome."""

    begun_at: datetime
    fired_at: datetime | None

    def after(self, schedule: Schedule) -> datetime:
        """Return the moment after which moments are due.

        A schedule begins when the database first knows it. Only the single moment of `at` is fired even if it was
        before that.
        """
        return self.fired_at or (_ALWAYS if schedule.at is not None else self.begun_at)


class Scheduler:
    """Issues the commands of schedules while it has the lease.

    poll: seconds after which it reads the clock and its lease again though no moment is due: a clock may be set, and a
    machine may be suspended.
    """

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        schedules: Sequence[Schedule],
        *,
        clock: Clock = _SYSTEM,
        poll: float = 1.0,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._schedules = schedules
        self._clock = clock
        self._poll = poll
        self._faults: dict[str, _Fault] = {}
        self._failures = FailureLog(SCHEDULES)
        self.counts = ScheduleCounts()

    async def run(self, leased: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Issue what is due until cancelled, or until the lease was lost. Runs under a supervisor.

        well: called after a round without faults. A lost database is raised; the supervisor starts this again.
        """
        self._faults.clear()
        connection = await self._database.connect(SCHEDULES)
        checkpoint = Checkpoint(connection, SCHEDULES, leased)
        try:
            while await checkpoint.read() is not None:
                stored = await self._read(connection)
                new = [schedule.name for schedule in self._schedules if schedule.name not in stored]
                if new:
                    await connection.execute(_SQL["register"], new, self._clock.now())
                    continue
                settled = [
                    await self._settle(connection, checkpoint, each, stored[each.name]) for each in self._schedules
                ]
                if not self._faults:
                    well()
                if not any(settled):
                    await self._wait(stored)
        finally:
            connection.terminate()

    async def _read(self, connection: asyncpg.Connection) -> dict[str, _Stored]:
        """Return the rows of the schedules that the database knows, by name."""
        rows = await connection.fetch(_SQL["stored"], [schedule.name for schedule in self._schedules])
        return {row["name"]: _Stored(row["begun_at"], row["fired_at"]) for row in rows}

    async def _settle(
        self, connection: asyncpg.Connection, checkpoint: Checkpoint, schedule: Schedule, stored: _Stored
    ) -> bool:
        """Issue the command of a schedule's due moment and store the outcome. True if the row has to be read again."""
        now, fault = self._clock.now(), self._faults.get(schedule.name)
        if fault is not None and now < fault.again:
            return False
        due = schedule.due(stored.after(schedule), now) if fault is None else fault.due
        if due is None:
            return False
        with handling(moment(schedule.name, due), f"schedule {schedule.name}"):
            outcome = await self._issue(schedule, due)
        if outcome is None:
            return False
        self._faults.pop(schedule.name, None)
        if await self._store(connection, checkpoint, schedule.name, due, outcome.text):
            self.counts.count(outcome.kind)
        return True

    async def _store(
        self, connection: asyncpg.Connection, checkpoint: Checkpoint, name: str, due: datetime, outcome: str
    ) -> bool:
        """Store the outcome of a due moment, under the lease. False: another worker did so, or has the lease."""
        try:
            async with connection.transaction():
                await checkpoint.hold()
                stored = await connection.fetch(_SQL["store"], name, due, outcome, self._clock.now())
        except CheckpointMoved:
            return False
        return bool(stored)

    async def _issue(self, schedule: Schedule, due: datetime) -> _Outcome | None:
        """Issue the command of a due moment. None after a passing fault: the moment is retried."""
        try:
            command = schedule.command(due)
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises; it is logged
            return self._failure(schedule, due, error)
        origin = Origin(actor=f"schedule {schedule.name}")
        try:
            answer = await self._dispatcher.issue(command, command_id=moment(schedule.name, due), origin=origin)
        except PASSING as error:
            self._set_back(schedule, due, error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever the user's decision raises; it is logged
            return self._failure(schedule, due, error)
        if isinstance(answer, Refusal):
            logger.warning(
                "schedule %s: %s, due at %s, was refused: %s %s",
                *(schedule.name, command.__declared__.name, due.isoformat(), answer.code, answer.message),
            )
            return _Outcome("refused", answer.code)
        return _Outcome("fired", ACCEPTED)

    def _failure(self, schedule: Schedule, due: datetime, error: Exception) -> _Outcome:
        """Log an error in the app's code. The moment is lost, since the same code would fail again."""
        self._failures.log(error, schedule.name, f"schedule {schedule.name}, due at {due.isoformat()}, failed")
        text, _ = described(error)
        return _Outcome("failed", text)

    def _set_back(self, schedule: Schedule, due: datetime, error: BaseException) -> None:
        """Plan a retry of the same moment, after a pause that grows."""
        known = self._faults.get(schedule.name)
        failures = known.failures + 1 if known else 1
        pause = backoff(failures)
        self._faults[schedule.name] = _Fault(due, failures, self._clock.now() + timedelta(seconds=pause))
        if not self._database.outage.covers(SCHEDULES, error):
            logger.warning(
                "schedule %s, due at %s, is retried in %.1f s (failure %d): %s: %s",
                *(schedule.name, due.isoformat(), pause, failures, type(error).__name__, error),
            )

    async def _wait(self, stored: Mapping[str, _Stored]) -> None:
        """Wait for the next moment, for `poll` seconds at most."""
        moments = [self._next(schedule, stored[schedule.name]) for schedule in self._schedules]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll):
                await self._clock.sleep_until(min(moments, default=_NEVER))

    def _next(self, schedule: Schedule, stored: _Stored) -> datetime:
        """Return the time of a schedule's next moment or next attempt; none is due now."""
        fault = self._faults.get(schedule.name)
        return fault.again if fault else schedule.next(stored.after(schedule)) or _NEVER


@dataclass(frozen=True)
class FailingSchedule:
    """A schedule whose last due moment failed. failure: the error in one line."""

    name: str
    fired_at: datetime
    failure: str


async def failing(connection: Connection) -> list[FailingSchedule]:
    """Return the schedules whose last due moment failed, by name."""
    return [FailingSchedule(**row) for row in await connection.fetch(_SQL["failing"])]


async def due_schedules(pool: asyncpg.Pool, schedules: Sequence[Schedule], now: datetime) -> list[str]:
    """Return the names of the schedules that have a due moment, and of those that no worker has registered yet."""
    if not schedules:
        return []
    rows = await pool.fetch(_SQL["stored"], [schedule.name for schedule in schedules])
    stored = {row["name"]: _Stored(row["begun_at"], row["fired_at"]) for row in rows}
    return [
        each.name
        for each in schedules
        if (known := stored.get(each.name)) is None or each.due(known.after(each), now) is not None
    ]


def moment(name: str, due: datetime) -> UUID:
    """Return the id of the command of a schedule's due moment."""
    return internal_id(_FIRED, f"schedule {name} {due.isoformat()}")
