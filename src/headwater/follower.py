"""Following the log for those who act on events, where a projection only folds them: sagas and reactors.

    leased -> begin -> following: read -> take, keys beside each other -> commit -> ... -> waiting -> following ...
                          \\-> taking failed: its key set aside, all others go on -> due -> taken again, in order
                          \\-> displaced (another moved the checkpoint) -> leased still: begin again; or no longer: end

Taking is at least once: what was taken before the checkpoint was moved is taken again after a crash, and it is for him
who takes to know it again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol
from uuid import UUID

import asyncpg

from headwater import sql
from headwater.database import UNREACHABLE, Connection, Database
from headwater.deadletters import DeadLetters, Letter, Waiting, described
from headwater.errors import Contended, OutcomeUnknown, Overloaded, ReactionFailed, Unavailable
from headwater.failure import Retry
from headwater.log import Log
from headwater.messages import Event, Recorded
from headwater.positions import LOG, Positions
from headwater.supervisor import backoff
from headwater.tables import Standing
from headwater.telemetry import Progress

_SQL = sql.load(__file__)

PASSING: tuple[type[BaseException], ...] = (
    *UNREACHABLE,
    asyncpg.TransactionRollbackError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    Overloaded,
    Unavailable,
    OutcomeUnknown,
    Contended,
)
"""Faults that pass: waited out with backoff, neither counted nor parked."""


class Displaced(Exception):
    """The lease is another's, or another moved the checkpoint: what was done here counts no more."""


class Taker(Protocol):
    """Who acts on what a follower reads."""

    def begun(self) -> AbstractAsyncContextManager[None]:
        """The lease is this process's now, until the context is left."""
        ...

    def key_of(self, event: Recorded[Event]) -> UUID | None:
        """In whose order it is to be taken; None when it is not to be taken at all."""
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

    async def write(self, connection: Connection) -> None:
        """In the transaction that moves the checkpoint past the batch."""
        ...

    def written(self) -> None:
        """The transaction is committed."""
        ...


async def register(connection: Connection, name: str, fingerprint: str, *, from_end: bool = False) -> None:
    """Make a unit that workers share out by leases. from_end: it is not concerned with what has happened so far."""
    if (await connection.execute(_SQL["register"], name, fingerprint, from_end)) != "INSERT 0 0":
        await connection.execute(_SQL["ring"])


async def outlast(call: Callable[[], Awaitable[None]]) -> None:
    """Call until no fault that passes is in the way."""
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
    taken beside each other. poll: seconds after which it looks though nothing rang. lease: of this process, in seconds.
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
        self._poll = poll
        self._lease = lease
        self._aside: list[Letter] = []
        self._parked: set[UUID] = set()
        self._look_at = 0.0
        self._woken = asyncio.Event()
        self.progress = Progress()

    @property
    def parked(self) -> frozenset[UUID]:
        """The keys that are set aside."""
        return frozenset(self._parked)

    def is_parked(self, key: UUID) -> bool:
        """Whether a key is set aside: what comes for it waits."""
        return key in self._parked

    def set_aside(self, key: UUID, position: int, error: Exception, attempts: int) -> None:
        """Park a key for something that failed beside the reading of the log. It is written with the next commit."""
        self._aside.append(self._letter(key, position, error, attempts))
        self._set_parked(self._parked | {key})
        self._woken.set()

    async def run(self, standing: Standing, well: Callable[[], None] = lambda: None) -> None:
        """Follow until cancelled, or until the lease with this fence is another's. Runs under a supervisor, which is
        told when a failure is got over."""
        connection = await self._database.connect(self._name)
        self._standing = standing
        self._letters = DeadLetters(self._name, standing.generation)
        try:
            while (position := await connection.fetchval(_SQL["held"], *self._of)) is not None:
                self._aside.clear()
                self._set_parked(await self._letters.parked(connection))
                self._look_at = 0.0
                self.progress.position = position
                try:
                    async with self._taker.begun():
                        await self._follow(connection, position, well)
                except Displaced:
                    self.progress.displaced += 1
        finally:
            connection.terminate()

    @property
    def _of(self) -> tuple[str, int, int]:
        return self._name, self._standing.generation, self._standing.fence

    def _set_parked(self, keys: set[UUID]) -> None:
        self._parked = keys
        self.progress.parked_keys = len(keys)

    async def _follow(self, connection: asyncpg.Connection, position: int, well: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._parked and loop.time() >= self._look_at and not self._aside:
                await self._try_again(connection)
            heard = self._positions.known(LOG)
            events, reached = await self._log.read_on(position, types=self._types, limit=self._batch)
            if reached <= position and not self._aside:
                self._positions.correct(LOG, heard, reached)
                well()
                await self._wait(position)
                continue
            position = await self._advance(connection, position, events, max(reached, position))

    async def _wait(self, position: int) -> None:
        """Until the log moves, a key is set aside, or it is time to look all the same."""
        patience = self._poll
        if self._parked:
            patience = max(0.0, min(patience, self._look_at - asyncio.get_running_loop().time()))
        self._woken.clear()
        if self._aside:
            return
        moved = asyncio.ensure_future(self._positions.moved(LOG, position, patience))
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
        if not events and not self._aside:
            if not await connection.fetch(_SQL["pass"], *self._of, position, reached):
                raise Displaced
            self._count(events, reached)
            return reached
        by_key: dict[UUID, list[Recorded[Event]]] = {}
        for event in events:
            key = self._taker.key_of(event)
            if key is not None:
                by_key.setdefault(key, []).append(event)
        await outlast(lambda: self._taker.ready(by_key))
        failed = await asyncio.gather(*(self._take_all(key, mine) for key, mine in by_key.items()))
        aside, self._aside = [*self._aside, *(letter for letters in failed for letter in letters)], []
        await outlast(lambda: self._taker.look(events))
        async with self._transaction(connection):
            if not await connection.fetch(_SQL["move"], *self._of, position, reached):
                raise Displaced
            await self._taker.write(connection)
            if aside:
                await self._letters.park(connection, aside)
        self._taker.written()
        self._set_parked(self._parked | {letter.key for letter in aside})
        self._count(events, reached)
        return reached

    def _count(self, events: Sequence[Recorded[Event]], reached: int) -> None:
        progress = self.progress
        progress.position = reached
        progress.events += len(events)
        progress.batches += 1
        if events:
            progress.sizes.observe(len(events))
            progress.delays.ages([event.recorded_at for event in events], time.time())
        self._positions.report(self._name, reached)

    async def _take_all(self, key: UUID, events: Sequence[Recorded[Event]]) -> list[Letter]:
        """One key's events in their order; what could not be taken, and what waits behind it."""
        async with self._at_once:
            aside: list[Letter] = []
            for event in events:
                if aside or key in self._parked:
                    aside.append(Letter(key, event.position))
                    continue
                error = await self._take(key, event)
                if error is not None:
                    aside.append(self._letter(key, event.position, error, 1))
            return aside

    async def _take(self, key: UUID, event: Recorded[Event]) -> Exception | None:
        """Take an event, faults that pass outlasted; what else was raised."""
        try:
            await outlast(lambda: self._taker.take(key, event))
        except Displaced:
            raise
        except ReactionFailed as failed:
            return failed.error
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            return error
        return None

    def _letter(self, key: UUID, position: int, error: Exception, attempts: int) -> Letter:
        text, digest = described(error)
        return Letter(key, position, attempts, text, digest, self._policy.pause(attempts))

    # ------------------------------------------------------------------------------------------------- what waits aside

    async def _try_again(self, connection: asyncpg.Connection) -> None:
        """Take what waits for the keys that are due, in order."""
        keys, next_due = await self._letters.due(connection)
        if not keys:
            pause = self._poll if next_due is None else min(self._poll, next_due)
            self._look_at = asyncio.get_running_loop().time() + pause
            return
        waiting = await self._letters.waiting(connection, keys, self._batch)
        events = {event.position: event for event in await self._log.at([letter.position for letter in waiting])}
        by_key: dict[UUID, list[Waiting]] = {}
        for letter in waiting:
            by_key.setdefault(letter.key, []).append(letter)
        # Or what is taken now would be set aside again. That they are not parked is told when it is written.
        self._parked = self._parked - set(keys)
        tried = await asyncio.gather(*(self._take_waiting(mine, events) for mine in by_key.values()))
        done = [letter for taken, _ in tried for letter in taken]
        failed = {letter.key: letter for _, letter in tried if letter is not None}
        async with self._transaction(connection):
            if not await connection.fetch(_SQL["mine"], *self._of):
                raise Displaced
            await self._letters.remove(connection, done)
            await self._letters.park(connection, list(failed.values()))
            more = await self._letters.go_on(connection, set(keys) - failed.keys())
        self._set_parked(self._parked | failed.keys() | more)
        freed = set(keys) - self._parked
        await outlast(lambda: self._taker.freed(freed))

    async def _take_waiting(
        self, letters: Sequence[Waiting], events: Mapping[int, Recorded[Event]]
    ) -> tuple[Sequence[Waiting], Letter | None]:
        """One key's letters in their order: those that are done, and the one that failed again."""
        async with self._at_once:
            for place, letter in enumerate(letters):
                if letter.discarded:
                    continue
                self.progress.retries += letter.attempts > 0
                error = await self._take(letter.key, events[letter.position])
                if error is not None:
                    return letters[:place], self._letter(letter.key, letter.position, error, letter.attempts + 1)
            return letters, None

    @asynccontextmanager
    async def _transaction(self, connection: asyncpg.Connection) -> AsyncIterator[None]:
        async with connection.transaction():
            await connection.execute(_SQL["session"], str(int(self._lease * 500)))
            yield
