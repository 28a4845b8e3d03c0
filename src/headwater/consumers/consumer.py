"""Following the log for those who act on events, where a projection only folds them: sagas and reactors.

    leased -> begin -> following: read -> take, keys beside each other -> commit -> ... -> waiting -> following ...
                          \\-> taking failed: its key set aside, all others go on -> due -> taken again, in order and
                          |      beside the following -> the outcome written between two batches
                          \\-> displaced (another moved the checkpoint) -> leased still: begin again; or no longer: end

Taking is at least once: what was taken before the checkpoint was moved is taken again after a crash, and it is for him
who takes to know it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import NamedTuple, Protocol, TypeVar
from uuid import UUID

import asyncpg

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import KEYS_AT_ONCE, DeadLetter, DeadLetters, PendingLetter, described
from headwater.domain.failure_policy import Retry
from headwater.domain.messages import Event, Recorded
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.eventstore.positions import LOG, Positions
from headwater.postgres.database import PASSING, Connection, Database, write_derived
from headwater.supervisor import backoff
from headwater.telemetry import Progress

TRIED_AT_ONCE = KEYS_AT_ONCE // 2
"""Keys that are tried again beside each other, at most: so that a look at those that are due finds others, too."""

T = TypeVar("T")


class KeyUnknown(HeadwaterError):
    """In whose order an event is to be taken is not known, so that it cannot be set aside: the follower stands still
    before it."""


class Tried(NamedTuple):
    """What became of a key that was tried again: the letters that are done, and the one that failed again."""

    done: Sequence[PendingLetter]
    failed: DeadLetter | None


class Taker(Protocol):
    """Who acts on what a follower reads."""

    def begun(self) -> AbstractAsyncContextManager[None]:
        """The lease is this process's now, until the context is left."""
        ...

    def key_of(self, event: Recorded[Event]) -> UUID | None:
        """In whose order it is to be taken; None when it is not to be taken at all. What it raises stops the follower
        before the event."""
        ...

    async def ready(self, keys: Collection[UUID]) -> None:
        """Before a batch is taken: these keys come."""
        ...

    async def take(self, key: UUID, event: Recorded[Event]) -> None:
        """Act on an event. What it raises sets the key aside, unless it is of those that pass."""
        ...

    async def freed(self, keys: Collection[UUID]) -> None:
        """These keys were set aside, and nothing waits for them any more."""
        ...

    async def look(self, events: Sequence[Recorded[Event]]) -> None:
        """After a batch is taken, before the checkpoint is moved past it."""
        ...

    async def write(self, connection: Connection, freed: Collection[UUID]) -> None:
        """In the transaction that moves the checkpoint past the batch, or that removes what was set aside and is taken,
        or passed over, now. freed: keys for which nothing waits any more."""
        ...

    def written(self) -> None:
        """The transaction is committed."""
        ...


async def outlast(call: Callable[[], Awaitable[T]]) -> T:
    """Call until no fault that passes is in the way. What it then returns."""
    failures = 0
    while True:
        try:
            return await call()
        except PASSING:
            failures += 1
            await asyncio.sleep(backoff(failures))


class Follower:
    """Reads the log for one taker, under one lease.

    types: the stored names of what is read. batch: events between two checkpoints, at most. at_once: keys that are
    taken beside each other, and as many, up to 50, that are tried again meanwhile. poll: seconds after which it looks
    though nothing rang. lease: of this process, in seconds.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        positions: Positions,
        taker: Taker,
        *,
        name: str,
        types: Sequence[str],
        policy: Retry,
        batch: int = 500,
        at_once: int = 256,
        poll: float = 1.0,
        lease: float = 6.0,
    ) -> None:
        self._database = database
        self._log = log
        self._positions = positions
        self._taker = taker
        self._name = name
        self._types = types
        self._policy = policy
        self._batch = batch
        self._at_once = asyncio.Semaphore(at_once)
        self._tried_at_once = min(at_once, TRIED_AT_ONCE)
        self._poll = poll
        self._lease = lease
        self._aside: list[DeadLetter] = []
        self._parked: set[UUID] = set()
        self._tries: dict[UUID, asyncio.Task[Tried]] = {}
        self._trying: set[UUID] = set()
        self._look_at = 0.0
        self._woken = asyncio.Event()
        self.progress = Progress()

    def is_parked(self, key: UUID) -> bool:
        """Whether a key is set aside: what comes for it waits. While it is tried again it is not, so that what is taken
        then can go on."""
        return key in self._parked and key not in self._trying

    def set_aside(self, key: UUID, position: int, error: Exception, attempts: int) -> None:
        """Park a key for something that failed beside the reading of the log. It is written with the next commit."""
        self._aside.append(self._letter(key, position, error, attempts))
        self._trying.discard(key)
        self._set_parked(self._parked | {key})
        self._woken.set()

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Follow until cancelled, or until the lease with this fence is another's. Runs under a supervisor, which is
        told when a failure is got over."""
        connection = await self._database.connect(self._name)
        self._checkpoint = Checkpoint(connection, self._name, generation)
        self._letters = DeadLetters(self._name, generation.number)
        try:
            while (position := await self._checkpoint.read()) is not None:
                self._aside.clear()
                self._set_parked(await self._letters.parked(connection))
                self._look_at = 0.0
                self.progress.position = position
                try:
                    async with self._taker.begun():
                        await self._follow(connection, position, well)
                except CheckpointMoved:
                    self.progress.displaced += 1
        finally:
            connection.terminate()

    def _set_parked(self, keys: set[UUID]) -> None:
        self._parked = keys
        self.progress.parked_keys = len(keys)

    async def _follow(self, connection: asyncpg.Connection, position: int, well: Callable[[], None]) -> None:
        try:
            while True:
                alarms = self._positions.alarms
                await self._write_tried(connection)
                await self._try_due(connection)
                heard = self._positions.known(LOG)
                events, reached = await self._log.read_on(position, types=self._types, limit=self._batch)
                if reached <= position and not self._to_write():
                    self._positions.correct(LOG, heard, reached)
                    well()
                    await self._wait(position, alarms)
                    continue
                position = await self._advance(connection, position, events, max(reached, position))
        finally:
            await self._stop_trying()

    async def _wait(self, position: int, alarms: int) -> None:
        """Until the log moves, a key is set aside or was tried again, or it is time to look all the same. alarms: see
        `Positions.alarms`."""
        patience = self._poll
        if self._may_try():
            patience = max(0.0, min(patience, self._look_at - asyncio.get_running_loop().time()))
        self._woken.clear()
        if self._to_write() or any(tried.done() for tried in self._tries.values()):
            return
        moved = asyncio.ensure_future(self._positions.moved(LOG, position, patience, alarms))
        woken = asyncio.ensure_future(self._woken.wait())
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
        await outlast(lambda: self._taker.ready(by_key))
        failed = await asyncio.gather(*(self._take_all(key, mine) for key, mine in by_key.items()))
        aside = [*self._to_write(), *(letter for letters in failed for letter in letters)]
        self._aside = [letter for letter in self._aside if letter.key in self._tries]
        await outlast(lambda: self._taker.look(events))
        async with self._transaction(connection):
            await self._checkpoint.move(position, reached)
            await self._taker.write(connection, ())
            if aside:
                await self._letters.park(connection, aside)
        self._taker.written()
        self._set_parked(self._parked | {letter.key for letter in aside})
        self._count(events, reached)
        return reached

    def _key_of(self, event: Recorded[Event]) -> UUID | None:
        try:
            return self._taker.key_of(event)
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
                if aside or key in self._parked:
                    aside.append(DeadLetter(key, event.position))
                    continue
                error = await self._take(key, event)
                if error is not None:
                    aside.append(self._letter(key, event.position, error, 1))
            return aside

    async def _take(self, key: UUID, event: Recorded[Event]) -> Exception | None:
        """Take an event, faults that pass outlasted; what else was raised."""
        try:
            await outlast(lambda: self._taker.take(key, event))
        except CheckpointMoved:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            return error
        return None

    def _letter(self, key: UUID, position: int, error: Exception, attempts: int) -> DeadLetter:
        text, digest = described(error)
        return DeadLetter(key, position, attempts, text, digest, self._policy.pause(attempts))

    # ------------------------------------------------------------------------------------------------- what waits aside

    def _to_write(self) -> list[DeadLetter]:
        """What was set aside beside the reading. What belongs to a key that is tried comes after the outcome of that,
        which may remove the same letter."""
        return [letter for letter in self._aside if letter.key not in self._tries]

    def _may_try(self) -> bool:
        return bool(self._parked) and not self._aside and len(self._tries) < self._tried_at_once

    async def _try_due(self, connection: asyncpg.Connection) -> None:
        """Begin to take what waits for the keys that are due. However long that takes, it holds up no other key."""
        now = asyncio.get_running_loop().time()
        if not self._may_try() or now < self._look_at:
            return
        due, next_due = await self._letters.due(connection)
        self._look_at = now + (self._poll if next_due is None else min(self._poll, next_due))
        keys = [key for key in due if key not in self._tries][: self._tried_at_once - len(self._tries)]
        if not keys:
            return
        waiting = await self._letters.pending(connection, keys, self._batch)
        events = {event.position: event for event in await self._log.at([letter.position for letter in waiting])}
        by_key: dict[UUID, list[PendingLetter]] = {}
        for letter in waiting:
            by_key.setdefault(letter.key, []).append(letter)
        self._trying |= by_key.keys()
        for key, mine in by_key.items():
            self._tries[key] = asyncio.create_task(self._try(key, mine, events))

    async def _try(self, key: UUID, letters: Sequence[PendingLetter], events: Mapping[int, Recorded[Event]]) -> Tried:
        try:
            return await self._take_waiting(letters, events)
        finally:
            self._trying.discard(key)
            self._woken.set()

    async def _take_waiting(self, letters: Sequence[PendingLetter], events: Mapping[int, Recorded[Event]]) -> Tried:
        """Take one key's letters in their order."""
        for place, letter in enumerate(letters):
            if letter.discarded:
                continue
            self.progress.retries += letter.attempts > 0
            error = await self._take(letter.key, events[letter.position])
            if error is not None:
                return Tried(letters[:place], self._letter(letter.key, letter.position, error, letter.attempts + 1))
        return Tried(letters, None)

    async def _write_tried(self, connection: asyncpg.Connection) -> None:
        """Write what became of the keys that were tried. Until then what is read for them waits behind."""
        tried = {key: task.result() for key, task in self._tries.items() if task.done()}
        if not tried:
            return
        failed = {key: each.failed for key, each in tried.items() if each.failed is not None}
        # Not those that were set aside meanwhile: what waits for them waits behind that.
        well = tried.keys() - failed.keys() - {letter.key for letter in self._aside}
        async with self._transaction(connection):
            await self._checkpoint.hold()
            await self._letters.remove(connection, [letter for each in tried.values() for letter in each.done])
            await self._letters.park(connection, list(failed.values()))
            more = await self._letters.go_on(connection, well)
            await self._taker.write(connection, well - more)
        self._taker.written()
        for key in tried:
            del self._tries[key]
        self._look_at = 0.0
        freed = well - more - {letter.key for letter in self._aside}
        self._set_parked(self._parked - freed)
        await outlast(lambda: self._taker.freed(freed))

    async def _stop_trying(self) -> None:
        """What was being taken is not written, and will be taken again."""
        tries = list(self._tries.values())
        for tried in tries:
            tried.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        self._tries.clear()
        self._trying.clear()

    @asynccontextmanager
    async def _transaction(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        async with connection.transaction():
            await write_derived(connection, quiet=self._lease / 2)
            yield
