"""A saga's instances: in memory as the fold of their streams, and in `headwater.sagas` as their records tell them.

    unknown -> reading -> held: append a record -> held, folded; another has written meanwhile -> read again
                  |         \\-> over and written, or waiting for long -> forgotten
                  \\-> today's code cannot fold it -> set aside; but one that is over needs no fold, and is held

A record is appended at the version that it was made on, under the instance's lock, so that neither two tasks nor two
processes ever both go on from the same place.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, cast
from uuid import UUID

import msgspec

from headwater.clock import Clock
from headwater.consumers.consumer import outlast
from headwater.consumers.loop import Ports
from headwater.consumers.parked_keys import ParkedKeys
from headwater.domain.feature import Domain
from headwater.domain.messages import Event, Recorded
from headwater.domain.saga import Saga
from headwater.domain.saga_fold import apply_record, fold, fold_without_state
from headwater.domain.saga_records import SagaHandledEvent, SagaRecord
from headwater.domain.saga_state import ForwardStep, SagaInstance, Step, StepState
from headwater.domain.serialization import stored_form
from headwater.errors import CommandIdReused, LogError
from headwater.eventstore.appender import Appender, Chain
from headwater.eventstore.log import Append, Appended, Verdict
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Connection

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)


@dataclass(slots=True, eq=False)
class Held:
    """An instance in memory. lock: held while a record is made and appended. driver: issues its steps. failures: how
    often in a row the user's code has raised on what became of the current step."""

    instance: SagaInstance[Any]
    failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    driver: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether somebody is at work on it, who must find it where it is."""
        return self.lock.locked() or (self.driver is not None and not self.driver.done())


@dataclass(frozen=True, slots=True)
class Conducted:
    """The saga that a conductor runs, with what all parts of the conductor share.

    parked: the keys of instances that cannot go on. clock: the time of records, deadlines and timers.
    """

    saga: Saga[Any, Any]
    domain: Domain
    parked: ParkedKeys
    clock: Clock


class Changed(Exception):
    """The instance is not what it was thought to be: read it again and think again."""


class Unfoldable(Exception):
    """Today's code cannot fold an instance that is not over. instance: what its records alone tell. error: what was
    raised."""

    def __init__(self, instance: SagaInstance[Any], error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.instance = instance
        self.error = error


class RecordIdTaken(CommandIdReused):
    """The id that a record is to have is that of another stream's command, which `appended` is."""

    def __init__(self, saga: str, command_id: UUID, appended: Appended) -> None:
        super().__init__(
            f"commandId {command_id} was used before, for {appended.stream_id}; saga {saga} cannot keep a record under "
            "it, and nothing was written.",
            appended.stream_id,
        )
        self.appended = appended


class Instances:
    """The instances of one saga.

    cache: instances kept in memory while they wait, at most.
    """

    def __init__(self, ports: Ports, appender: Appender, conducted: Conducted, *, cache: int) -> None:
        self._database = ports.database
        self._log = ports.log
        self._appender = appender
        self._saga = conducted.saga
        self._codec = conducted.domain.codec
        self._parked = conducted.parked
        self._cache = cache
        self._held: OrderedDict[UUID, Held] = OrderedDict()
        self._reading: dict[UUID, asyncio.Task[Held]] = {}

    @contextmanager
    def begun(self) -> Iterator[None]:
        """They are held until the context is left; then another may write to them, and all are forgotten."""
        try:
            yield
        finally:
            for reading in self._reading.values():
                reading.cancel()
            self._held.clear()
            self._reading.clear()

    # -------------------------------------------------------------------------------------------------------- in memory

    @property
    def count(self) -> int:
        """How many are held."""
        return len(self._held)

    async def begin_unknown(self, stream_ids: Iterable[UUID]) -> None:
        """Hold those of these instances that have no stream yet: one look finds which."""
        unknown = [stream_id for stream_id in stream_ids if stream_id not in self._held]
        if not unknown:
            return
        there = {row["stream_id"] for row in await self._database.pool.fetch(_SQL["there"], unknown)}
        for stream_id in unknown:
            if stream_id not in there and stream_id not in self._held:
                self._held[stream_id] = Held(SagaInstance(self._saga, stream_id, self._saga.initial))

    async def hold(self, stream_id: UUID) -> Held:
        """An instance, read if it is not held. It raises what reading it raises, but no fault that passes.

        Raises:
            Unfoldable.  LogError: the stream is not one of the saga.
        """
        held = self._held.get(stream_id)
        if held is not None:
            self._held.move_to_end(stream_id)
            return held
        reading = self._reading.get(stream_id)
        if reading is None:
            # Of no group: what it raises is for those who asked, and ends nobody else.
            reading = self._reading[stream_id] = asyncio.create_task(self._hold_read(stream_id))
            reading.add_done_callback(lambda done: self._is_read(stream_id, done))
        return await asyncio.shield(reading)

    def _is_read(self, stream_id: UUID, reading: asyncio.Task[Held]) -> None:
        if self._reading.get(stream_id) is reading:  # or it was cancelled, and another is on its way since
            del self._reading[stream_id]

    async def readable(self, stream_id: UUID) -> Held | None:
        """An instance; None when it cannot be read. When today's code cannot fold it, it is set aside: the others go
        on."""
        try:
            return await self.hold(stream_id)
        except PASSING:
            raise
        except Unfoldable as unfoldable:
            self.set_aside(unfoldable)
        except LogError:
            logger.exception("saga %s: %s cannot be read", self._saga.name, stream_id)
        return None

    def set_aside(self, unfoldable: Unfoldable) -> None:
        """Until a person has it tried again: the others go on."""
        key, error = unfoldable.instance.key, unfoldable.error
        assert key is not None  # an instance begins by taking an event
        logger.error("saga %s: %s cannot be folded", self._saga.name, key, exc_info=error)
        if not self._parked.is_parked(key):
            self._parked.set_aside(key, unfoldable.instance.first_position, error, self._parked.policy.times + 1)

    def unbegun(self, key: UUID, event: Recorded[Event], now: datetime) -> SagaInstance[Any]:
        """An instance as it is shown while its first event is set aside: it has no stream yet."""
        return SagaInstance(
            self._saga,
            self._saga.stream_of(key),
            self._saga.initial,
            key=key,
            position=event.position,
            correlation_id=event.correlation_id,
            started_at=now,
            since=now,
        )

    async def read_again(self, held: Held) -> None:
        """Take an instance as its stream tells it now, faults that pass outlasted. Its lock is the caller's.

        Raises:
            Unfoldable.
        """
        stream_id = held.instance.stream_id
        held.instance = await outlast(lambda: self._read(stream_id))

    def evict(self, written: Mapping[UUID, Held]) -> None:
        """Forget what is over and written, and what has waited the longest."""
        for stream_id, held in written.items():
            if held.instance.ended and not held.busy and self._held.get(stream_id) is held:
                del self._held[stream_id]
        excess = len(self._held) - self._cache
        if excess > 0:
            # Some more than there are too many, so that they are not gone through after each batch.
            idle = (stream_id for stream_id, held in self._held.items() if not held.busy)
            for stream_id in list(islice(idle, excess + self._cache // 10)):
                del self._held[stream_id]

    async def _hold_read(self, stream_id: UUID) -> Held:
        held = self._held[stream_id] = Held(await outlast(lambda: self._read(stream_id)))
        return held

    async def _read(self, stream_id: UUID) -> SagaInstance[Any]:
        """An instance, from its stream."""
        records: list[Recorded[SagaRecord]] = []
        async with aclosing(self._log.read_stream(stream_id)) as stream:
            async for category, event in stream:
                if category != self._saga.category:
                    raise LogError(f"The stream {stream_id} is of {category}, not of {self._saga.category}")
                records.append(cast("Recorded[SagaRecord]", event))
        try:
            positions = [each.data.position for each in records if isinstance(each.data, SagaHandledEvent)]
            events = {event.position: event.data for event in await self._log.at(positions)} if positions else {}
            return fold(self._saga, stream_id, records, events, self._codec)
        except PASSING:
            raise
        except Exception as error:
            instance = fold_without_state(self._saga, stream_id, records)
            if instance.ended:
                return instance
            raise Unfoldable(instance, error) from error

    # ---------------------------------------------------------------------------------------------------- in its stream

    async def append(
        self,
        held: Held,
        record: SagaRecord,
        given: Any,
        *,
        command_id: UUID,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
    ) -> None:
        """Append a record, under the instance's lock, and fold it.

        Raises:
            Changed: another has written to the stream.
            RecordIdTaken: the log has the id, in another stream.
        """
        instance = held.instance
        correlation_id = instance.correlation_id or correlation_id or command_id
        append = Append(
            command_id,
            instance.stream_id,
            self._saga.category,
            instance.version,
            [stored_form(record)],
            correlation_id,
            causation_id,
            f"saga {self._saga.name}",
        )
        appended = await outlast(lambda: self._appender.submit(append, Chain()))
        if appended.verdict is Verdict.DONE and appended.stream_id != instance.stream_id:
            raise RecordIdTaken(self._saga.name, command_id, appended)
        if appended.verdict is not Verdict.ACCEPTED:
            await self.read_again(held)
            raise Changed
        recorded = Recorded(
            record,
            appended.position,
            instance.stream_id,
            appended.version,
            record.at,
            command_id,  # its event's id is not known here, and nobody asks for it
            command_id,
            correlation_id,
            causation_id,
        )
        apply_record(instance, recorded, given)

    # ----------------------------------------------------------------------------------------------------- in the table

    async def drop_unbegun(self, connection: Connection, stream_ids: Collection[UUID]) -> None:
        """Remove the rows of those that have not begun: nothing of them is set aside any more."""
        await connection.execute(_SQL["drop_unbegun"], stream_ids)

    async def keep(self, connection: Connection, instances: Collection[SagaInstance[Any]]) -> None:
        """Write these as rows, with the messages that are to fall due."""
        columns = list(zip(*(_row(self._saga, instance) for instance in instances), strict=True))
        await connection.execute(_SQL["keep"], *columns)
        timers = [(instance.stream_id, t.type, t.due_at) for instance in instances for t in instance.timers.values()]
        streams, names, due = zip(*timers, strict=True) if timers else ((), (), ())
        timed = [instance.stream_id for instance in instances if instance.had_timers]
        if timed:
            await connection.execute(_SQL["stop_timers"], timed, streams, names, due)
        if timers:
            await connection.execute(_SQL["set_timers"], streams, names, due, self._saga.name)


def _row(saga: Saga[Any, Any], instance: SagaInstance[Any]) -> tuple[Any, ...]:
    """An instance as `headwater.sagas` keeps it."""
    step = instance.current
    return (
        instance.stream_id,
        saga.name,
        instance.key,
        instance.version,
        instance.position,
        instance.phase.value,
        msgspec.json.encode(instance.state, enc_hook=repr).decode(),
        msgspec.json.encode([_stored(each) for each in instance.steps]).decode(),
        None if step is None else step.command,
        instance.waiting_for,
        instance.since,
        instance.parked_for or instance.reason,
        instance.compensates,
        instance.started_at,
        instance.since if instance.ended else None,
        instance.correlation_id,
    )


class StoredStep(msgspec.Struct, rename="camel"):
    """A step of an instance as JSON in `headwater.sagas`. input: the JSON of the command's fields."""

    number: int
    command: str
    command_id: UUID
    input: msgspec.Raw
    state: StepState
    undoes: int | None
    since: datetime | None
    due_at: datetime | None
    reason: str | None


def _undoes(step: Step) -> int | None:
    """The step that an undo takes back; its own number if it takes back no recorded step. None for a forward step."""
    return None if isinstance(step, ForwardStep) else step.undoes or step.number


def _stored(step: Step) -> StoredStep:
    return StoredStep(
        step.number,
        step.command,
        step.command_id,
        msgspec.Raw(msgspec.json.encode(step.fields)),
        step.state,
        _undoes(step),
        step.issued_at,
        step.due_at,
        step.reason,
    )
