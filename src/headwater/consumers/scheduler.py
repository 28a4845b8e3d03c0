"""Firing schedules: each due moment once, across any number of workers. One process at a time does it, under a lease.

    leased -> looking: what is due -> fired: the command is sent -> moved on: the row says so -> looking ...
                 \\-> nothing is due: waiting until the next moment -> looking ...
                 \\-> a fault: the same moment again, after a pause; the other schedules go on
                 \\-> the lease is another's: end

A command's id follows from its schedule and its moment: whoever sends it again, because it died before the row said so
or because it slept over its lease, gets the first answer and appends nothing.
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
from headwater.domain.messages import Refusal
from headwater.domain.schedule import Schedule
from headwater.ids import derived_id, internal_id
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Database
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

SCHEDULES = "schedules"
"""The name that the lease has among the projections."""

ACCEPTED = "accepted"
"""The outcome of an accepted command; that of a refused one is its code, and that of a failed one what was raised."""

Kind: TypeAlias = Literal["fired", "refused", "failed"]

_FIRED = UUID("2f1c1d0e-5a36-5d6e-9c57-3a0f6f2f8b61")
_SYSTEM = SystemClock()
_ALWAYS = datetime.min.replace(tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass
class ScheduleCounts:
    """How many due moments came to what since the start. fired: accepted; failed: by a mistake in the code."""

    fired: int = 0
    refused: int = 0
    failed: int = 0

    def count(self, kind: Kind) -> None:
        """One more of these."""
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
    """What became of a due moment; text: as the row has it."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class _Fault:
    """A moment that could not be fired: how often, and when it is tried again."""

    due: datetime
    failures: int
    again: datetime


@dataclass(frozen=True, slots=True)
class _Reached:
    """How far a schedule has come in the database."""

    begun_at: datetime
    fired_at: datetime | None

    def after(self, schedule: Schedule) -> datetime:
        """What is due comes after this. A schedule begins when it is first seen; only one single moment is fired late
        even then."""
        return self.fired_at or (_ALWAYS if schedule.at is not None else self.begun_at)


class Scheduler:
    """Fires schedules while it has the lease.

    poll: seconds after which it looks at the clock and at its lease though nothing is due: a clock may be set, and a
    machine may have slept.
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
        self.counts = ScheduleCounts()

    async def run(self, standing: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Fire what falls due until cancelled, or until the lease with this fence is another's. Runs under a
        supervisor, which is told when a failure is got over, and starts it again when the database was lost."""
        self._faults.clear()
        connection = await self._database.connect(SCHEDULES)
        checkpoint = Checkpoint(connection, SCHEDULES, standing)
        try:
            while await checkpoint.read() is not None:
                reached = await self._look(connection)
                new = [schedule.name for schedule in self._schedules if schedule.name not in reached]
                if new:
                    await connection.execute(_SQL["begin"], new, self._clock.now())
                    continue
                fired = [
                    await self._attend(connection, checkpoint, each, reached[each.name]) for each in self._schedules
                ]
                if not self._faults:
                    well()
                if not any(fired):
                    await self._wait(reached)
        finally:
            connection.terminate()

    async def _look(self, connection: asyncpg.Connection) -> dict[str, _Reached]:
        """How far the schedules have come, those that the database knows."""
        rows = await connection.fetch(_SQL["look"], [schedule.name for schedule in self._schedules])
        return {row["name"]: _Reached(row["begun_at"], row["fired_at"]) for row in rows}

    async def _attend(
        self, connection: asyncpg.Connection, checkpoint: Checkpoint, schedule: Schedule, reached: _Reached
    ) -> bool:
        """Fire what is due of a schedule, and let the row say so. Whether there is to look what the row says now."""
        now, fault = self._clock.now(), self._faults.get(schedule.name)
        if fault is not None and now < fault.again:
            return False
        due = schedule.due(reached.after(schedule), now) if fault is None else fault.due
        if due is None:
            return False
        outcome = await self._fire(schedule, due)
        if outcome is None:
            return False
        self._faults.pop(schedule.name, None)
        if await self._move(connection, checkpoint, schedule.name, due, outcome.text):
            self.counts.count(outcome.kind)
        return True

    async def _move(
        self, connection: asyncpg.Connection, checkpoint: Checkpoint, name: str, due: datetime, outcome: str
    ) -> bool:
        """Write the outcome of a due moment, under the lease. False: another worker did so, or has the lease."""
        try:
            async with connection.transaction():
                await checkpoint.hold()
                moved = await connection.fetch(_SQL["move"], name, due, outcome, self._clock.now())
        except CheckpointMoved:
            return False
        return bool(moved)

    async def _fire(self, schedule: Schedule, due: datetime) -> _Outcome | None:
        """What a due moment came to; None for a fault that passes, when it is to be fired again."""
        try:
            command = schedule.command(due)
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises; it is logged
            return _failure(schedule, due, error)
        origin = Origin(actor=f"schedule {schedule.name}")
        try:
            if not await self._dispatcher.is_from(older_moment(schedule.name, due), origin):
                await self._dispatcher.issue(command, command_id=moment(schedule.name, due), origin=origin)
        except Refusal as refusal:
            logger.warning(
                "schedule %s: %s, due at %s, was refused: %s %s",
                *(schedule.name, command.__declared__.name, due.isoformat(), refusal.code, refusal),
            )
            return _Outcome("refused", refusal.code)
        except PASSING as error:
            self._set_back(schedule, due, error)
            return None
        except Exception as error:  # noqa: BLE001 - whatever the user's decision raises; it is logged
            return _failure(schedule, due, error)
        return _Outcome("fired", ACCEPTED)

    def _set_back(self, schedule: Schedule, due: datetime, error: BaseException) -> None:
        """The same moment is fired again, after a pause that grows."""
        known = self._faults.get(schedule.name)
        failures = known.failures + 1 if known else 1
        pause = backoff(failures)
        self._faults[schedule.name] = _Fault(due, failures, self._clock.now() + timedelta(seconds=pause))
        if not self._database.outage.covers(SCHEDULES, error):
            logger.warning(
                "schedule %s, due at %s, is fired again in %.1f s (failure %d): %s: %s",
                *(schedule.name, due.isoformat(), pause, failures, type(error).__name__, error),
            )

    async def _wait(self, reached: Mapping[str, _Reached]) -> None:
        """Until there is something to do."""
        moments = [self._moment(schedule, reached[schedule.name]) for schedule in self._schedules]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll):
                await self._clock.sleep_until(min(moments, default=_NEVER))

    def _moment(self, schedule: Schedule, reached: _Reached) -> datetime:
        """When there is next something to do for a schedule; nothing of it is due now."""
        fault = self._faults.get(schedule.name)
        return fault.again if fault else schedule.next(reached.after(schedule)) or _NEVER


def _failure(schedule: Schedule, due: datetime, error: Exception) -> _Outcome:
    """A mistake in the code: this moment is lost, for the same code would fail again."""
    logger.error("schedule %s, due at %s, failed", schedule.name, due.isoformat(), exc_info=error)
    text, _ = described(error)
    return _Outcome("failed", text)


def moment(name: str, due: datetime) -> UUID:
    """The id of the command of a schedule's due moment."""
    return internal_id(_FIRED, f"schedule {name} {due.isoformat()}")


def older_moment(name: str, due: datetime) -> UUID:
    """The id that it had before internal ids were of version 8: the log may hold a moment under it, while the
    schedule's row does not say yet that it was fired."""
    return derived_id(_FIRED, f"schedule {name} {due.isoformat()}")
