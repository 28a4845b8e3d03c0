"""The projection loop: from the log to a read model's rows, exactly once.

    leased -> catching up: read -> route -> fold -> commit -> ... -> waiting -> catching up ...
                    \\-> a fold failed: its key set aside, all others go on -> due -> tried again, in order
                    \\-> displaced (another moved the checkpoint) -> leased still: from there; or no longer: end

Rows, checkpoint and dead letters are written in one transaction, which moves the checkpoint by compare-and-swap: a
batch is committed once or not at all, whoever else tries. A lease (`fence`) is checked in the same place.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import DeadLetter, DeadLetters, described
from headwater.domain.failure_policy import Stop, policy_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_fold import BREATH_SECONDS, fold_of
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.eventstore.positions import LOG, Positions
from headwater.postgres import queries
from headwater.postgres.database import Database, write_derived
from headwater.postgres.rejected_rows import is_refusal, misfits, objection
from headwater.projections import row_events
from headwater.projections.row_codec import model_reader, writer_of
from headwater.projections.row_statements import delete_sql, load_sql, upsert_sql
from headwater.telemetry import Progress

_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

LEASE_PART = 0.25
"""How much of a lease a batch may be folded for. What is left of it is read again: however slow a fold is, whoever has
the lease writes how far it came while it has it."""


class FoldFailed(HeadwaterError):
    """A read model's fold raised; the projection stands still before that event."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class RowUnreadable(HeadwaterError):
    """A stored row is not one that this code could have written: `headwater rebuild` makes it again."""


@dataclass(slots=True)
class _Row(Generic[M]):
    """A row as folded so far. `position`: of the event that last changed it. `stored`: whether the table has it."""

    model: M | None
    position: int
    stored: bool


@dataclass(slots=True)
class _Folded(Generic[M]):
    """What a batch came to: the rows that it changed, and what it set aside, in order. failed: keys that a fold has now
    failed on. cut_at: the position of the first event that there was no time for, if it came to that."""

    changed: dict[UUID, _Row[M]] = field(default_factory=dict)
    aside: list[DeadLetter] = field(default_factory=list)
    failed: set[UUID] = field(default_factory=set)
    cut_at: int | None = None

    def has(self, position: int) -> bool:
        """Whether there was time for what stands there."""
        return self.cut_at is None or position < self.cut_at

    def upto(self, reached: int) -> int:
        """How far it is complete, of what was to be reached."""
        return reached if self.cut_at is None else self.cut_at - 1


_Routed = Sequence[tuple[UUID, Recorded[Event]]]


class Projector(Generic[M]):
    """Keeps one read model's rows.

    batch: events folded in one transaction, at most. cache: rows kept in memory, at most; only the loop writes them.
    poll: seconds after which it looks at the log though nothing rang. lease: of this process, in seconds; PostgreSQL
    ends a transaction that it leaves standing, so that it holds no lock against whoever takes over.
    sleep: how it waits between attempts where the policy is to stop. clock: seconds, for how long folds take.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        view: View[M],
        positions: Positions,
        *,
        batch: int = 2000,
        cache: int = 100_000,
        poll: float = 1.0,
        lease: float = 6.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._log = log
        self._view = view
        self._positions = positions
        self._batch = batch
        self._cache = cache
        self._poll = poll
        self._lease = lease
        self._sleep = sleep
        self._clock = clock
        self._policy = policy_of(view.on_failure)
        self._types = log.stored_names(view.events)
        self._route = {event: view.route_of(event) for event in view.events}
        self._fold_row = fold_of(view)
        self._columns = [(each.name, writer_of(each)) for each in view.fields]
        self._read_row = model_reader(view)
        self._rows: dict[UUID, _Row[M]] = {}
        self._unreadable: dict[UUID, Exception] = {}
        """Of the keys loaded last: what their stored rows raised."""
        self._parked: set[UUID] = set()
        self._look_at = 0.0
        self.progress = Progress()

    async def run(self, standing: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Follow the log until cancelled, or until the lease with this fence is another's. Runs under a supervisor,
        which is told when a failure is got over."""
        connection = await self._database.connect(f"projection {self._view.name}")
        try:
            while (held := await self._stand(connection, standing)) is not None:
                try:
                    await self._follow(connection, held, well)
                except CheckpointMoved:
                    self.progress.displaced += 1
        finally:
            self._forget()
            connection.terminate()

    async def _stand(self, connection: asyncpg.Connection, standing: Generation) -> Generation | None:
        """Read the checkpoint and the parked keys again, and drop the rows in memory. None: the lease is another's."""
        self._forget()
        self._checkpoint = Checkpoint(connection, self._view.name, standing)
        position = await self._checkpoint.read()
        if position is None:
            return None
        self._write = _Statements(self._view, standing.table)
        self._letters = DeadLetters(self._view.name, standing.number)
        self._set_parked(await self._letters.parked(connection))
        self.progress.position = position
        self._positions.correct(self._view.name, self._positions.known(self._view.name), position)
        self._positions.report(self._view.name, position)
        return replace(standing, position=position)

    def _forget(self) -> None:
        self._rows.clear()
        self._set_parked(set())

    def _set_parked(self, keys: set[UUID]) -> None:
        self._parked = keys
        self._look_at = 0.0
        self.progress.parked_keys = len(keys)

    async def _follow(self, connection: asyncpg.Connection, standing: Generation, well: Callable[[], None]) -> None:
        position, attempts = standing.position, 0
        while True:
            alarms = self._positions.alarms
            if self._parked and asyncio.get_running_loop().time() >= self._look_at:
                await self._try_again(connection, standing)
            heard = self._positions.known(LOG)
            events, reached = await self._log.read_on(position, types=self._types, limit=self._batch)
            if reached <= position:
                self._positions.correct(LOG, heard, reached)
                well()
                await self._wait(position, alarms)
                continue
            try:
                position = await self._advance(connection, standing, position, events, reached)
                attempts = 0
            except FoldFailed as failure:
                # What came before it stands in no one's way, and is written.
                if failure.position - 1 > position:
                    before = [event for event in events if event.position < failure.position]
                    position = await self._advance(connection, standing, position, before, failure.position - 1)
                    attempts = 0
                attempts += 1
                await self._pause(failure, attempts)

    async def _wait(self, position: int, alarms: int) -> None:
        """Until the log moves, or it is time to look all the same. alarms: see `Positions.alarms`."""
        patience = self._poll
        if self._parked:
            patience = max(0.0, min(patience, self._look_at - asyncio.get_running_loop().time()))
        await self._positions.moved(LOG, position, patience, alarms)
        if self._positions.known(LOG) <= position:
            self._look_at = 0.0  # time is up, or a person rang

    async def _pause(self, failure: FoldFailed, attempts: int) -> None:
        """The policy is to stop, after some attempts: everything waits before the event."""
        pause = self._policy.pause(attempts)
        if pause is None:
            raise failure
        self.progress.retries += 1
        await self._sleep(pause)

    async def _advance(
        self,
        connection: asyncpg.Connection,
        standing: Generation,
        position: int,
        events: Sequence[Recorded[Event]],
        reached: int,
    ) -> int:
        """Fold a batch, or what there is time for, and commit it with the checkpoint that it reaches."""
        if not events:
            await self._checkpoint.skip(position, reached)
            return self._passed(events, reached)

        async def write(folded: _Folded[M]) -> None:
            await self._checkpoint.move(position, folded.upto(reached))
            await self._write_rows(connection, standing, folded.changed)
            if self._view.history:
                taken = [(key, event.position) for key, event in batch if folded.has(event.position)]
                await row_events.add(connection, standing.table, taken)
            if folded.aside:
                await self._letters.park(connection, folded.aside)

        batch = self._routed(events)
        folded = await self._commit(connection, batch, write, parked=self._parked)
        self._settle(folded)
        if folded.failed:
            self._set_parked(self._parked | folded.failed)
        return self._passed([event for event in events if folded.has(event.position)], folded.upto(reached))

    def _passed(self, events: Sequence[Recorded[Event]], reached: int) -> int:
        self.progress.passed([event.recorded_at for event in events], reached)
        self._positions.report(self._view.name, reached)
        return reached

    async def _try_again(self, connection: asyncpg.Connection, standing: Generation) -> None:
        """Fold what waits for the keys that are due, in order: with the row, in one transaction."""
        keys, next_due = await self._letters.due(connection)
        if not keys:
            pause = self._poll if next_due is None else min(self._poll, next_due)
            self._look_at = asyncio.get_running_loop().time() + pause
            return
        waiting = await self._letters.pending(connection, keys, self._batch)
        tried = [letter for letter in waiting if not letter.discarded]
        key_of = {letter.position: letter.key for letter in tried}
        events = await self._log.at(list(key_of))
        more: set[UUID] = set()

        async def write(folded: _Folded[M]) -> None:
            if not await connection.fetch(_SQL["repair"], *self._of(standing), int(bool(folded.changed))):
                raise CheckpointMoved
            await self._write_rows(connection, standing, folded.changed)
            behind = {(letter.key, letter.position) for letter in folded.aside}
            tried_now = [letter for letter in waiting if folded.has(letter.position)]
            done = [letter for letter in tried_now if (letter.key, letter.position) not in behind]
            await self._letters.remove(connection, done)
            await self._letters.park(connection, [letter for letter in folded.aside if letter.error is not None])
            more.update(await self._letters.go_on(connection, set(keys) - folded.failed))

        attempts = {letter.position: letter.attempts for letter in tried if letter.attempts}
        batch = [(key_of[event.position], event) for event in events if type(event.data) in self._route]
        folded = await self._commit(connection, batch, write, attempts=attempts)
        self._settle(folded)
        self.progress.retries += sum(map(folded.has, attempts))
        self._set_parked(self._parked - (set(keys) - folded.failed - more))

    async def _commit(
        self,
        connection: asyncpg.Connection,
        batch: _Routed,
        write: Callable[[_Folded[M]], Awaitable[None]],
        *,
        parked: Set[UUID] = frozenset(),
        attempts: Mapping[int, int] | None = None,
    ) -> _Folded[M]:
        """Fold and write in one transaction. A row that the database does not take is a failed fold, too."""
        folded = await self._fold(connection, batch, parked, attempts, {})
        try:
            await self._transact(connection, write, folded)
        except Exception as error:
            if isinstance(error, CheckpointMoved) or not is_refusal(error):
                raise
            refused = await self._refused(connection, batch, folded)
            if not refused:
                raise
            folded = await self._fold(connection, batch, parked, attempts, refused)
            await self._transact(connection, write, folded)
        return folded

    async def _transact(
        self, connection: asyncpg.Connection, write: Callable[[_Folded[M]], Awaitable[None]], folded: _Folded[M]
    ) -> None:
        async with connection.transaction():
            await self._limit(connection)
            await write(folded)

    async def _limit(self, connection: asyncpg.Connection) -> None:
        await write_derived(connection, quiet=self._lease / 2)

    # ------------------------------------------------------------------------------------------------------------ fold

    def _routed(self, events: Sequence[Recorded[Event]]) -> _Routed:
        """Each event with the key of its row. Under an old name there may come what this view does not fold."""
        batch = []
        for event in events:
            route = self._route.get(type(event.data))
            if route is None:
                continue
            try:
                batch.append((route(event.data), event))
            except Exception as error:  # whose key is not known cannot be set aside
                raise self._failure("route", "", event, error) from error
        return batch

    async def _fold(
        self,
        connection: asyncpg.Connection,
        batch: _Routed,
        parked: Set[UUID],
        attempts: Mapping[int, int] | None,
        refused: Mapping[int, Exception],
    ) -> _Folded[M]:
        """Fold a batch in memory. attempts: given for letters, how often each failed before."""
        await self._load(connection, {key for key, _ in batch} - parked)
        folded: _Folded[M] = _Folded()
        changed, failed, fold = folded.changed, folded.failed, self._fold_row
        now = self._clock
        began = breathed = now()
        for place, (key, event) in enumerate(batch):
            if (moment := now()) - breathed > BREATH_SECONDS and place:
                if moment - began > self._lease * LEASE_PART:
                    folded.cut_at = event.position
                    break
                await asyncio.sleep(0)
                breathed = now()
            if (parked and key in parked) or (failed and key in failed):
                folded.aside.append(DeadLetter(key, event.position))
                continue
            row = changed.get(key)
            try:
                if row is None:
                    row = changed[key] = self._copy(key)
                if refused and event.position in refused:
                    raise refused[event.position]
                model = fold(key, row.model, event)
            except Exception as error:  # noqa: BLE001 - whatever a user's fold raises; nothing is asked of the database
                folded.aside.append(self._set_aside(key, event, error, attempts))
                failed.add(key)
                continue
            if model is not row.model:
                row.model, row.position = model, event.position
        folded.changed = {key: row for key, row in changed.items() if row.position != self._rows[key].position}
        return folded

    def _copy(self, key: UUID) -> _Row[M]:
        """What is known of a row, to fold into: it becomes what is known only when it is committed."""
        known = self._rows.get(key)
        if known is None:
            error = self._unreadable[key]
            raise RowUnreadable(
                f"the stored row cannot be read: {type(error).__name__}: {error}; "
                f"`headwater rebuild {self._view.name}` makes the rows again"
            ) from error
        return _Row(known.model, known.position, known.stored)

    def _set_aside(
        self, key: UUID, event: Recorded[Event], error: Exception, attempts: Mapping[int, int] | None
    ) -> DeadLetter:
        if attempts is None and isinstance(self._policy.then, Stop):
            raise self._failure("fold", f" on row {key}", event, error) from error
        failures = (attempts or {}).get(event.position, 0) + 1
        return DeadLetter(key, event.position, failures, *described(error), self._policy.pause(failures))

    def _failure(self, what: str, where: str, event: Recorded[Event], error: Exception) -> FoldFailed:
        return FoldFailed(
            f"{self._view.name}: the {what} of {event.data.__declared__.name} at position {event.position}{where} "
            f"raised {type(error).__name__}: {error}",
            event.position,
        )

    async def _load(self, connection: asyncpg.Connection, keys: set[UUID]) -> None:
        rows = self._rows
        self._unreadable.clear()
        missing = []
        for key in keys:
            row = rows.pop(key, None)
            if row is None:
                missing.append(key)
            else:
                rows[key] = row  # used last, dropped last
        if not missing:
            return
        for record in await connection.fetch(self._write.load, missing):
            key, position = record[self._view.key], record["position"]
            try:
                rows[key] = _Row(self._read_row(record), position, True)  # type: ignore[arg-type]  # the view's own model
            except Exception as error:  # noqa: BLE001 - as an enum that has lost a member, or a list written by others
                self._unreadable[key] = error
        for key in missing:
            if key not in rows and key not in self._unreadable:
                rows[key] = _Row(None, 0, False)

    # ----------------------------------------------------------------------------------------------------------- write

    async def _write_rows(
        self, connection: asyncpg.Connection, standing: Generation, changed: Mapping[UUID, _Row[M]]
    ) -> None:
        name, generation = self._view.name, standing.number
        upserted = {key: row for key, row in changed.items() if row.model is not None}
        removed = {key: row for key, row in changed.items() if row.model is None and row.stored}
        again = [key for key, row in upserted.items() if not row.stored]
        if upserted:
            await connection.execute(self._write.upsert, *self._arrays(upserted))
        if again:
            await connection.execute(_SQL["unbury"], name, generation, again)
        if removed:
            keys = list(removed)
            await connection.execute(self._write.delete, keys)
            await connection.execute(_SQL["bury"], name, generation, keys, [row.position for row in removed.values()])

    def _arrays(self, rows: Mapping[UUID, _Row[M]]) -> list[list[Any]]:
        models = [row.model for row in rows.values()]
        arrays = [[write(getattr(model, name)) for model in models] for name, write in self._columns]
        return [*arrays, [row.position for row in rows.values()]]

    def _settle(self, folded: _Folded[M]) -> None:
        """The batch is committed: what was folded is known now."""
        for key, row in folded.changed.items():
            row.stored = row.model is not None
            self._rows[key] = row
        while len(self._rows) > self._cache:
            del self._rows[next(iter(self._rows))]

    def _of(self, standing: Generation) -> tuple[str, int, int]:
        return self._view.name, standing.number, standing.fence

    # ---------------------------------------------------------------------------------- rows that the database refuses

    async def _refused(
        self, connection: asyncpg.Connection, batch: _Routed, folded: _Folded[M]
    ) -> dict[int, Exception]:
        """The first event of each key that leads to a row which the database does not take, with what it said."""
        rows = {key: row for key, row in folded.changed.items() if row.model is not None}
        refused = {}
        for key in await misfits(
            list(rows), lambda keys: self._objection(connection, {key: rows[key] for key in keys})
        ):
            known = self._rows[key]
            row = _Row(known.model, known.position, known.stored)
            for event in (event for each, event in batch if each == key):
                model = self._fold_row(key, row.model, event)
                if model is not None and model is not row.model:
                    error = await self._objection(connection, {key: _Row(model, event.position, row.stored)})
                    if error is not None:
                        refused[event.position] = error
                        break
                row.model = model
        return refused

    async def _objection(self, connection: asyncpg.Connection, rows: Mapping[UUID, _Row[M]]) -> Exception | None:
        async def write() -> None:
            await self._limit(connection)
            await connection.execute(self._write.upsert, *self._arrays(rows))

        return await objection(connection, write)


class _Statements:
    """The statements on a generation's table."""

    def __init__(self, view: View[Any], table: str) -> None:
        self.load = load_sql(view, table)
        self.upsert = upsert_sql(view, table)
        self.delete = delete_sql(view, table)
