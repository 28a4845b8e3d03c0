"""Timers: they deliver the messages that a saga's instances send to themselves, when due.

    waiting -> a timer was set or cancelled -> look again for the next one -> waiting
            -> a timer is due -> all due timers of its instance are recorded -> the instance is driven -> waiting
                              -> the app's code raises -> the key is parked -> waiting

Due timers are found in `headwater.timers`, which can be behind. The instance's stream decides whether a timer is set.
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
from headwater.eventstore.epoch import MemoryOutdated
from headwater.ids import internal_id
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Database
from headwater.sagas.instances import Changed, Conducted, Entry, Held, Instances
from headwater.sagas.steps import Steps
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

TIMERS_AT_ONCE = 100
_FIRST = UUID(int=0)
_LONG_AGO = datetime(1, 1, 1, tzinfo=UTC)


class Timers:
    """Delivers the messages of one saga's instances. steps: drives an instance after a delivery."""

    def __init__(self, database: Database, conducted: Conducted, instances: Instances, steps: Steps) -> None:
        self._database = database
        self._saga = conducted.saga
        self._domain = conducted.domain
        self._parked = conducted.parked
        self._clock = conducted.clock
        self._instances = instances
        self._steps = steps
        self._changed = asyncio.Event()

    @contextmanager
    def running(self, group: asyncio.TaskGroup) -> Iterator[None]:
        """Deliver messages in a task of this group until the context is left."""
        running = group.create_task(self._run())
        try:
            yield
        finally:
            running.cancel()

    def look_again(self) -> None:
        """Look for the next due timer again: timers were set or cancelled."""
        self._changed.set()

    async def take_due(self, held: Held, now: datetime) -> None:
        """Record the delivery of an instance's messages that are due at `now`, and what follows from them."""
        while due := [name for name, timer in held.instance.timers.items() if timer.due_at <= now]:
            try:
                async with held.lock:
                    for message in due:
                        await self._record_fired(held, message, now)
            except Changed:
                continue

    async def _run(self) -> None:
        """Deliver due messages, wait for the next one, and so on. Waits out passing faults of the database."""
        failures = 0
        while True:
            self._changed.clear()
            now = self._clock.now()  # one time for both queries: a timer due between two times would be in neither
            try:
                await self._fire_due(now)
                due_at = await self._database.pool.fetchval(_SQL["next_due"], self._saga.name, now)
                failures = 0
            except PASSING:
                failures += 1
                await asyncio.sleep(backoff(failures))
                continue
            await self._wait(due_at)

    async def _wait(self, due_at: datetime | None) -> None:
        """Wait until the next timer is due, or until timers were set or cancelled."""
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(self._changed.wait())]
        if due_at is not None:
            waiting.append(asyncio.create_task(self._clock.sleep_until(due_at)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _fire_due(self, now: datetime) -> None:
        """Deliver all messages that are due at `now`, TIMERS_AT_ONCE concurrently."""
        after = (_LONG_AGO, _FIRST)
        while True:
            rows = await self._database.pool.fetch(_SQL["due"], self._saga.name, now, *after, TIMERS_AT_ONCE)
            await asyncio.gather(*(self._fire(row["stream_id"], row["message"], now) for row in rows))
            if len(rows) < TIMERS_AT_ONCE:
                return
            after = rows[-1]["due_at"], rows[-1]["stream_id"]

    async def _fire(self, stream_id: UUID, message: str, now: datetime) -> None:
        """Deliver an instance's due messages, unless its key is parked. If the app's code raises, park the key."""
        held = await self._instances.readable(stream_id)
        if held is None:
            return
        key, timer = held.instance.key, held.instance.timers.get(message)
        if key is None or timer is None or self._parked.is_parked(key):
            return  # the table is behind the stream, or the message waits behind a dead letter
        try:
            await self.take_due(held, now)
        except MemoryOutdated:
            raise
        except PASSING:
            raise
        except Exception as error:
            logger.exception("saga %s: %s is parked: the message %s failed", self._saga.name, key, message)
            self._parked.set_aside(key, timer.position, error, 1)
            return
        self._steps.drive(held)

    async def _record_fired(self, held: Held, message: str, now: datetime) -> None:
        instance = held.instance
        timer = instance.timers.get(message)
        if timer is None or timer.due_at > now:
            return
        record = SagaTimerFired(saga=self._saga.name, at=self._clock.now(), type=message, due_at=timer.due_at)
        given = input_of(instance, record, None, self._domain)
        cause = f"{message} {instance.version}"
        record = replace(record, then=reaction_to(instance, given, cause, record.at))
        command_id = internal_id(instance.stream_id, cause)
        await self._steps.record(held, Entry(record, given, command_id, causation_id=timer.cause_id))
