"""Builds a generation of a read model beside the live one, then swaps the two.

    restore -> catch up: read -> fold in memory -> write in bulk -> ... -> near the log's end
            -> finish: add indexes, and verify a sample -> catch up -> swap in one transaction: live
                                                              -> blocked: catch up, swap again
    in any state:
      the lease is lost, or the generation is given up -> end; the next worker starts at the checkpoint, which moves
        with the rows
      PostgreSQL rejects a row -> restore, then test each event of that row's key by itself
      the build fails -> no worker continues; an operator starts another generation from the start of the log

No client reads the table while it is built. So it has no index, and a row is written once for many events. It has no
tombstones: a subscriber that comes back with a position from before the swap gets all rows again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace
from typing import Generic, NoReturn, TypeVar

import asyncpg

from headwater.consumers.checkpoint import WHY_BYTES, Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import DeadLetter, DeadLetters, described, storable
from headwater.consumers.failure_log import FailureLog
from headwater.domain.failure_policy import Stop
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import Database, take_times_by_number
from headwater.postgres.rejected_rows import is_rejection
from headwater.projections.building_table import BuildingTable
from headwater.projections.generations import table_lock
from headwater.projections.row_folder import (
    SLICE_SECONDS,
    FoldedRow,
    RouteFailed,
    RowCache,
    RowFolder,
    fold_failure,
    fold_of_event,
)
from headwater.projections.row_statements import load_sql
from headwater.projections.tables import show
from headwater.projections.verify import Verifier

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

HELD_UP_POLLS = 9
"""Poll intervals before the next swap when an operator has to remove what blocks it."""


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """The settings of a build.

    rows, events: changed rows and events between two writes, at most. cache: rows kept in memory, at most. near: events
    that the swap may fold, at most; the live projection waits meanwhile. swap_seconds: how long a swap waits for
    running queries; queries that arrive meanwhile wait behind it. sample: rows that are verified before the swap.

    pause: seconds of rest after a write, for the sake of other work in the database. poll: seconds until a swap that
    waits is tried again. lease: seconds of this process's lease; PostgreSQL ends a transaction that is silent for so
    long. slice_seconds: folds yield to the event loop after this long.
    """

    rows: int = 100_000
    events: int = 500_000
    cache: int = 100_000
    near: int = 10_000
    swap_seconds: float = 2.0
    sample: int = 100
    pause: float = 0.0
    poll: float = 1.0
    lease: float = 6.0
    slice_seconds: float = SLICE_SECONDS


class BuildStopped(HeadwaterError):
    """A generation cannot be built. The live generation is not affected."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class _RowsRejected(Exception):
    """PostgreSQL rejects a row among those folded since the checkpoint."""

    def __init__(self, reached: int, error: Exception) -> None:
        super().__init__(str(error))
        self.reached = reached
        self.error = error


class Rebuild(Generic[M]):
    """Builds generations of one read model.

    verifier: compares the sample; default: one that reads the whole log. sleep: waits between two writes.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        view: View[M],
        *,
        verifier: Verifier[M] | None = None,
        settings: BuildSettings = BuildSettings(),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self.log = log
        self.view = view
        self.settings = settings
        self.sleep = sleep
        self.folder = RowFolder(log, view, slice_seconds=settings.slice_seconds)
        self.verifier = verifier or Verifier(log, view)

    async def run(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Build until the generation is live, or until the lease is lost. Runs under a supervisor.

        well: called when the build is past a failure.

        A failed build does nothing more, and the process stays ready: the live generation is not affected. Another
        attempt with the same code would fail again, or draw a sample that happens to be right. When an operator starts
        another generation, the leases end this task.
        """
        try:
            await self.build(generation, well)
        except BuildStopped as stopped:
            logger.error(
                "%s; mend the code, then run `headwater rebuild %s` to start again",
                *(stopped, self.view.name),
                exc_info=stopped.__cause__,
            )
            well()
            await asyncio.Event().wait()

    async def build(self, generation: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Build as `run` does, but raise a failure.

        Raises:
            BuildStopped: a fold failed whose policy is to stop, a route failed, PostgreSQL rejects a row, the sample
                differs from the log, or this generation has failed before.
        """
        name = f"{self.view.name} {generation.number}"
        with ExitStack() as opened:
            writing = await self._database.connect(f"building {name}", session=True)
            opened.callback(writing.terminate)
            reading = await self._database.connect(f"building {name}, reading", session=True)
            opened.callback(reading.terminate)
            for connection in (writing, reading):
                await take_times_by_number(connection)
            build = _Build(self, generation, writing, reading)
            try:
                await build.run(well)
            except CheckpointMoved:
                logger.info("the lease of %s is lost, or the generation is given up", name)
            except BuildStopped as stopped:
                # Written here: where it was raised, a transaction may have been open, and is rolled back now.
                await writing.execute(_SQL["fail"], *build.lease, stopped.why)
                raise


class _Build(Generic[M]):
    """The build of one generation."""

    def __init__(
        self, rebuild: Rebuild[M], generation: Generation, writing: asyncpg.Connection, reading: asyncpg.Connection
    ) -> None:
        self._of = rebuild
        self._settings = rebuild.settings
        self._view = view = rebuild.view
        self._log = rebuild.log
        self._writing = writing
        self._reading = reading
        self._generation = generation
        self._table = BuildingTable(writing, view, generation, rebuild.folder.codec, rebuild.settings.lease)
        self.lease = self._table.lease
        self._checkpoint = Checkpoint(writing, view.name, generation, state="building")
        self._letters = DeadLetters(view.name, generation.number, view.key.text, view.key.read)
        self._folder = rebuild.folder
        self._cache = RowCache(self._folder, rebuild.settings.cache)
        self._complete = True
        """True while memory holds every row: then a key that is not there has no row."""
        self._changed: list[FoldedRow[M]] = []
        self._failures = FailureLog(f"building {view.name} {generation.number}")
        self._parked: set[RowKey] = set()
        self._suspects: set[RowKey] = set()
        """Keys of rows that PostgreSQL has rejected; each of their events is tested by itself."""
        self._aside: list[DeadLetter[RowKey]] = []
        self._taken: list[tuple[RowKey, int]] = []
        """Keys and positions of the events since the last write, if the history is kept."""
        self._position = 0

    async def run(self, well: Callable[[], None]) -> None:
        """Build from the checkpoint to the swap."""
        if await self._checkpoint.rewind_to() is None:
            await self._restore()
        else:
            await self._begin_again("the log went back to before its checkpoint")
        await self._come_near(well)
        try:
            await self._finish()
        except asyncpg.ProgramLimitExceededError as error:
            await self._begin_again(error)
            await self._come_near(well)
            await self._finish()
        await self._come_near(well)
        while not await self._swap():
            await asyncio.sleep(self._settings.poll)  # no doorbell rings when the blocking query ends
            await self._come_near(well)

    # ----------------------------------------------------------------------------------------------------- restoring

    async def _restore(self) -> None:
        """Load the state as of the checkpoint."""
        position = await self._checkpoint.read()
        if position is None:
            raise CheckpointMoved
        failure = await self._writing.fetchval(_SQL["failure"], *self.lease)
        if failure is not None:
            self._stop(failure)
        self._position = position
        self._cache.rows.clear()
        self._changed.clear()
        self._aside.clear()
        self._taken.clear()
        self._parked = await self._letters.parked(self._writing)
        self._complete = not await self._table.has_more_than(self._settings.cache)
        if not self._complete:
            await self._table.add_key()
            return
        async with aclosing(self._table.rows()) as rows:
            async for record in rows:
                self._cache.keep(record)

    async def _finish(self) -> None:
        """Add indexes and statistics, and verify a sample at the same time.

        The sample is verified once: it may read the whole log, and the live generation gets ahead meanwhile by more
        events than the swap may fold.
        """
        verifying = asyncio.create_task(self._verify())
        try:
            await self._table.add_indexes()
            await self._table.analyze()
            await verifying
        finally:
            verifying.cancel()
            # An error of it was raised above, or another one is on its way.
            await asyncio.gather(verifying, return_exceptions=True)

    async def _begin_again(self, why: object) -> None:
        """Start again with the indexes in place.

        That also finds a row with a value that is too large for one of them: PostgreSQL does not name the row while it
        makes an index, but rejects it when it is written to a table with indexes.
        """
        logger.warning("the build of %s starts again, with its indexes in place: %s", self._generation.table, why)
        await self._table.begin_again()
        await self._restore()

    # --------------------------------------------------------------------------------------------------- catching up

    async def _come_near(self, well: Callable[[], None]) -> None:
        """Fold up to the end of the log, or to within `near` events of it."""
        while (head := await self._log.head()) - self._position > self._settings.near:
            await self._catch_up(head, self._settings.pause)
            well()
        await self._catch_up(head)
        well()

    async def _catch_up(self, upto: int, pause: float = 0.0) -> None:
        """Fold up to a position, and go back to the checkpoint whenever PostgreSQL rejects a row."""
        while self._position < upto:
            try:
                await self._fold_on(upto, pause)
            except _RowsRejected as rejection:
                await self._suspect(rejection)

    async def _fold_on(self, upto: int, pause: float = 0.0) -> None:
        """Fold up to a position in large writes, with a pause between them. There is no pause after the last write,
        because the log could grow meanwhile by more than the swap may fold."""
        reading = self._log.stream(self._reading, self._position, upto, types=self._folder.types)
        async with aclosing(reading):  # ends the fetch of the next page before the connection is used again
            async for reached, events in reading:
                await self._fold(events)
                if reached == upto:
                    await self._write(reached)
                elif self._is_enough(reached):
                    await self._write(reached)
                    if pause:
                        await self._of.sleep(pause)

    def _is_enough(self, reached: int) -> bool:
        return reached - self._position >= self._settings.events or len(self._changed) >= self._settings.rows

    async def _fold(self, events: Iterator[Recorded[Event]]) -> None:
        try:
            batch = self._folder.route(events)
        except RouteFailed as failure:
            self._stop(str(failure), failure)
        if self._view.history:
            self._taken += [(key, event.position) for key, event in batch]
        if not self._complete:
            await self._load({key for key, _ in batch})
        rows, fold, parked, suspects = self._cache.rows, self._folder.fold, self._parked, self._suspects
        number_of, turn = self._folder.key.number, self._folder.time_slice()
        for key, event in batch:
            if turn.is_over():
                await turn.give_way()
            number = number_of(key)
            row = rows.get(number)
            if row is None:
                row = rows[number] = FoldedRow(key, None, 0, False)
            if parked and key in parked:
                self._aside.append(DeadLetter(key, event.position))
                continue
            try:
                model = fold(row.key, row.model, event)  # row.key: the same object as in the row is compared fastest
            except Exception as error:  # noqa: BLE001 - whatever a user's fold raises
                self._set_aside(key, event, error)
                continue
            if model is not row.model:
                if suspects and key in suspects and model is not None:
                    rejection = await self._table.rejection_of(FoldedRow(key, model, event.position, row.stored))
                    if rejection is not None:
                        self._set_aside(key, event, rejection)
                        continue
                row.model, row.position = model, event.position
                if not row.changed:
                    row.changed = True
                    self._changed.append(row)

    async def _load(self, keys: set[RowKey]) -> None:
        unreadable = await self._cache.load(self._writing, load_sql(self._view, self._generation.table), keys)
        for error in unreadable.values():
            raise error

    def _set_aside(self, key: RowKey, event: Recorded[Event], error: Exception) -> None:
        """Park the key, as the live projection does. It is tried again once this generation is live."""
        if isinstance(self._folder.policy.then, Stop):
            self._stop(fold_failure(event, self._view.key.text(key), error), error)
        failed = fold_of_event(event, self._view.key.text(key))
        self._failures.log(error, key, f"{failed} failed, and the row is parked")
        self._parked.add(key)
        self._aside.append(DeadLetter(key, event.position, 1, *described(error), self._folder.policy.pause(1)))

    def _stop(self, why: str, cause: Exception | None = None) -> NoReturn:
        why = storable(why, WHY_BYTES)
        raise BuildStopped(f"generation {self.lease[1]} of {self._view.name} is not built: {why}", why) from cause

    # ------------------------------------------------------------------------------------------------------- writing

    async def _write(self, reached: int) -> None:
        """Write rows, dead letters and checkpoint in one transaction, then drop rows beyond the cache."""
        try:
            await self._transact(reached)
        except Exception as error:
            if isinstance(error, CheckpointMoved) or not is_rejection(error):
                raise
            raise _RowsRejected(reached, error) from error
        self._settle(reached)
        await self._shrink()

    async def _transact(self, reached: int) -> None:
        async with self._writing.transaction():
            await self._table.limit()
            await self._table.write([row for row in self._changed if row.model is not None])
            removed = [row.key for row in self._changed if row.model is None and row.stored]
            if removed:
                await self._table.delete(removed)
            if self._taken:
                await self._table.record_events(self._taken)
            if self._aside:
                await self._letters.park(self._writing, self._aside)
            await self._checkpoint.move(self._position, reached)

    async def _suspect(self, rejection: _RowsRejected) -> None:
        """Find the rejected rows, and go back to the checkpoint. From then on each event of their keys is tested by
        itself, so that the event that makes a row invalid counts as a failed fold."""
        await self._table.add_key()  # without it each test would scan the table
        rows = [row for row in self._changed if row.model is not None]
        found = {row.key for row in await self._table.find_rejected(rows)}
        if found <= self._suspects:
            self._stop(
                f"PostgreSQL rejects what was folded up to position {rejection.reached}: {rejection}", rejection.error
            )
        self._suspects |= found
        await self._restore()

    def _settle(self, reached: int) -> None:
        for row in self._changed:
            row.changed, row.stored = False, row.model is not None
            if row.model is None:
                del self._cache.rows[self._folder.key.number(row.key)]
        self._changed.clear()
        self._aside.clear()
        self._taken.clear()
        self._position = reached

    async def _shrink(self) -> None:
        if self._cache.trim() and self._complete:
            await self._table.add_key()  # dropped rows are found by their key from now on
            self._complete = False

    # ------------------------------------------------------------------------------------------------------- swapping

    async def _verify(self) -> None:
        generation = replace(self._generation, position=self._position)
        report = await self._of.verifier.sample(self._reading, self._reading, generation, self._settings.sample)
        if report.found:
            self._stop(
                f"of {report.checked} sampled rows, {report.found} are not what the log says, "
                f"such as {report.differences[0]}; a fold must use no clock, no random numbers and no I/O"
            )

    async def _swap(self) -> bool:
        """Lock the live generation, fold the rest of the log, and let clients read the new rows, in one transaction.

        Returns False if something blocks the swap, and it must be tried again.
        """
        before = self._position
        try:
            async with table_lock(self._writing, self._view.name, seconds=self._settings.swap_seconds):
                return await self._take_its_place()
        except (asyncpg.LockNotAvailableError, asyncpg.TransactionRollbackError) as error:
            logger.info("the swap of %s waits for running queries (%s)", self._view.name, error)
        except asyncpg.DependentObjectsStillExistError as error:
            await self._report_hindrance(f"a column changes, and an object depends on the view: {error.detail}")
        except _RowsRejected as rejection:
            logger.info("the swap of %s waits: PostgreSQL rejects a row (%s)", self._view.name, rejection)
        if self._position > before or self._changed or self._aside or self._taken:
            await self._restore()  # the rows that the swap folded are rolled back
        return False

    async def _report_hindrance(self, what: str) -> None:
        """Record and log once what an operator has to remove. The swap is repeated by itself."""
        if await self._writing.fetch(_SQL["hinder"], *self.lease, storable(what, WHY_BYTES)):
            logger.warning("the swap of %s waits: %s", self._view.name, what)
        # The live projection waits for each attempt, and an operator needs time.
        await asyncio.sleep(HELD_UP_POLLS * self._settings.poll)

    async def _take_its_place(self) -> bool:
        name, generation, _ = self.lease
        await self._table.limit()
        live = await self._writing.fetchrow(_SQL["hold_live"], name)
        if live is not None:
            if live["position"] - self._position > self._settings.near:
                return False
            if live["position"] > self._position:
                await self._fold_on(live["position"])
        await self._writing.execute(_SQL["retire"], name, generation)
        if not await self._writing.fetch(_SQL["publish"], *self.lease, self._position):
            raise CheckpointMoved
        await show(self._writing, self._view, self._generation.table)
        return True
