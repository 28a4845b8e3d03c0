"""Runs a projection of the app's own: its function writes each event exactly once into tables of the app.

    hold the lease -> catch up -> handle -> commit -> catch up ... -> wait -> catch up ...
      catch up:  read the next batch; first try parked keys again that are due
      handle:    the whole batch in one call. If it raises, event by event, each in a savepoint: an event that fails
                 parks its key, or halts the projection before it; the others go on
      commit:    what the function wrote, dead letters and checkpoint in one transaction
      wait:      until the log grows, a parked key is due or the poll interval ends
      the log ends before the checkpoint, or an operator asks for it -> reset: the tables are emptied -> catch up
      another process moved the checkpoint -> hold the lease again, from the new position; if it is lost: end

The function gets a SQLAlchemy connection over the asyncpg connection that moves the checkpoint. SQLAlchemy's
transaction is a savepoint in Headwater's: it takes back what a failed call has written. It is opened once a lease.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

import asyncpg
from sqlalchemy.exc import DBAPIError

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import DeadLetter, DeadLetters, PendingLetter
from headwater.consumers.loop import LoopSettings, Ports
from headwater.consumers.parked_keys import ParkedKeys
from headwater.domain.failure_policy import Stop, policy_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.projection import Projection
from headwater.postgres import queries
from headwater.postgres.database import PASSING, Connection, write_derived
from headwater.postgres.tally import said
from headwater.projections.batch_loop import BatchLoop, HaltedBefore

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_SQL = queries.load(__file__)

Batch: TypeAlias = Sequence[Recorded[Event]]


class HandleFailed(HaltedBefore):
    """A projection's function raised, and the projection halts before that event."""


class ProjectionRunner(BatchLoop[UUID]):
    """Runs one projection of the app, under one lease."""

    def __init__(self, ports: Ports, projection: Projection[Any], settings: LoopSettings) -> None:
        policy = policy_of(projection.on_failure)
        types = ports.log.stored_names(projection.events)
        super().__init__(ports, settings, policy, name=projection.unit, types=types)
        self._projection = projection
        self._parked = ParkedKeys(policy, projection.unit)
        self.progress, self._failures = self._parked.progress, self._parked.failures
        self._events = frozenset(projection.events)

    def _has_parked(self) -> bool:
        return bool(self._parked.keys)

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Follow the log until cancelled, or until the lease is lost. Runs under a supervisor.

        well: called when the loop is past a failure.
        """
        unit = self._projection.unit
        # Past a pooler in transaction mode: SQLAlchemy prepares statements, which stay in the session.
        raw = await self._database.connect(unit, session=True)
        self._raw, self._checkpoint = raw, Checkpoint(raw, unit, generation)
        self._letters = DeadLetters(unit, generation.number, str, UUID)
        async with _over(raw) as self._connection:
            while (position := await self._checkpoint.read()) is not None:
                try:
                    if await self._checkpoint.rewind_to() is not None:
                        position = await self._start_over(position)
                    self._parked.replace(await self._letters.parked(raw))
                    self._look_at, self.progress.position = 0.0, position
                    self.positions.correct(unit, self.positions.known(unit), position)
                    await self._follow(position, well)
                except CheckpointMoved:
                    self.progress.displaced += 1
                except Exception as error:
                    await self._checkpoint.halt(error)
                    raise

    async def _start_over(self, position: int) -> int:
        """Empty the tables, and go back to the start of the log, in one transaction."""
        async with self._transaction():
            if (error := await self._attempt(partial(self._projection.reset, self._connection))) is not None:
                self._failures.log(error, "reset", "its reset failed")
                raise HandleFailed(f"{self._projection.unit}: its reset raised {said(error)}", 0) from error
            await self._letters.forget_after(self._raw, 0)
            await self._checkpoint.go_back(position, 0)
        return 0

    # ---------------------------------------------------------------------------------------------------- catching up

    async def _advance(self, position: int, events: Batch, reached: int) -> int:
        """Handle a batch and commit it. Returns the new position.

        Raises:
            HandleFailed: an event failed whose policy is to stop, or whose key is not known. Nothing is committed.
        """
        mine = [event for event in events if type(event.data) in self._events]
        if not mine:
            await self._checkpoint.skip(position, reached)
        else:
            async with self._transaction():
                letters = await self._handle(mine)
                if letters:
                    await self._letters.park(self._raw, letters)
                await self._checkpoint.move(position, reached)
            self._parked.replace(self._parked.keys | {letter.key for letter in letters})
        return self._report(events, reached)

    async def _handle(self, events: Batch) -> list[DeadLetter[UUID]]:
        """Handle events within the transaction of the caller: all in one call, else one by one. Returns the letters of
        those that were set aside."""
        if not self._parked.keys and await self._attempt(partial(self._call, events)) is None:
            return []
        await self._checkpoint.hold()  # if the lease is lost, the failure is of a batch that another worker has done
        letters: list[DeadLetter[UUID]] = []
        aside = set(self._parked.keys)
        for event in events:
            key = self._key_of(event)
            if key in aside:
                letters.append(DeadLetter(key, event.position))
            elif (error := await self._attempt(partial(self._call, [event]))) is not None:
                if isinstance(self._policy.then, Stop):
                    raise self._failure(event, error) from error
                letters.append(self._parked.letter(key, event.position, error, 1))
                aside.add(key)
        return letters

    def _key_of(self, event: Recorded[Event]) -> UUID:
        try:
            return self._projection.key_of(event)
        except Exception as error:
            raise self._failure(event, error) from error

    def _failure(self, event: Recorded[Event], error: Exception) -> HandleFailed:
        what = f"{event.data.__declared__.name} at position {event.position}"
        return HandleFailed(f"{self._projection.unit}: {what} raised {said(error)}", event.position)

    async def _call(self, events: Batch) -> None:
        await self._projection.handle(self._connection, events)

    async def _attempt(self, call: Callable[[], Awaitable[None]]) -> Exception | None:
        """Call a function of the app in a savepoint. Returns its error; raises one of the database, which passes."""
        try:
            async with self._connection.begin():
                await call()
        except Exception as error:
            if self._raw.is_closed():
                raise asyncpg.InterfaceError("the connection was lost while the projection's function ran") from error
            cause = error.orig.__cause__ if isinstance(error, DBAPIError) and error.orig is not None else None
            if isinstance(cause, PASSING):
                raise cause from error
            return error
        return None

    # ------------------------------------------------------------------------------------------------- parked keys

    async def _retry_parked(self) -> None:
        """Handle the dead letters of the keys that are due, one by one, and commit."""
        if not (keys := await self._due_keys(self._raw)):
            return
        waiting = await self._letters.pending(self._raw, keys, self._settings.batch)
        events = {event.position: event for event in await self._log.at([each.position for each in waiting])}
        async with self._transaction():
            failed: dict[UUID, DeadLetter[UUID]] = {}
            done: list[PendingLetter[UUID]] = []
            for letter in waiting:
                if letter.key in failed:
                    continue
                error = None if letter.discarded else await self._attempt_letter(events[letter.position])
                self.progress.retries += not letter.discarded and letter.attempts > 0
                if error is None:
                    done.append(letter)
                else:
                    failed[letter.key] = self._parked.letter(letter.key, letter.position, error, letter.attempts + 1)
            await self._letters.remove(self._raw, done)
            await self._letters.park(self._raw, list(failed.values()))
            more = await self._letters.go_on(self._raw, set(keys) - failed.keys())
            await self._checkpoint.hold()
        self._parked.replace(self._parked.keys - (set(keys) - failed.keys() - more))

    async def _attempt_letter(self, event: Recorded[Event]) -> Exception | None:
        if type(event.data) not in self._events:
            return None  # parked by another version of the app, whose projection took this event
        return await self._attempt(partial(self._call, [event]))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[None]:
        async with self._raw.transaction():
            await write_derived(self._raw, quiet=self._settings.lease / 2)
            yield


async def start_over(connection: Connection, projection: Projection[Any]) -> int:
    """Ask the worker of a projection to empty its tables and to handle the log again. Returns the head of the log."""
    head: int = await connection.fetchval(_SQL["start_over"], projection.unit)
    return head


@asynccontextmanager
async def _over(raw: asyncpg.Connection) -> AsyncIterator[AsyncConnection]:
    """Yield a SQLAlchemy connection over an open asyncpg connection, which is terminated at the end."""
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import StaticPool

    async def opened() -> asyncpg.Connection:
        return raw

    engine = create_async_engine("postgresql+asyncpg://", async_creator=opened, poolclass=StaticPool)
    try:
        connection = await engine.connect()
        try:
            yield connection
        finally:
            raw.terminate()
            await connection.close()
    finally:
        raw.terminate()
        await engine.dispose()
