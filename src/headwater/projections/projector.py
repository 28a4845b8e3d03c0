"""The projection loop: folds the log into a read model's rows, each event exactly once.

    hold the lease -> catch up -> fold -> commit -> catch up ... -> wait -> catch up ...
      catch up:  read the next batch; first try parked keys again that are due
      fold:      in memory. A fold that raises sets its key aside; the other keys go on
      commit:    rows, dead letters and checkpoint in one transaction
      wait:      until the log grows, a parked key is due or the poll interval ends
      another process moved the checkpoint -> hold the lease again, from the new position; if it is lost: end

The transaction moves the checkpoint by compare-and-swap and checks the fencing token of the lease: a batch is committed
once or not at all, however many processes try.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import asyncpg

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import DeadLetter, DeadLetters, described
from headwater.consumers.failure_log import FailureLog
from headwater.consumers.loop import LoopSettings, Ports
from headwater.domain.failure_policy import Stop
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import AnyView, ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.errors import HeadwaterError
from headwater.postgres import queries
from headwater.postgres.database import write_derived
from headwater.postgres.rejected_rows import is_rejection, rejection_of
from headwater.projections import row_events
from headwater.projections.batch_loop import BatchLoop, HaltedBefore
from headwater.projections.rewind import rewind
from headwater.projections.row_folder import (
    SLICE_SECONDS,
    FoldedRow,
    Routed,
    RouteFailed,
    RowCache,
    RowFolder,
    TimeSlice,
    find_rejected,
    fold_failure,
    fold_of_event,
)
from headwater.projections.row_statements import delete_sql, load_sql, upsert_sql
from headwater.telemetry import Progress

_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

PROJECTION_LOOP = LoopSettings(batch=2000, cache=100_000)
"""A fold is quick and works in memory: batches and cache are large."""

LEASE_PART = 0.25
"""The part of a lease that folding one batch may take. Events beyond are read again, so that a slow fold still commits
its progress within the lease."""


class FoldFailed(HaltedBefore):
    """A fold or a route of a read model raised, and the projection halts before that event."""


class RowUnreadable(HeadwaterError):
    """A stored row holds a value that this code cannot have written. `headwater rebuild` makes the rows again."""


@dataclass(slots=True)
class _Batch(Generic[M]):
    """A folded batch, not yet committed.

    changed: rows by the number of their key. letters: events that were set aside, in order. failed: keys whose fold
    raised. cut_at: the position of the first event that was not folded for lack of time; None if all were.
    """

    changed: dict[Any, FoldedRow[M]] = field(default_factory=dict)
    letters: list[DeadLetter[RowKey]] = field(default_factory=list)
    failed: set[RowKey] = field(default_factory=set)
    cut_at: int | None = None

    def includes(self, position: int) -> bool:
        """True if the event at this position was folded or set aside."""
        return self.cut_at is None or position < self.cut_at

    def reached(self, position: int) -> int:
        """Return the position up to which the batch is complete. position: the one that it was read up to."""
        return position if self.cut_at is None else self.cut_at - 1


class Projector(BatchLoop[RowKey], Generic[M]):
    """Maintains the rows of one read model.

    sleep: waits between retries where the policy is to stop. clock: seconds, to measure how long folds take.
    before_commit: called when a batch is folded, before it is written.
    """

    def __init__(
        self,
        ports: Ports,
        view: View[M],
        settings: LoopSettings = PROJECTION_LOOP,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        before_commit: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._folder = RowFolder(ports.log, view)
        super().__init__(ports, settings, self._folder.policy, name=view.name, types=self._folder.types, sleep=sleep)
        self._view = view
        self._clock = clock
        self.before_commit = before_commit
        self._number = self._folder.key.number
        self._cache = RowCache(self._folder, settings.cache)
        self._unreadable: dict[Any, Exception] = {}
        """The errors of stored rows that the last load could not read, by the number of the key."""
        self._parked: set[RowKey] = set()
        self._failures = FailureLog(view.name)
        self.progress = Progress()

    def _has_parked(self) -> bool:
        return bool(self._parked)

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Follow the log until cancelled, or until the lease is lost. Runs under a supervisor.

        well: called when the loop is past a failure.
        """
        connection = await self._database.connect(f"projection {self._view.name}")
        try:
            while (position := await self._hold(connection, generation)) is not None:
                try:
                    await self._follow(position, well)
                except CheckpointMoved:
                    self.progress.displaced += 1
                except Exception as error:
                    await self._checkpoint.halt(error)
                    raise
        finally:
            self._forget()
            connection.terminate()

    # ---------------------------------------------------------------------------------------------- holding the lease

    async def _hold(self, connection: asyncpg.Connection, generation: Generation) -> int | None:
        """Read the checkpoint and the parked keys, and drop the rows in memory. Returns None if the lease is lost."""
        self._forget()
        self._connection, self._generation = connection, generation
        self._checkpoint = Checkpoint(connection, self._view.name, generation)
        position = await self._checkpoint.read()
        if position is None:
            return None
        if (head := await self._checkpoint.rewind_to()) is not None:
            await rewind(connection, self._log, self._folder, generation, position, head)
            position = head
        self._statements = _Statements(self._view, generation.table)
        self._letters = DeadLetters(self._view.name, generation.number, self._view.key.text, self._view.key.read)
        self._set_parked(await self._letters.parked(connection))
        self.progress.position = position
        self.positions.correct(self._view.name, self.positions.known(self._view.name), position)
        self.positions.report(self._view.name, position)
        return position

    @property
    def cached(self) -> int:
        """The number of rows in memory."""
        return len(self._cache.rows)

    def _forget(self) -> None:
        self._cache.rows.clear()
        self._set_parked(set())

    def _set_parked(self, keys: set[RowKey]) -> None:
        self._parked = keys
        self._look_at = 0.0
        self.progress.parked_keys = len(keys)

    # ---------------------------------------------------------------------------------------------------- catching up

    async def _advance(self, position: int, events: Sequence[Recorded[Event]], reached: int) -> int:
        """Fold a batch, as far as time allows, and commit it. Returns the new position."""
        if not events:
            await self._checkpoint.skip(position, reached)
            return self._report(events, reached)

        async def write(batch: _Batch[M]) -> None:
            await self._checkpoint.move(position, batch.reached(reached))
            await self._write_rows(batch)
            if self._view.history:
                folded = [(key, event.position) for key, event in routed if batch.includes(event.position)]
                await row_events.add(self._connection, self._generation.table, self._folder.columns, folded)
            if batch.letters:
                await self._letters.park(self._connection, batch.letters)

        routed = self._route(events)
        batch = await self._commit(routed, write, parked=self._parked)
        if batch.failed:
            self._set_parked(self._parked | batch.failed)
        return self._report([event for event in events if batch.includes(event.position)], batch.reached(reached))

    async def _retry_parked(self) -> None:
        """Fold the dead letters of the keys that are due, in order, and commit their rows."""
        if not (keys := await self._due_keys(self._connection)):
            return
        waiting = await self._letters.pending(self._connection, keys, self._settings.batch)
        tried = [letter for letter in waiting if not letter.discarded]
        keys_of: dict[int, list[RowKey]] = {}
        for letter in tried:
            keys_of.setdefault(letter.position, []).append(letter.key)
        events = await self._log.at(list(keys_of))
        more: set[RowKey] = set()

        async def write(batch: _Batch[M]) -> None:
            if not await self._connection.fetch(_SQL["repair"], *self._unit, int(bool(batch.changed))):
                raise CheckpointMoved
            await self._write_rows(batch)
            still_waiting = {(letter.key, letter.position) for letter in batch.letters}
            looked_at = [letter for letter in waiting if batch.includes(letter.position)]
            done = [letter for letter in looked_at if (letter.key, letter.position) not in still_waiting]
            await self._letters.remove(self._connection, done)
            await self._letters.park(self._connection, [letter for letter in batch.letters if letter.error is not None])
            more.update(await self._letters.go_on(self._connection, set(keys) - batch.failed))

        attempts = {(letter.key, letter.position): letter.attempts for letter in tried if letter.attempts}
        folded = [event for event in events if isinstance(event.data, self._view.events)]
        routed = [(key, event) for event in folded for key in keys_of[event.position]]
        batch = await self._commit(routed, write, attempts=attempts)
        self.progress.retries += sum(batch.includes(position) for _, position in attempts)
        self._set_parked(self._parked - (set(keys) - batch.failed - more))

    # -------------------------------------------------------------------------------------------------------- folding

    def _route(self, events: Sequence[Recorded[Event]]) -> Routed:
        try:
            return self._folder.route(events)
        except RouteFailed as failure:
            raise FoldFailed(f"{self._view.name}: {failure}", failure.position) from failure.__cause__

    async def _fold(
        self,
        routed: Routed,
        parked: Set[RowKey],
        attempts: Mapping[tuple[RowKey, int], int] | None,
        rejected: Mapping[tuple[RowKey, int], Exception],
    ) -> _Batch[M]:
        """Fold a batch in memory.

        attempts: for dead letters, how often each has failed, by key and position. rejected: the errors of events whose
        row PostgreSQL has rejected, by key and position.
        """
        keys = {key for key, _ in routed} - parked
        self._unreadable = await self._cache.load(self._connection, self._statements.load, keys)
        batch: _Batch[M] = _Batch()
        changed, failed, fold, number_of = batch.changed, batch.failed, self._folder.fold, self._number
        turn, began = TimeSlice(SLICE_SECONDS, self._clock), self._clock()
        for place, (key, event) in enumerate(routed):
            if turn.is_over() and place:
                is_next = event is not routed[place - 1][1]  # an event is folded into all of its rows, or into none
                if is_next and self._clock() - began > self._settings.lease * LEASE_PART:
                    batch.cut_at = event.position
                    break
                await turn.give_way()
            if (parked and key in parked) or (failed and key in failed):
                batch.letters.append(DeadLetter(key, event.position))
                continue
            number = number_of(key)
            row = changed.get(number)
            try:
                if row is None:
                    row = changed[number] = self._copy(number)
                if rejected and (key, event.position) in rejected:
                    raise rejected[key, event.position]
                model = fold(key, row.model, event)
            except Exception as error:  # noqa: BLE001 - whatever a user's fold raises; nothing here asks the database
                batch.letters.append(self._set_aside(key, event, error, attempts))
                failed.add(key)
                continue
            if model is not row.model:
                row.model, row.position, row.changed = model, event.position, True
        batch.changed = {number: row for number, row in changed.items() if row.changed}
        return batch

    def _copy(self, number: Any) -> FoldedRow[M]:
        """Return a copy of a row to fold into. It replaces the row in memory when the batch is committed."""
        row = self._cache.rows.get(number)
        if row is None:
            error = self._unreadable[number]
            raise RowUnreadable(
                f"the stored row cannot be read: {type(error).__name__}: {error}; "
                f"`headwater rebuild {self._view.name}` makes the rows again"
            ) from error
        return FoldedRow(row.key, row.model, row.position, row.stored)

    def _set_aside(
        self, key: RowKey, event: Recorded[Event], error: Exception, attempts: Mapping[tuple[RowKey, int], int] | None
    ) -> DeadLetter[RowKey]:
        policy = self._folder.policy
        if attempts is None and isinstance(policy.then, Stop):
            failure = fold_failure(event, self._view.key.text(key), error)
            raise FoldFailed(f"{self._view.name}: {failure}", event.position) from error
        self.progress.failures += 1
        failed = fold_of_event(event, self._view.key.text(key))
        self._failures.log(error, key, f"{failed} failed, and the row is parked")
        failures = (attempts or {}).get((key, event.position), 0) + 1
        return DeadLetter(key, event.position, failures, *described(error), policy.pause(failures))

    # ----------------------------------------------------------------------------------------------------- committing

    async def _commit(
        self,
        routed: Routed,
        write: Callable[[_Batch[M]], Awaitable[None]],
        *,
        parked: Set[RowKey] = frozenset(),
        attempts: Mapping[tuple[RowKey, int], int] | None = None,
    ) -> _Batch[M]:
        """Fold, and write in one transaction. An event whose row PostgreSQL rejects counts as a failed fold."""
        batch = await self._fold(routed, parked, attempts, {})
        try:
            await self._transact(write, batch)
        except Exception as error:
            if isinstance(error, CheckpointMoved) or not is_rejection(error):
                raise
            rejected = await self._find_rejected(routed, batch)
            if not rejected:
                raise
            batch = await self._fold(routed, parked, attempts, rejected)
            await self._transact(write, batch)
        self._settle(batch)
        return batch

    async def _transact(self, write: Callable[[_Batch[M]], Awaitable[None]], batch: _Batch[M]) -> None:
        if self.before_commit is not None:
            await self.before_commit()
        async with self._connection.transaction():
            await self._limit()
            await write(batch)

    async def _limit(self) -> None:
        await write_derived(self._connection, quiet=self._settings.lease / 2)

    async def _write_rows(self, batch: _Batch[M]) -> None:
        name, generation, _ = self._unit
        upserted = [row for row in batch.changed.values() if row.model is not None]
        removed = [row for row in batch.changed.values() if row.model is None and row.stored]
        text = self._view.key.text
        new = [text(row.key) for row in upserted if not row.stored]
        if upserted:
            await self._connection.execute(self._statements.upsert, *self._folder.codec.arrays(upserted))
        if new:
            await self._connection.execute(_SQL["unbury"], name, generation, new)
        if removed:
            keys = [row.key for row in removed]
            await self._connection.execute(self._statements.delete, *self._folder.columns.arrays(keys))
            texts, positions = [text(key) for key in keys], [row.position for row in removed]
            await self._connection.execute(_SQL["bury"], name, generation, texts, positions)

    def _settle(self, batch: _Batch[M]) -> None:
        for number, row in batch.changed.items():
            row.stored, row.changed = row.model is not None, False
            self._cache.rows[number] = row
        self._cache.trim()

    @property
    def _unit(self) -> tuple[str, int, int]:
        return self._view.name, self._generation.number, self._generation.fence

    # -------------------------------------------------------------------------------------------------- rejected rows

    async def _find_rejected(self, routed: Routed, batch: _Batch[M]) -> dict[tuple[RowKey, int], Exception]:
        """Return, by key and position, the first event of each key that leads to a row which PostgreSQL rejects."""
        rows = [row for row in batch.changed.values() if row.model is not None]
        rejected = {}
        for bad in await find_rejected(self._connection, rows, self._try_rows):
            row = self._copy(self._number(bad.key))
            for event in (event for key, event in routed if key == bad.key):
                model = self._folder.fold(bad.key, row.model, event)
                if model is not None and model is not row.model:
                    alone = FoldedRow(bad.key, model, event.position, row.stored)
                    error = await self._rejection_of(alone)
                    if error is not None:
                        rejected[bad.key, event.position] = error
                        break
                row.model = model
        return rejected

    async def _rejection_of(self, row: FoldedRow[M]) -> Exception | None:
        return await rejection_of(self._connection, lambda: self._try_rows([row]))

    async def _try_rows(self, rows: Sequence[FoldedRow[M]]) -> None:
        await self._limit()
        await self._connection.execute(self._statements.upsert, *self._folder.codec.arrays(rows))


class _Statements:
    """The statements on a generation's table."""

    def __init__(self, view: AnyView, table: str) -> None:
        self.load = load_sql(view, table)
        self.upsert = upsert_sql(view, table)
        self.delete = delete_sql(view, table)
