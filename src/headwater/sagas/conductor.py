"""The conductor runs the instances of one saga: it records each input of an instance and carries out what follows.

    waiting -> an event arrives  -> recorded -> driven
            -> a timer is due    -> recorded -> driven
    driven  -> a step is issued  -> its outcome is recorded -> driven, while there is a next step
            -> no step is left   -> waiting; if the instance has ended: evicted once its row is stored
    any     -> the app's code raises -> the key is parked -> retried, or an operator acts -> driven

Each input becomes a record in the instance's stream. A record is appended at the version that it was made from, so two
processes never continue from the same version. The instance in memory and its row in `headwater.sagas` are folds of
these records. After a crash, the instance continues from its last record. If the record was not written, its input
comes again: an event from the log, the outcome of a command by the command's id.

`SagaHandler` handles what the consumer reads. It calls `Timers`, `Steps` and `Instances`; `Timers` calls `Steps` and
`Instances`; `Steps` calls `Instances`. None of them calls back.
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
from headwater.sagas.instances import Changed, Conducted, Entry, Held, Instances, Unfoldable
from headwater.sagas.steps import SagaCounts, Steps
from headwater.sagas.timers import Timers
from headwater.telemetry import Progress

_DEFAULT = LoopSettings()


class SagaHandler(EventHandler):
    """Gives events to the instances that they are routed to. Stores changed instances together with the checkpoint.

    routed: the types of the events that the saga reacts to.
    """

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
        """Drive instances and deliver timers until the context is left. An error in one of their tasks is raised
        here."""
        self._changed.clear()
        try:
            async with asyncio.TaskGroup() as group:
                with self._instances.running(), self._steps.running(group), self._timers.running(group):
                    yield
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors  # the first error; it cancelled the other tasks

    def keys_of(self, event: Recorded[Event]) -> Sequence[UUID]:
        """Return the keys of the instances that an event is routed to. None for records: `catch_up` reads them."""
        return self._saga.keys_of(event) if type(event.data) in self._routed else ()

    async def expect(self, keys: Collection[UUID]) -> None:
        """Find the instances that have no stream yet, in one query. Most are new when their first event arrives."""
        await self._instances.hold_new(self._saga.stream_of(key) for key in keys)

    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """Record an event and what follows from it. If the event is a record that was parked, continue from it."""
        stream_id = self._saga.stream_of(key)
        while True:
            try:
                held = await self._instances.hold(stream_id)
            except Unfoldable as unfoldable:
                raise unfoldable.error from unfoldable
            if isinstance(event.data, Record):
                self._changed[stream_id] = held  # its row may come from a version that could not fold it
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
                    self._changed[stream_id] = Held(self._instances.not_begun(key, event, self._clock.now()))
                raise
            self._steps.drive(held)
            return

    async def _take(self, held: Held, key: UUID, event: Recorded[Event]) -> None:
        instance = held.instance
        if instance.ended or instance.handled_position >= event.position:
            return
        if not instance.version and not self._saga.begins_with(event.data):
            return
        instance.key = key  # `react` may take it, before the first record says it
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
        command_id = internal_id(instance.stream_id, f"{event.event_id}")
        await self._steps.record(held, Entry(record, event.data, command_id, event.event_id, event.correlation_id))

    async def resume(self, keys: Collection[UUID]) -> None:
        """Drive the instances of these keys again. Deliver timers that became due while the keys were parked."""
        for key in keys:
            held = await self._instances.readable(self._saga.stream_of(key))
            if held is not None:
                self._steps.drive(held)
        self._timers.look_again()

    async def catch_up(self, events: Sequence[Recorded[Event]]) -> None:
        """Read the instances again to which an operator or the previous worker has written, and drive them."""
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
            # An instance that was not in memory is not behind and has no driver yet: the previous worker wrote its
            # record and then ended.
            self._steps.drive(held, anew=behind)

    async def write(self, connection: Connection, freed: Collection[UUID]) -> None:
        """Store the rows of changed instances, and of instances whose first event is parked. The latter are removed
        when the event is no longer parked."""
        if freed:
            await self._instances.drop_not_begun(connection, [self._saga.stream_of(key) for key in freed])
        if self._changed:
            await self._instances.store(connection, [held.instance for held in self._changed.values()])

    async def go_back(self, connection: Connection, head: int) -> int:
        """Write again the rows of instances whose last record was after the end of the log. Return the start of the
        log.

        The log may have lost the record of an event that it still has, and how early that event is cannot be known. An
        instance ignores the events of which it has a record.
        """
        await self._instances.go_back(connection, head)
        return 0

    def committed(self) -> None:
        """Forget instances that are stored, and look for the next due timer again."""
        if self._changed:
            self._timers.look_again()
        # Even without a record in the batch: events that begin no instance bring instances into memory, too.
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
        saga: Saga[Any],
        settings: LoopSettings = _DEFAULT,
    ) -> None:
        routed = [event for event in saga.events if event in domain.category_of]
        parked = ParkedKeys(policy_of(saga.on_failure), saga.category)
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
        """Outcomes of instances and steps in this process."""
        return self._steps.counts

    @property
    def progress(self) -> Progress:
        """Progress along the log."""
        return self._consumer.progress

    @property
    def held(self) -> int:
        """The number of instances in memory."""
        return self._instances.count

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Run instances until cancelled, or until the lease is lost. Runs under a supervisor."""
        await self._consumer.run(generation, well)
