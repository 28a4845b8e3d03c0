"""A saga's instances: folded from their streams into memory, and stored as rows of `headwater.sagas`.

    not held -> read from its stream -> held
             -> this code cannot fold it -> its key is parked; an ended instance needs no fold and is held
    held     -> a record is appended -> held, with the record folded
             -> the append conflicts with another writer -> read again -> held
             -> ended and stored, or the cache is full -> not held

A record is appended under the instance's lock, at the version that it was made from. So neither two tasks nor two
processes continue from the same version.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
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
from headwater.domain.saga import Saga, SagaInput
from headwater.domain.saga_fold import Untaken, apply_record, fold, fold_without_state
from headwater.domain.saga_records import SagaHandledEvent, SagaRecord
from headwater.domain.saga_state import ForwardStep, SagaInstance, Step, StepState
from headwater.domain.serialization import stored_form
from headwater.errors import CommandIdReused, LogError
from headwater.eventstore.appender import Appender, Chain
from headwater.eventstore.epoch import MemoryOutdated
from headwater.eventstore.log import Append, Appended, Verdict
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Connection

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)


@dataclass(slots=True, eq=False)
class Held:
    """An instance in memory.

    lock: held while a record is made and appended. driver: the task that issues its steps. failures: consecutive errors
    of the app's code on the current step's outcome.
    """

    instance: SagaInstance[Any]
    failures: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    driver: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """True if a task holds its lock or drives it, so that it must stay in memory."""
        return self.lock.locked() or (self.driver is not None and not self.driver.done())


@dataclass(frozen=True, slots=True)
class Entry:
    """A record to append to an instance's stream.

    given: the input that the record stands for. correlation_id: of a new instance; a begun one keeps its own.
    """

    record: SagaRecord
    given: SagaInput | Untaken | None
    command_id: UUID
    causation_id: UUID | None
    correlation_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Conducted:
    """The saga that a conductor runs, with what all parts of the conductor share.

    parked: the keys of instances that cannot go on. clock: the time of records, deadlines and timers.
    """

    saga: Saga[Any]
    domain: Domain
    parked: ParkedKeys
    clock: Clock


class Changed(Exception):
    """The instance has changed since a record was made from it: the record must be made again."""


class Unfoldable(Exception):
    """This code cannot fold an instance that has not ended.

    instance: folded from its records without the saga's state. error: the error of the fold.
    """

    def __init__(self, instance: SagaInstance[Any], error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.instance = instance
        self.error = error


class RecordIdTaken(CommandIdReused):
    """The id of a record is the id of a command on another stream. appended: that command's verdict."""

    def __init__(self, saga: str, command_id: UUID, appended: Appended) -> None:
        super().__init__(
            f"commandId {command_id} was used before, for {appended.stream_id}; saga {saga} cannot append a "
            "record with this id. Nothing was written.",
            appended.stream_id,
        )
        self.appended = appended


class Instances:
    """The instances of one saga, in memory, in their streams and as rows.

    cache: instances kept in memory while they wait, at most.
    """

    def __init__(self, ports: Ports, appender: Appender, conducted: Conducted, *, cache: int) -> None:
        self._database = ports.database
        self._log = ports.log
        self._appender = appender
        self._saga = conducted.saga
        self._domain = conducted.domain
        self._parked = conducted.parked
        self._cache = cache
        self.epoch = appender.epochs.current.number
        self._held: OrderedDict[UUID, Held] = OrderedDict()
        self._reading: dict[UUID, asyncio.Task[Held]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold instances until the context is left. Then all are forgotten, since another worker may write to them."""
        self.epoch = self._appender.epochs.current.number
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
        """The number of instances in memory."""
        return len(self._held)

    async def hold_new(self, stream_ids: Iterable[UUID]) -> None:
        """Hold the instances among these that have no stream yet. Takes one query."""
        unknown = [stream_id for stream_id in stream_ids if stream_id not in self._held]
        if not unknown:
            return
        begun = {row["stream_id"] for row in await self._database.pool.fetch(_SQL["begun"], unknown)}
        for stream_id in unknown:
            if stream_id not in begun and stream_id not in self._held:
                self._held[stream_id] = Held(SagaInstance(self._saga, stream_id, self._saga.initial))

    async def hold(self, stream_id: UUID) -> Held:
        """Return an instance; read it from its stream if it is not held. Waits out passing faults of the database.

        Raises:
            Unfoldable: this code cannot fold the instance.
            LogError: the stream belongs to another category.
        """
        held = self._held.get(stream_id)
        if held is not None:
            self._held.move_to_end(stream_id)
            return held
        reading = self._reading.get(stream_id)
        if reading is None:
            # In no task group: its error belongs to the callers and must not end other tasks.
            reading = self._reading[stream_id] = asyncio.create_task(self._hold_read(stream_id))
            reading.add_done_callback(lambda done: self._is_read(stream_id, done))
        return await asyncio.shield(reading)

    def _is_read(self, stream_id: UUID, reading: asyncio.Task[Held]) -> None:
        if self._reading.get(stream_id) is reading:  # otherwise it was cancelled, and a later read is under way
            del self._reading[stream_id]

    async def readable(self, stream_id: UUID) -> Held | None:
        """Return an instance, or None if it cannot be read. If this code cannot fold it, its key is parked. The other
        instances go on either way."""
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
        """Park the key of an instance that this code cannot fold, until an operator retries it."""
        key, error = unfoldable.instance.key, unfoldable.error
        assert key is not None  # an instance begins with an event
        if not self._parked.is_parked(key):
            self._parked.set_aside(key, unfoldable.instance.first_position, error, self._parked.policy.times + 1)

    def not_begun(self, key: UUID, event: Recorded[Event], now: datetime) -> SagaInstance[Any]:
        """Return an instance without a stream, to be listed while its first event is parked."""
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
        """Replace an instance by a new fold of its stream. The caller has its lock. Waits out passing faults.

        Raises:
            Unfoldable: this code cannot fold the instance.
        """
        stream_id = held.instance.stream_id
        held.instance = await outlast(lambda: self._read(stream_id))

    def evict(self, written: Mapping[UUID, Held]) -> None:
        """Forget the ended instances among those just stored. If the cache is full, forget the least recently used
        ones, too."""
        for stream_id, held in written.items():
            if held.instance.ended and not held.busy and self._held.get(stream_id) is held:
                del self._held[stream_id]
        excess = len(self._held) - self._cache
        if excess > 0:
            # A tenth more than necessary, so that not every batch scans the cache.
            idle = (stream_id for stream_id, held in self._held.items() if not held.busy)
            for stream_id in list(islice(idle, excess + self._cache // 10)):
                del self._held[stream_id]

    async def _hold_read(self, stream_id: UUID) -> Held:
        held = self._held[stream_id] = Held(await outlast(lambda: self._read(stream_id)))
        return held

    async def _read(self, stream_id: UUID) -> SagaInstance[Any]:
        """Return the fold of an instance's stream."""
        records: list[Recorded[SagaRecord]] = []
        async with aclosing(self._log.read_stream(stream_id)) as stream:
            async for category, event in stream:
                if category != self._saga.category:
                    raise LogError(f"stream {stream_id} belongs to category {category}, not to {self._saga.category}")
                records.append(cast("Recorded[SagaRecord]", event))
        try:
            positions = [each.data.position for each in records if isinstance(each.data, SagaHandledEvent)]
            found = {event.position: event for event in await self._log.at(positions)} if positions else {}
            records = [each for each in records if _has_event(each.data, found)]
            events = {position: event.data for position, event in found.items()}
            return fold(self._saga, stream_id, records, events, self._domain)
        except PASSING:
            raise
        except Exception as error:
            instance = fold_without_state(self._saga, stream_id, records)
            if instance.ended:
                return instance
            raise Unfoldable(instance, error) from error

    # ---------------------------------------------------------------------------------------------------- in its stream

    async def append(self, held: Held, entry: Entry) -> None:
        """Append a record and fold it. The caller has the instance's lock.

        Raises:
            Changed: another writer has appended to the stream; the instance was read again.
            RecordIdTaken: the id belongs to a command on another stream.
            MemoryOutdated: another epoch of the log has begun since the instances were read.
        """
        self._require_epoch()
        instance, record, command_id = held.instance, entry.record, entry.command_id
        correlation_id = instance.correlation_id or entry.correlation_id or command_id
        append = Append(
            command_id,
            instance.stream_id,
            self._saga.category,
            instance.version,
            [stored_form(record)],
            correlation_id,
            entry.causation_id,
            f"saga {self._saga.name}",
            epoch=self.epoch or None,
        )
        appended = await outlast(lambda: self._appender.submit(append, Chain()))
        if appended.verdict is Verdict.DONE and appended.stream_id != instance.stream_id:
            raise RecordIdTaken(self._saga.name, command_id, appended)
        self._require_epoch()
        if appended.verdict is not Verdict.ACCEPTED:
            await self.read_again(held)
            raise Changed
        recorded = Recorded(
            record,
            appended.position,
            instance.stream_id,
            appended.version,
            record.at,
            command_id,  # stands in for the event's id, which the append does not return and the fold does not use
            command_id,
            correlation_id,
            entry.causation_id,
        )
        apply_record(instance, recorded, entry.given)

    def _require_epoch(self) -> None:
        if self.epoch != self._appender.epochs.current.number:
            raise MemoryOutdated

    # ----------------------------------------------------------------------------------------------------- in its row

    async def drop_not_begun(self, connection: Connection, stream_ids: Collection[UUID]) -> None:
        """Remove the rows of instances that have no stream and whose first event is no longer parked."""
        await connection.execute(_SQL["drop_not_begun"], stream_ids)

    async def go_back(self, connection: Connection, head: int) -> None:
        """Write again the rows of instances whose last record was after the end of the log."""
        dropped = await connection.fetch(_SQL["drop_beyond"], self._saga.name, head)
        instances = [await outlast(partial(self._read, row["stream_id"])) for row in dropped]
        begun = [instance for instance in instances if instance.version]
        if begun:
            await self.store(connection, begun)

    async def store(self, connection: Connection, instances: Collection[SagaInstance[Any]]) -> None:
        """Write the rows of instances, and of their timers."""
        columns = list(zip(*(_row(self._saga, instance) for instance in instances), strict=True))
        await connection.execute(_SQL["store"], *columns)
        timers = [(instance.stream_id, t.type, t.due_at) for instance in instances for t in instance.timers.values()]
        streams, names, due = zip(*timers, strict=True) if timers else ((), (), ())
        timed = [instance.stream_id for instance in instances if instance.had_timers]
        if timed:
            await connection.execute(_SQL["stop_timers"], timed, streams, names, due)
        if timers:
            await connection.execute(_SQL["set_timers"], streams, names, due, self._saga.name)


def _has_event(record: SagaRecord, found: Mapping[int, Recorded[Event]]) -> bool:
    """False if the record is of an event that the log does not have: the log has lost it."""
    if not isinstance(record, SagaHandledEvent):
        return True
    event = found.get(record.position)
    return event is not None and event.event_id == record.event_id


def _row(saga: Saga[Any], instance: SagaInstance[Any]) -> tuple[Any, ...]:
    """Return the columns of an instance's row in `headwater.sagas`."""
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
