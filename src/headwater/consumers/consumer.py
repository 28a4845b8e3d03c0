"""The loop of a consumer that acts on events: a saga or a reactor. A projection has its own loop, which folds them.

    leased -> following: read -> take, keys beside each other -> commit -> ... -> waiting -> following ...
                 \\-> taking failed: the key is parked, all others go on -> due -> taken again, in order and beside the
                 |      following -> the outcome is written between two batches
                 \\-> the checkpoint was moved by another process -> still leased: begin again; lease lost: end

Events are taken at least once: those taken after the last commit are taken again after a crash. The handler recognises
them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar
from uuid import UUID

import asyncpg

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import KEYS_AT_ONCE, DeadLetter, DeadLetters, PendingLetter
from headwater.consumers.loop import LoopSettings, Ports
from headwater.consumers.parked_keys import ParkedKeys
from headwater.domain.messages import Event, Recorded
from headwater.errors import HeadwaterError
from headwater.eventstore.positions import LOG
from headwater.postgres.database import PASSING, Connection, write_derived
from headwater.supervisor import backoff

TRIED_AT_ONCE = KEYS_AT_ONCE // 2
"""Keys that are tried again beside each other, at most: so that a look at those that are due finds others, too."""

T = TypeVar("T")


class KeyUnknown(HeadwaterError):
    """The key of an event cannot be computed, so it cannot be parked: the consumer stands still before it."""


class Tried(NamedTuple):
    """The outcome of trying a key again: the letters that are done, and the one that failed again."""

    done: Sequence[PendingLetter]
    failed: DeadLetter | None


class EventHandler(ABC):
    """Acts on the events that a consumer reads. `key_of` and `take` are required; the other hooks do nothing."""

    @abstractmethod
    def key_of(self, event: Recorded[Event]) -> UUID | None:
        """Return the key in whose order the event is taken; None if it is not taken. An exception stops the consumer
        before the event."""

    @abstractmethod
    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """Act on an event. An exception parks the key, unless it is a passing fault of the database."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Entered when the lease is taken, and left when it is lost."""
        yield

    async def expect(self, keys: Collection[UUID]) -> None:
        """Called before the events of these keys are taken."""
        return

    async def resume(self, keys: Collection[UUID]) -> None:
        """Called when these keys are no longer parked."""
        return

    async def catch_up(self, events: Sequence[Recorded[Event]]) -> None:
        """Called after a batch is taken, before its checkpoint is moved."""
        return

    async def write(self, connection: Connection, freed: Collection[UUID]) -> None:
        """Called in the transaction that moves the checkpoint, or that removes dead letters. freed: keys that have no
        dead letter left."""
        return

    def committed(self) -> None:
        """Called after that transaction."""
        return


async def outlast(call: Callable[[], Awaitable[T]]) -> T:
    """Call until no passing fault of the database interferes, and return the result."""
    failures = 0
    while True:
        try:
            return await call()
        except PASSING:
            failures += 1
            await asyncio.sleep(backoff(failures))


class Consumer:
    """Reads the log for one handler, under one lease.

    name: of the unit. types: the stored names of the events that are read.
    """

    def __init__(
        self,
        ports: Ports,
        handler: EventHandler,
        parked: ParkedKeys,
        settings: LoopSettings,
        *,
        name: str,
        types: Sequence[str],
    ) -> None:
        self._database = ports.database
        self._log = ports.log
        self._positions = ports.positions
        self._handler = handler
        self._name = name
        self._types = types
        self._parked = parked
        self._settings = settings
        self._at_once = asyncio.Semaphore(settings.at_once)
        self._tried_at_once = min(settings.at_once, TRIED_AT_ONCE)
        self._tries: dict[UUID, asyncio.Task[Tried]] = {}
        self._look_at = 0.0
        self.progress = parked.progress

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Follow until cancelled, or until the lease with this fence is another's. Runs under a supervisor, which is
        told when a failure is got over."""
        connection = await self._database.connect(self._name)
        self._checkpoint = Checkpoint(connection, self._name, generation)
        self._letters = DeadLetters(self._name, generation.number)
        try:
            while (position := await self._checkpoint.read()) is not None:
                self._parked.letters.clear()
                self._parked.replace(await self._letters.parked(connection))
                self._look_at = 0.0
                self.progress.position = position
                try:
                    async with self._handler.running():
                        await self._follow(connection, position, well)
                except CheckpointMoved:
                    self.progress.displaced += 1
        finally:
            connection.terminate()

    async def _follow(self, connection: asyncpg.Connection, position: int, well: Callable[[], None]) -> None:
        try:
            while True:
                alarms = self._positions.alarms
                await self._write_tried(connection)
                await self._try_due(connection)
                heard = self._positions.known(LOG)
                events, reached = await self._log.read_on(position, types=self._types, limit=self._settings.batch)
                if reached <= position and not self._to_write():
                    self._positions.correct(LOG, heard, reached)
                    well()
                    await self._wait(position, alarms)
                    continue
                position = await self._advance(connection, position, events, max(reached, position))
                well()  # now: a log that keeps growing may not let the loop catch up for long
        finally:
            await self._stop_trying()

    async def _wait(self, position: int, alarms: int) -> None:
        """Until the log moves, a key is set aside or was tried again, or it is time to look all the same. alarms: see
        `Positions.alarms`."""
        patience = self._settings.poll
        if self._may_try():
            patience = max(0.0, min(patience, self._look_at - asyncio.get_running_loop().time()))
        self._parked.changed.clear()
        if self._to_write() or any(tried.done() for tried in self._tries.values()):
            return
        moved = asyncio.ensure_future(self._positions.moved(LOG, position, patience, alarms))
        woken = asyncio.ensure_future(self._parked.changed.wait())
        try:
            await asyncio.wait([moved, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            woken.cancel()
        if self._positions.known(LOG) <= position:
            self._look_at = 0.0  # time is up, or a person rang

    async def _advance(
        self, connection: asyncpg.Connection, position: int, events: Sequence[Recorded[Event]], reached: int
    ) -> int:
        """Take a batch, and commit the checkpoint that it reaches."""
        if not events and not self._to_write():
            await self._checkpoint.skip(position, reached)
            self._count(events, reached)
            return reached
        by_key: dict[UUID, list[Recorded[Event]]] = {}
        for place, event in enumerate(events):
            try:
                key = self._key_of(event)
            except KeyUnknown:
                if event.position - 1 == position:
                    raise
                events, reached = events[:place], event.position - 1  # what came before it stands in no one's way
                break
            if key is not None:
                by_key.setdefault(key, []).append(event)
        await outlast(lambda: self._handler.expect(by_key))
        failed = await asyncio.gather(*(self._take_all(key, mine) for key, mine in by_key.items()))
        aside = [*self._to_write(), *(letter for letters in failed for letter in letters)]
        self._parked.letters = [letter for letter in self._parked.letters if letter.key in self._tries]
        await outlast(lambda: self._handler.catch_up(events))
        async with self._transaction(connection):
            await self._checkpoint.move(position, reached)
            await self._handler.write(connection, ())
            if aside:
                await self._letters.park(connection, aside)
        self._handler.committed()
        self._parked.replace(self._parked.keys | {letter.key for letter in aside})
        self._count(events, reached)
        return reached

    def _key_of(self, event: Recorded[Event]) -> UUID | None:
        try:
            return self._handler.key_of(event)
        except Exception as error:
            raise KeyUnknown(
                f"the key of {event.data.__declared__.name} at position {event.position} is not known: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _count(self, events: Sequence[Recorded[Event]], reached: int) -> None:
        self.progress.passed([event.recorded_at for event in events], reached)
        self._positions.report(self._name, reached)

    async def _take_all(self, key: UUID, events: Sequence[Recorded[Event]]) -> list[DeadLetter]:
        """One key's events in their order; what could not be taken, and what waits behind it."""
        async with self._at_once:
            aside: list[DeadLetter] = []
            for event in events:
                if aside or key in self._parked.keys:
                    aside.append(DeadLetter(key, event.position))
                    continue
                error = await self._take(key, event)
                if error is not None:
                    aside.append(self._parked.letter(key, event.position, error, 1))
            return aside

    async def _take(self, key: UUID, event: Recorded[Event]) -> Exception | None:
        """Take an event, faults that pass outlasted; what else was raised."""
        try:
            await outlast(lambda: self._handler.take(key, event))
        except CheckpointMoved:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            return error
        return None

    # ------------------------------------------------------------------------------------------------- what waits aside

    def _to_write(self) -> list[DeadLetter]:
        """What was set aside beside the reading. What belongs to a key that is tried comes after the outcome of that,
        which may remove the same letter."""
        return [letter for letter in self._parked.letters if letter.key not in self._tries]

    def _may_try(self) -> bool:
        return bool(self._parked.keys) and not self._parked.letters and len(self._tries) < self._tried_at_once

    async def _try_due(self, connection: asyncpg.Connection) -> None:
        """Begin to take what waits for the keys that are due. However long that takes, it holds up no other key."""
        now = asyncio.get_running_loop().time()
        if not self._may_try() or now < self._look_at:
            return
        due, next_due = await self._letters.due(connection)
        self._look_at = now + (self._settings.poll if next_due is None else min(self._settings.poll, next_due))
        keys = [key for key in due if key not in self._tries][: self._tried_at_once - len(self._tries)]
        if not keys:
            return
        waiting = await self._letters.pending(connection, keys, self._settings.batch)
        events = {event.position: event for event in await self._log.at([letter.position for letter in waiting])}
        by_key: dict[UUID, list[PendingLetter]] = {}
        for letter in waiting:
            by_key.setdefault(letter.key, []).append(letter)
        self._parked.retrying |= by_key.keys()
        for key, mine in by_key.items():
            self._tries[key] = asyncio.create_task(self._try(key, mine, events))

    async def _try(self, key: UUID, letters: Sequence[PendingLetter], events: Mapping[int, Recorded[Event]]) -> Tried:
        try:
            return await self._take_waiting(letters, events)
        finally:
            self._parked.retrying.discard(key)
            self._parked.changed.set()

    async def _take_waiting(self, letters: Sequence[PendingLetter], events: Mapping[int, Recorded[Event]]) -> Tried:
        """Take one key's letters in their order."""
        for place, letter in enumerate(letters):
            if letter.discarded:
                continue
            self.progress.retries += letter.attempts > 0
            error = await self._take(letter.key, events[letter.position])
            if error is not None:
                return Tried(
                    letters[:place], self._parked.letter(letter.key, letter.position, error, letter.attempts + 1)
                )
        return Tried(letters, None)

    async def _write_tried(self, connection: asyncpg.Connection) -> None:
        """Write what became of the keys that were tried. Until then what is read for them waits behind."""
        tried = {key: task.result() for key, task in self._tries.items() if task.done()}
        if not tried:
            return
        failed = {key: each.failed for key, each in tried.items() if each.failed is not None}
        # Not those that were set aside meanwhile: what waits for them waits behind that.
        well = tried.keys() - failed.keys() - {letter.key for letter in self._parked.letters}
        async with self._transaction(connection):
            await self._checkpoint.hold()
            await self._letters.remove(connection, [letter for each in tried.values() for letter in each.done])
            await self._letters.park(connection, list(failed.values()))
            more = await self._letters.go_on(connection, well)
            await self._handler.write(connection, well - more)
        self._handler.committed()
        for key in tried:
            del self._tries[key]
        self._look_at = 0.0
        freed = well - more - {letter.key for letter in self._parked.letters}
        self._parked.replace(self._parked.keys - freed)
        await outlast(lambda: self._handler.resume(freed))

    async def _stop_trying(self) -> None:
        """What was being taken is not written, and will be taken again."""
        tries = list(self._tries.values())
        for tried in tries:
            tried.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        self._tries.clear()
        self._parked.retrying.clear()

    @asynccontextmanager
    async def _transaction(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        async with connection.transaction():
            await write_derived(connection, quiet=self._settings.lease / 2)
            yield
