"""The messages that an instance of a saga has fall due, when their moment comes.

    waiting -> moved: what is next may be another -> waiting ...
           \\-> due: recorded, with all of the instance that are by now -> driven, waiting ...
                \\-> what follows raised -> set aside

`headwater.timers` says which are to fall due; the instance's stream has the last word.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from headwater.domain.class_keywords import replace
from headwater.domain.saga_fold import input_of, reaction_to
from headwater.domain.saga_records import SagaTimerFired
from headwater.ids import internal_id
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Database
from headwater.sagas.instances import Changed, Conducted, Held, Instances
from headwater.sagas.steps import Steps
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

TIMERS_AT_ONCE = 100
_FIRST = UUID(int=0)
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


class Timers:
    """The messages of one saga's instances.

    steps: of the same instances, driven when a message was taken.
    """

    def __init__(self, database: Database, conducted: Conducted, instances: Instances, steps: Steps) -> None:
        self._database = database
        self._saga = conducted.saga
        self._codec = conducted.domain.codec
        self._parked = conducted.parked
        self._clock = conducted.clock
        self._instances = instances
        self._steps = steps
        self._moved = asyncio.Event()

    @contextmanager
    def begun(self, group: asyncio.TaskGroup) -> Iterator[None]:
        """Messages fall due, in a task of this group, until the context is left."""
        running = group.create_task(self._run())
        try:
            yield
        finally:
            running.cancel()

    def moved(self) -> None:
        """What falls due next may be another."""
        self._moved.set()

    async def take_due(self, held: Held, now: datetime) -> None:
        """Record that an instance's messages fell due, those that have by now, and what follows."""
        while due := [name for name, timer in held.instance.timers.items() if timer.due_at <= now]:
            try:
                async with held.lock:
                    for message in due:
                        await self._record_fired(held, message, now)
            except Changed:
                continue

    async def _run(self) -> None:
        failures = 0
        while True:
            self._moved.clear()
            now = self._clock.now()  # one moment for both: or what falls due between them is neither due nor to come
            try:
                await self._fire_due(now)
                due_at = await self._database.pool.fetchval(_SQL["next_due"], self._saga.name, now)
                failures = 0
            except PASSING:
                failures += 1
                await asyncio.sleep(backoff(failures))
                continue
            await self._sleep(due_at)

    async def _sleep(self, due_at: datetime | None) -> None:
        moved = asyncio.create_task(self._moved.wait())
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
            rows = await self._database.pool.fetch(_SQL["due"], self._saga.name, now, *after, TIMERS_AT_ONCE)
            await asyncio.gather(*(self._fire(row["stream_id"], row["message"], now) for row in rows))
            if len(rows) < TIMERS_AT_ONCE:
                return
            after = rows[-1]["due_at"], rows[-1]["stream_id"]

    async def _fire(self, stream_id: UUID, message: str, now: datetime) -> None:
        held = await self._instances.readable(stream_id)
        if held is None:
            return
        key, timer = held.instance.key, held.instance.timers.get(message)
        if key is None or timer is None or self._parked.is_parked(key):
            return  # the table is behind the stream, or it waits for what came before
        try:
            await self.take_due(held, now)
        except PASSING:
            raise
        except Exception as error:
            logger.exception("saga %s: %s, %s cannot be taken", self._saga.name, key, message)
            self._parked.set_aside(key, timer.position, error, 1)
            return
        self._steps.drive(held)

    async def _record_fired(self, held: Held, message: str, now: datetime) -> None:
        instance = held.instance
        timer = instance.timers.get(message)
        if timer is None or timer.due_at > now:
            return
        record = SagaTimerFired(saga=self._saga.name, at=self._clock.now(), type=message, due_at=timer.due_at)
        given = input_of(instance, record, None, self._codec)
        cause = f"{message} {instance.version}"
        record = replace(record, then=reaction_to(instance, given, cause, record.at))
        await self._steps.record(
            held, record, given, command_id=internal_id(instance.stream_id, cause), causation_id=timer.cause_id
        )
