"""The loop of a consumer that acts on events: a saga or a reactor. A projection has its own loop, which folds them.

    hold the lease -> store retries -> begin retries -> read -> take -> commit -> store retries ...
                                                     -> nothing to read -> wait -> store retries ...
      store retries: write the outcomes of the retries that have ended
      begin retries: take the letters of parked keys that are due, in tasks beside the loop
      take:          each key's events in order, the keys concurrently. An event that fails parks its key
      commit:        the handler's rows, dead letters and checkpoint in one transaction
      wait:          until the log grows, a retry ends, a key is parked beside the loop or the poll interval ends
      another process moved the checkpoint -> hold the lease again, from the new position; if it is lost: end

Events are taken at least once. After a crash, those taken since the last commit are taken again, and the handler
recognises them.
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
from headwater.consumers.failure_log import Halted
from headwater.consumers.loop import LoopSettings, Ports
from headwater.consumers.parked_keys import ParkedKeys
from headwater.domain.messages import Event, Recorded
from headwater.eventstore.epoch import WITNESSES, MemoryOutdated
from headwater.eventstore.positions import LOG
from headwater.postgres.database import PASSING, Connection, write_derived
from headwater.supervisor import backoff

RETRIED_AT_ONCE = KEYS_AT_ONCE // 2
"""Keys that are retried concurrently, at most. It is below KEYS_AT_ONCE, so that a query for due keys also finds keys
that are not being retried yet."""

T = TypeVar("T")


class KeyUnknown(Halted):
    """The key of an event cannot be computed, so it cannot be parked: the consumer stops before the event."""


class Retried(NamedTuple):
    """The outcome of retrying a key: the letters that are done, and the one that failed again."""

    done: Sequence[PendingLetter[UUID]]
    failed: DeadLetter[UUID] | None


class EventHandler(ABC):
    """Acts on the events that a consumer reads. `keys_of` and `take` are required; the other hooks do nothing."""

    @abstractmethod
    def keys_of(self, event: Recorded[Event]) -> Sequence[UUID]:
        """Return the keys for each of which the event is taken, in the order of the key's events; none if it is not
        taken. An exception stops the consumer before the event."""

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

    async def go_back(self, connection: Connection, head: int) -> int:
        """Called in the transaction that moves the checkpoint back, because the log ends before it. Return the position
        to go on from."""
        return head

    def committed(self) -> None:
        """Called after that transaction."""
        return


async def outlast(call: Callable[[], Awaitable[T]]) -> T:
    """Call a function, again after each passing fault of the database, and return its result. The pauses grow."""
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
        self._retried_at_once = min(settings.at_once, RETRIED_AT_ONCE)
        self._retries: dict[UUID, asyncio.Task[Retried]] = {}
        self._look_at = 0.0
        self.progress = parked.progress

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Follow the log until cancelled, or until the lease is lost. Runs under a supervisor.

        well: called when the loop is past a failure.
        """
        connection = await self._database.connect(self._name)
        self._checkpoint = Checkpoint(connection, self._name, generation)
        self._letters = DeadLetters(self._name, generation.number, str, UUID)
        try:
            while (position := await self._checkpoint.read()) is not None:
                if (head := await self._checkpoint.rewind_to()) is not None:
                    position = await self._go_back(connection, position, head)
                self._parked.letters.clear()
                self._parked.replace(await self._letters.parked(connection))
                self._look_at = 0.0
                self.progress.position = position
                try:
                    async with self._handler.running():
                        await self._follow(connection, position, well)
                except (CheckpointMoved, MemoryOutdated):
                    self.progress.displaced += 1
                except Exception as error:
                    await self._checkpoint.halt(error)
                    raise
        finally:
            connection.terminate()

    async def _go_back(self, connection: asyncpg.Connection, position: int, head: int) -> int:
        """Go back from a checkpoint that is beyond the end of the log. Return the position to go on from."""
        async with self._transaction(connection):
            start = await self._handler.go_back(connection, head)
            await self._checkpoint.go_back(position, start)
            await self._letters.forget_after(connection, head)
        return start

    async def _follow(self, connection: asyncpg.Connection, position: int, well: Callable[[], None]) -> None:
        try:
            while True:
                alarms = self._positions.alarms
                await self._store_retries(connection)
                await self._begin_retries(connection)
                heard, epoch = self._positions.known(LOG), self._positions.epochs.current
                events, reached = await self._log.read_on(position, types=self._types, limit=self._settings.batch)
                if reached <= position and not self._to_write():
                    self._positions.correct(LOG, heard, reached)
                    well()
                    await self._wait(position, alarms)
                    continue
                position = await self._advance(connection, position, events, max(reached, position))
                self._positions.epochs.remember(events[-WITNESSES:], epoch)
                well()  # now: a log that keeps growing may not let the loop catch up for long
        finally:
            await self._cancel_retries()

    async def _wait(self, position: int, alarms: int) -> None:
        """Wait until the log grows, a key is parked, a retry ends, or a parked key or the next poll is due. alarms: see
        `Positions.alarms`."""
        patience = self._settings.poll
        if self._may_retry():
            patience = max(0.0, min(patience, self._look_at - asyncio.get_running_loop().time()))
        self._parked.changed.clear()
        if self._to_write() or any(retried.done() for retried in self._retries.values()):
            return
        moved = asyncio.ensure_future(self._positions.moved(LOG, position, patience, alarms))
        woken = asyncio.ensure_future(self._parked.changed.wait())
        try:
            await asyncio.wait([moved, woken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            woken.cancel()
        if self._positions.known(LOG) <= position:
            self._look_at = 0.0  # the wait timed out, or an operator rang the doorbell

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
                keys = self._keys_of(event)
            except KeyUnknown as unknown:
                if event.position - 1 == position:
                    self._log_halt(unknown, event.position)
                    raise
                events, reached = events[:place], event.position - 1  # first commit the events before it
                break
            for key in keys:
                by_key.setdefault(key, []).append(event)
        await outlast(lambda: self._handler.expect(by_key))
        failed = await asyncio.gather(*(self._take_all(key, mine) for key, mine in by_key.items()))
        aside = [*self._to_write(), *(letter for letters in failed for letter in letters)]
        self._parked.letters = [letter for letter in self._parked.letters if letter.key in self._retries]
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

    def _keys_of(self, event: Recorded[Event]) -> Sequence[UUID]:
        try:
            return self._handler.keys_of(event)
        except Exception as error:
            raise KeyUnknown(
                f"the key of {event.data.__declared__.name} at position {event.position} is not known: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _log_halt(self, unknown: KeyUnknown, position: int) -> None:
        self.progress.failures += 1
        cause = unknown.__cause__ or unknown
        self._parked.failures.log(cause, position, f"it halts before the event at position {position}, without a key")

    def _count(self, events: Sequence[Recorded[Event]], reached: int) -> None:
        self.progress.passed([event.recorded_at for event in events], reached)
        self._positions.report(self._name, reached)

    async def _take_all(self, key: UUID, events: Sequence[Recorded[Event]]) -> list[DeadLetter[UUID]]:
        """Take one key's events in order. Return a letter for the event that failed, and for each event behind it."""
        async with self._at_once:
            aside: list[DeadLetter[UUID]] = []
            for event in events:
                if aside or key in self._parked.keys:
                    aside.append(DeadLetter(key, event.position))
                    continue
                error = await self._take(key, event)
                if error is not None:
                    aside.append(self._parked.letter(key, event.position, error, 1))
            return aside

    async def _take(self, key: UUID, event: Recorded[Event]) -> Exception | None:
        """Take an event and wait out passing faults of the database. Return any other error."""
        try:
            await outlast(lambda: self._handler.take(key, event))
        except (CheckpointMoved, MemoryOutdated):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            return error
        return None

    # ------------------------------------------------------------------------------------------------- parked keys

    def _to_write(self) -> list[DeadLetter[UUID]]:
        """Return the letters that were made beside the loop and can be written now. Those of a key that is being
        retried wait for the outcome of the retry, which may remove the same letter."""
        return [letter for letter in self._parked.letters if letter.key not in self._retries]

    def _may_retry(self) -> bool:
        """True if the loop may begin to retry a key that is due."""
        return bool(self._parked.keys) and not self._parked.letters and len(self._retries) < self._retried_at_once

    async def _begin_retries(self, connection: asyncpg.Connection) -> None:
        """Begin to retry the keys that are due, each in a task: however long a retry takes, it delays no other key."""
        now = asyncio.get_running_loop().time()
        if not self._may_retry() or now < self._look_at:
            return
        due, next_due = await self._letters.due(connection)
        self._look_at = now + (self._settings.poll if next_due is None else min(self._settings.poll, next_due))
        keys = [key for key in due if key not in self._retries][: self._retried_at_once - len(self._retries)]
        if not keys:
            return
        waiting = await self._letters.pending(connection, keys, self._settings.batch)
        events = {event.position: event for event in await self._log.at([letter.position for letter in waiting])}
        by_key: dict[UUID, list[PendingLetter[UUID]]] = {}
        for letter in waiting:
            by_key.setdefault(letter.key, []).append(letter)
        self._parked.retrying |= by_key.keys()
        for key, mine in by_key.items():
            self._retries[key] = asyncio.create_task(self._retry(key, mine, events))

    async def _retry(
        self, key: UUID, letters: Sequence[PendingLetter[UUID]], events: Mapping[int, Recorded[Event]]
    ) -> Retried:
        try:
            return await self._take_letters(letters, events)
        finally:
            self._parked.retrying.discard(key)
            self._parked.changed.set()

    async def _take_letters(
        self, letters: Sequence[PendingLetter[UUID]], events: Mapping[int, Recorded[Event]]
    ) -> Retried:
        """Take one key's letters in order, up to the first that fails again. Discarded letters count as done."""
        for place, letter in enumerate(letters):
            if letter.discarded:
                continue
            self.progress.retries += letter.attempts > 0
            error = await self._take(letter.key, events[letter.position])
            if error is not None:
                return Retried(
                    letters[:place], self._parked.letter(letter.key, letter.position, error, letter.attempts + 1)
                )
        return Retried(letters, None)

    async def _store_retries(self, connection: asyncpg.Connection) -> None:
        """Write the outcomes of the retries that have ended. Until then, new events of these keys are parked, too."""
        retried = {key: task.result() for key, task in self._retries.items() if task.done()}
        if not retried:
            return
        failed = {key: each.failed for key, each in retried.items() if each.failed is not None}
        # Keys that were parked again meanwhile stay parked.
        well = retried.keys() - failed.keys() - {letter.key for letter in self._parked.letters}
        async with self._transaction(connection):
            await self._checkpoint.hold()
            await self._letters.remove(connection, [letter for each in retried.values() for letter in each.done])
            await self._letters.park(connection, list(failed.values()))
            more = await self._letters.go_on(connection, well)
            await self._handler.write(connection, well - more)
        self._handler.committed()
        for key in retried:
            del self._retries[key]
        self._look_at = 0.0
        freed = well - more - {letter.key for letter in self._parked.letters}
        self._parked.replace(self._parked.keys - freed)
        await outlast(lambda: self._handler.resume(freed))

    async def _cancel_retries(self) -> None:
        """Cancel the retries. Their outcomes are not written, so the letters are retried later."""
        retries = list(self._retries.values())
        for retried in retries:
            retried.cancel()
        await asyncio.gather(*retries, return_exceptions=True)
        self._retries.clear()
        self._parked.retrying.clear()

    @asynccontextmanager
    async def _transaction(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        async with connection.transaction():
            await write_derived(connection, quiet=self._settings.lease / 2)
            yield
