"""The conductor: takes the events that a saga's instances wait for, and has what follows from them done.

    an instance:  taking an event -> recorded -> driving: issue a step -> its outcome recorded -> the next step ...
                  a message falls due -> recorded -> driving

Everything that happens to an instance is a record in its stream, appended at the version that it was made on, so that
two processes never both go on from the same place. What is kept in memory and in `headwater.sagas` is the fold of it.
A crash at any moment leaves either the record, and then the instance is taken up from it, or not, and then what led to
it comes again: the event from the log, the command's outcome by its id.

`SagaHandler` takes what the consumer reads. `instances` holds and records, `steps` issues commands, `timers` delivers
messages when due.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from headwater.consumers.checkpoint import Generation
from headwater.consumers.consumer import Consumer, EventHandler
from headwater.consumers.loop import CommandPath, LoopSettings, Ports
from headwater.consumers.parked_keys import ParkedKeys
from headwater.domain.failure_policy import policy_of
from headwater.domain.feature import Domain
from headwater.domain.messages import Event, Recorded
from headwater.domain.saga import Saga
from headwater.domain.saga_fold import reaction_to
from headwater.domain.saga_records import RECORDS, Record, SagaHandledEvent
from headwater.ids import internal_id
from headwater.postgres.database import PASSING, Connection
from headwater.sagas.instances import Changed, Conducted, Held, Instances, Unfoldable
from headwater.sagas.steps import SagaCounts, Steps
from headwater.sagas.timers import Timers
from headwater.telemetry import Progress

_DEFAULT = LoopSettings()


class SagaHandler(EventHandler):
    """Gives a saga's instances the events that are routed to them, and writes the changed ones with the checkpoint."""

    def __init__(
        self,
        conducted: Conducted,
        routed: Collection[type[Event]],
        instances: Instances,
        steps: Steps,
        timers: Timers,
    ) -> None:
        self._saga = conducted.saga
        self._clock = conducted.clock
        self._routed = frozenset(routed)
        self._instances = instances
        self._steps = steps
        self._timers = timers
        self._changed: dict[UUID, Held] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take up what was under way, and have messages fall due. A failure beside the consumer ends it."""
        self._changed.clear()
        try:
            async with asyncio.TaskGroup() as group:
                with self._instances.begun(), self._steps.begun(group), self._timers.begun(group):
                    yield
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors  # the first that went wrong; it cancelled the others

    def key_of(self, event: Recorded[Event]) -> UUID | None:
        """The instance that an event is routed to. Its own records are not taken: `write` looks at them."""
        return self._saga.key_of(event.data) if type(event.data) in self._routed else None

    async def expect(self, keys: Collection[UUID]) -> None:
        """Most instances are new when their first event comes: one look for all of them finds which."""
        await self._instances.begin_unknown(self._saga.stream_of(key) for key in keys)

    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """Record that an event came, and what follows. A record, that was parked: go on from there."""
        stream_id = self._saga.stream_of(key)
        while True:
            try:
                held = await self._instances.hold(stream_id)
            except Unfoldable as unfoldable:
                raise unfoldable.error from unfoldable
            if isinstance(event.data, Record):
                self._changed[stream_id] = held  # its row may be of code that could not fold it
                await self._timers.take_due(held, self._clock.now())
                self._steps.drive(held)
                return
            try:
                async with held.lock:
                    await self._take(held, key, event)
            except Changed:
                continue
            except PASSING:
                raise
            except Exception:
                if not held.instance.version:
                    self._changed[stream_id] = Held(self._instances.unbegun(key, event, self._clock.now()))
                raise
            self._steps.drive(held)
            return

    async def _take(self, held: Held, key: UUID, event: Recorded[Event]) -> None:
        instance = held.instance
        if instance.ended or instance.handled_position >= event.position:
            return
        if not instance.version and not self._saga.begins_with(event.data):
            return
        follows = reaction_to(instance, event.data, f"{event.event_id}", self._clock.now())
        record = SagaHandledEvent(
            saga=self._saga.name,
            at=self._clock.now(),
            then=follows,
            key=key,
            position=event.position,
            event_id=event.event_id,
            type=event.data.__declared__.name,
        )
        await self._steps.record(
            held,
            record,
            event.data,
            command_id=internal_id(instance.stream_id, f"{event.event_id}"),
            correlation_id=event.correlation_id,
            causation_id=event.event_id,
        )

    async def resume(self, keys: Collection[UUID]) -> None:
        """What was held up goes on: steps, and messages that fell due meanwhile."""
        for key in keys:
            held = await self._instances.readable(self._saga.stream_of(key))
            if held is not None:
                self._steps.drive(held)
        self._timers.moved()

    async def catch_up(self, events: Sequence[Recorded[Event]]) -> None:
        """Take up the instances that another has written to, a person or the process before this one."""
        latest = {
            event.stream_id: event
            for event in events
            if isinstance(event.data, Record) and event.data.saga == self._saga.name
        }
        for stream_id, event in latest.items():
            try:
                held = await self._instances.hold(stream_id)
                behind = held.instance.version < event.version
                if behind:
                    async with held.lock:
                        if held.instance.version < event.version:
                            await self._instances.read_again(held)
            except Unfoldable as unfoldable:
                self._instances.set_aside(unfoldable)
                self._changed[stream_id] = Held(unfoldable.instance)
                continue
            self._changed[stream_id] = held
            # One that was read just now is not being driven yet, and not behind: its record was written by the process
            # before this one, which ended before it wrote anything else.
            self._steps.drive(held, anew=behind)

    async def write(self, connection: Connection, freed: Collection[UUID]) -> None:
        """Keep the instances as their records tell them, and those that cannot begin, while that is so."""
        if freed:
            await self._instances.drop_unbegun(connection, [self._saga.stream_of(key) for key in freed])
        if self._changed:
            await self._instances.keep(connection, [held.instance for held in self._changed.values()])

    def committed(self) -> None:
        """What is kept need not be remembered; what falls due may be another."""
        if self._changed:
            self._timers.moved()
        # Also when no record was in the batch: what begins no instance was looked at, too.
        self._instances.evict(self._changed)
        self._changed.clear()


class Conductor:
    """Runs one saga's instances, under one lease.

    settings: `at_once` limits the commands in flight, too.
    """

    def __init__(
        self,
        ports: Ports,
        commands: CommandPath,
        domain: Domain,
        saga: Saga[Any, Any],
        settings: LoopSettings = _DEFAULT,
    ) -> None:
        routed = [event for event in saga.events if event in domain.category_of]
        parked = ParkedKeys(policy_of(saga.on_failure))
        conducted = Conducted(saga, domain, parked, commands.clock)
        self._instances = Instances(ports, commands.appender, conducted, cache=settings.cache)
        self._steps = Steps(ports.database, commands.dispatcher, conducted, self._instances, in_flight=settings.at_once)
        timers = Timers(ports.database, conducted, self._instances, self._steps)
        self.handler = SagaHandler(conducted, routed, self._instances, self._steps, timers)
        self._consumer = Consumer(
            ports,
            self.handler,
            parked,
            settings,
            name=saga.category,
            types=ports.log.stored_names([*routed, *RECORDS]),
        )

    @property
    def counts(self) -> SagaCounts:
        """What became of the instances in this process."""
        return self._steps.counts

    @property
    def progress(self) -> Progress:
        """How far it has followed the log."""
        return self._consumer.progress

    @property
    def held(self) -> int:
        """How many instances are in memory."""
        return self._instances.count

    async def run(self, standing: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Run instances until cancelled, or until the lease is another's. Runs under a supervisor."""
        await self._consumer.run(standing, well)
