"""Building a generation of a read model beside the live one, and putting it in its place.

    restoring -> catching up: read -> fold in memory -> write in bulk -> ... -> near the head -> indexed,
              and a sample verified -> catching up -> swapped in one transaction: live
                                                   -> in vain -> catching up -> swapped ...
    any of them -> displaced (the lease is another's, or the generation was given up): end; who has it goes on from the
              checkpoint, which moves with the rows
                -> refused (PostgreSQL does not take a row): from the checkpoint again, each event of that row looked at
                -> failed: nobody goes on, until a person has another generation begun from the start of the log

What is built is read by nobody, so that its table has no index, and rows are written once for many events. Tombstones
are not kept: whoever goes on from before the swap is sent everything again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, NoReturn, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from headwater.consumers.checkpoint import Checkpoint, CheckpointMoved, Generation
from headwater.consumers.dead_letters import DeadLetter, DeadLetters, described, storable
from headwater.domain.failure_policy import Stop, policy_of
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_fold import Breath, fold_of
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import Database, take_times_by_number, write_derived
from headwater.postgres.rejected_rows import is_refusal, misfits, objection
from headwater.projections import row_events
from headwater.projections.generations import table_lock
from headwater.projections.row_codec import model_reader, writer_of
from headwater.projections.row_statements import delete_sql, load_sql, select_sql, update_sql
from headwater.projections.tables import SCHEMA, add_indexes, add_key, show
from headwater.projections.verify import Verifier

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

NEAR = 10_000
"""Events that may be folded inside the swap, at most, while the live projection is held up."""

SWAP_WAIT_SECONDS = 2.0
"""How long a swap waits for queries under way; those that come meanwhile wait behind it."""

HELD_UP_POLLS = 9
"""How much longer than a poll the next swap waits when a person has to take something out of the way."""

RESTORED_AT_ONCE = 5_000

WHY_BYTES = 2048
"""Of the sentence that says why a build has failed, at most: what a fold raised may say anything."""


class BuildStopped(HeadwaterError):
    """A generation cannot be built; it stands still, and what is live goes on. The sentence says why."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class _Refused(Exception):
    """PostgreSQL does not take what was folded since the checkpoint; which row is at fault is to be found out."""

    def __init__(self, reached: int, error: Exception) -> None:
        super().__init__(str(error))
        self.reached = reached
        self.error = error


class _Row(msgspec.Struct, gc=False):
    """A row as folded so far. stored: whether the table has it. changed: since the last write. There are many, which
    the garbage collector would go through again and again."""

    key: UUID
    model: Any
    position: int
    stored: bool
    changed: bool = False


class Rebuild(Generic[M]):
    """Builds generations of one read model.

    rows, events: what is folded between two writes, at most. cache: rows kept in memory, at most. pause: seconds of
    rest after a write, so that the database can do other work. sample: rows that are verified before the swap.
    by_stream: whether a row's key is the id of the stream that its events are in; then the sample is read by index.
    lease: of this process, in seconds, after which PostgreSQL ends a transaction that it has left standing.
    """

    def __init__(
        self,
        database: Database,
        log: Log,
        view: View[M],
        *,
        rows: int = 100_000,
        events: int = 500_000,
        cache: int = 100_000,
        pause: float = 0.0,
        poll: float = 1.0,
        sample: int = 100,
        by_stream: bool = False,
        lease: float = 6.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._database = database
        self.lease_seconds = lease
        self.log = log
        self.view = view
        self.rows = rows
        self.events = events
        self.cache = cache
        self.pause = pause
        self.poll = poll
        self.sample = sample
        self.sleep = sleep
        self.verifier = Verifier(log, view, by_stream=by_stream)

    async def run(self, standing: Generation, well: Callable[[], None] = lambda: None) -> None:
        """Build until the generation is live, or until the lease with this fence is another's. Runs under a supervisor,
        which is told when a failure is got over.

        When the build has failed it rests, and is well: what is live is not touched. Tried again, the same code would
        fail again, or have a sample at last in which nothing happens to be wrong. What a person has begun in its place
        is another unit, and with this one's end the leases end this task.
        """
        try:
            await self.build(standing, well)
        except BuildStopped as stopped:
            logger.error("%s; once it is mended, `headwater rebuild %s` begins again", stopped, self.view.name)
            well()
            await asyncio.Event().wait()

    async def build(self, standing: Generation, well: Callable[[], None] = lambda: None) -> None:
        """The same, but a failure is raised.

        Raises:
            BuildStopped: a fold failed whose policy is to stop, PostgreSQL does not take what a fold gave, the sample
                is not what the log says. Or it was so before: nobody goes on with a generation that has failed.
        """
        name = f"{self.view.name} {standing.number}"
        with ExitStack() as opened:
            writing = await self._database.connect(f"building {name}")
            opened.callback(writing.terminate)
            reading = await self._database.connect(f"building {name}, reading")
            opened.callback(reading.terminate)
            for connection in (writing, reading):
                await take_times_by_number(connection)
            build = _Build(self, standing, writing, reading)
            try:
                await build.run(well)
            except CheckpointMoved:
                logger.info("%s is built by another, or given up", name)
            except BuildStopped as stopped:
                # Here, and not where it arose, which may be in a transaction that has now been rolled back.
                await writing.execute(_SQL["fail"], *build.lease, stopped.why)
                raise


class _Build(Generic[M]):
    """One generation on its way."""

    def __init__(
        self, rebuild: Rebuild[M], standing: Generation, writing: asyncpg.Connection, reading: asyncpg.Connection
    ) -> None:
        self._of = rebuild
        self._view = view = rebuild.view
        self._log = rebuild.log
        self._writing = writing
        self._reading = reading
        self._standing = standing
        self._table = standing.table
        self.lease = view.name, standing.number, standing.fence
        self._checkpoint = Checkpoint(writing, view.name, standing, state="building")
        self._letters = DeadLetters(view.name, standing.number)
        self._policy = policy_of(view.on_failure)
        self._types = self._log.stored_names(view.events)
        self._route = {event: view.route_of(event) for event in view.events}
        self._fold_row = fold_of(view)
        self._columns = [(each.name, writer_of(each)) for each in view.fields]
        self._read_row = model_reader(view)
        self._rows: dict[int, _Row] = {}
        """By the key's number, since a UUID is hashed in Python, again and again."""
        self._complete = True
        """Whether memory holds all rows; then a key that is not there has none."""
        self._changed: list[_Row] = []
        self._parked: set[UUID] = set()
        self._suspects: set[UUID] = set()
        """Keys of rows that PostgreSQL has refused, whose events are looked at one by one."""
        self._aside: list[DeadLetter] = []
        self._taken: list[tuple[UUID, int]] = []
        """Where the events of each key are, since the last write, if that is kept."""
        self._position = 0

    async def run(self, well: Callable[[], None]) -> None:
        """From the checkpoint to the swap."""
        await self._restore()
        await self._come_near(well)
        try:
            await self._finish()
        except asyncpg.ProgramLimitExceededError as error:
            await self._begin_again(error)
            await self._come_near(well)
            await self._finish()
        await self._come_near(well)
        while not await self._swap():
            await asyncio.sleep(self._of.poll)  # what is in the way does not ring
            await self._come_near(well)

    # ----------------------------------------------------------------------------------------------------- restoring

    async def _restore(self) -> None:
        """Take up what is written, wherever the one before came to an end."""
        position = await self._checkpoint.read()
        if position is None:
            raise CheckpointMoved
        failure = await self._writing.fetchval(_SQL["failure"], *self.lease)
        if failure is not None:
            self._stop(failure)
        self._position = position
        self._rows.clear()
        self._changed.clear()
        self._aside.clear()
        self._taken.clear()
        self._parked = await self._letters.parked(self._writing)
        self._complete = await self._count() <= self._of.cache
        if self._complete:
            await self._load_all()
        else:
            await add_key(self._writing, self._view, self._table)

    async def _finish(self) -> None:
        """Indexes and statistics, and beside them a sample is verified: the one is PostgreSQL's work, the other ours.

        Once: a sample may read the whole log, and meanwhile the live generation comes further than the swap may fold.
        """
        verifying = asyncio.create_task(self._verify())
        try:
            await self._index()
            await self._writing.execute(f'analyze {SCHEMA}."{self._table}"')
            if self._view.history:
                await row_events.analyze(self._writing, self._table)
            await verifying
        finally:
            verifying.cancel()
            await asyncio.gather(
                verifying, return_exceptions=True
            )  # what it raised was raised above, or matters no more

    async def _index(self) -> None:
        await add_key(self._writing, self._view, self._table)
        await add_indexes(self._writing, self._view, self._table)

    async def _begin_again(self, error: Exception) -> None:
        """A value is too large for an index, and PostgreSQL does not say whose. With the indexes there from the start
        it refuses the row when it is written, as it does in the live projection."""
        logger.warning("%s is built from the start again, with its indexes: %s", self._table, error)
        async with self._writing.transaction():
            await self._limit()
            if not await self._writing.fetch(_SQL["begin_again"], *self.lease):
                raise CheckpointMoved
            await self._writing.execute(f'truncate {SCHEMA}."{self._table}"')
            if self._view.history:
                await row_events.truncate(self._writing, self._table)
            await self._index()
        await self._restore()

    async def _count(self) -> int:
        counted = f'select count(*) from (select from {SCHEMA}."{self._table}" limit $1) few'  # noqa: S608 - our own name
        return await self._writing.fetchval(counted, self._of.cache + 1)  # type: ignore[no-any-return]  # count(*)

    async def _load_all(self) -> None:
        async with self._writing.transaction():
            rows = self._writing.cursor(select_sql(self._view, self._table), prefetch=RESTORED_AT_ONCE)
            async for record in rows:
                self._keep(record)

    def _keep(self, record: asyncpg.Record) -> None:
        key = record[self._view.key]
        self._rows[key.int] = _Row(key, self._read_row(record), record["position"], True)  # type: ignore[arg-type]  # the view's own model

    # --------------------------------------------------------------------------------------------------- catching up

    async def _come_near(self, well: Callable[[], None]) -> None:
        """To where the log ends, or to what was appended while the last of it was folded."""
        while (head := await self._log.head()) - self._position > NEAR:
            await self._catch_up(head, self._of.pause)
            well()
        await self._catch_up(head)
        well()

    async def _catch_up(self, upto: int, pause: float = 0.0) -> None:
        """To a position, whatever PostgreSQL refuses on the way."""
        while self._position < upto:
            try:
                await self._fold_on(upto, pause)
            except _Refused as refused:
                await self._suspect(refused)

    async def _fold_on(self, upto: int, pause: float = 0.0) -> None:
        """To a position, in large writes, with a rest between them. There is none after the last one, in which the log
        would get ahead again by more than may be folded in the swap."""
        reading = self._log.stream(self._reading, self._position, upto, types=self._types)
        async with aclosing(reading):  # or the next page would still be on its way when the log is read again
            async for reached, events in reading:
                await self._fold(events)
                if reached == upto:
                    await self._write(reached)
                elif self._is_enough(reached):
                    await self._write(reached)
                    if pause:
                        await self._of.sleep(pause)

    def _is_enough(self, reached: int) -> bool:
        return reached - self._position >= self._of.events or len(self._changed) >= self._of.rows

    async def _fold(self, events: Iterator[Recorded[Event]]) -> None:
        batch = self._routed(events)
        if self._view.history:
            self._taken += [(key, event.position) for key, event in batch]
        if not self._complete:
            await self._load({key for key, _ in batch})
        rows, fold, parked, suspects = self._rows, self._fold_row, self._parked, self._suspects
        breath = Breath()
        for key, event in batch:
            if breath.due:
                await breath.take()
            number = key.int
            row = rows.get(number)
            if row is None:
                row = rows[number] = _Row(key, None, 0, False)
            if parked and key in parked:
                self._aside.append(DeadLetter(key, event.position))
                continue
            try:
                model = fold(row.key, row.model, event)  # the very object that the row has for its key is quickly told
            except Exception as error:  # noqa: BLE001 - whatever a user's fold raises
                self._set_aside(key, event, error)
                continue
            if model is not row.model:
                if suspects and key in suspects and model is not None:
                    refusal = await self._objection([_Row(key, model, event.position, row.stored)])
                    if refusal is not None:
                        self._set_aside(key, event, refusal)
                        continue
                row.model, row.position = model, event.position
                if not row.changed:
                    row.changed = True
                    self._changed.append(row)

    def _routed(self, events: Iterator[Recorded[Event]]) -> list[tuple[UUID, Recorded[Event]]]:
        routes, batch = self._route, []
        for event in events:
            route = routes.get(type(event.data))
            if route is None:
                continue
            try:
                batch.append((route(event.data), event))
            except Exception as error:  # noqa: BLE001 - whatever a user's route raises
                self._stop(  # whose key is not known cannot be set aside
                    f"the route of {event.data.__declared__.name} at position {event.position} raised "
                    f"{type(error).__name__}: {error}",
                    error,
                )
        return batch

    async def _load(self, keys: set[UUID]) -> None:
        missing = [key for key in keys if key.int not in self._rows]
        if missing:
            for record in await self._writing.fetch(load_sql(self._view, self._table), missing):
                self._keep(record)

    def _set_aside(self, key: UUID, event: Recorded[Event], error: Exception) -> None:
        """As the live projection does: its key is parked, to be tried again as the policy says once this is live."""
        if isinstance(self._policy.then, Stop):
            self._stop(
                f"the fold of {event.data.__declared__.name} at position {event.position} on row {key} raised "
                f"{type(error).__name__}: {error}",
                error,
            )
        self._parked.add(key)
        self._aside.append(DeadLetter(key, event.position, 1, *described(error), self._policy.pause(1)))

    def _stop(self, why: str, cause: Exception | None = None) -> NoReturn:
        why = storable(why, WHY_BYTES)
        raise BuildStopped(f"generation {self.lease[1]} of {self._view.name} is not built: {why}", why) from cause

    # ------------------------------------------------------------------------------------------------------- writing

    async def _write(self, reached: int) -> None:
        """Rows, dead letters and checkpoint, in one transaction; then memory is made small again."""
        try:
            await self._transact(reached)
        except Exception as error:
            if isinstance(error, CheckpointMoved) or not is_refusal(error):
                raise
            raise _Refused(reached, error) from error
        self._settle(reached)
        await self._shrink()

    async def _transact(self, reached: int) -> None:
        async with self._writing.transaction():
            await self._limit()
            await self._write_rows([row for row in self._changed if row.model is not None])
            removed = [row.key for row in self._changed if row.model is None and row.stored]
            if removed:
                await self._writing.execute(delete_sql(self._view, self._table), removed)
            if self._taken:
                await row_events.copy(self._writing, self._table, self._taken)
            if self._aside:
                await self._letters.park(self._writing, self._aside)
            await self._checkpoint.move(self._position, reached)

    async def _write_rows(self, rows: Sequence[_Row]) -> None:
        new = [row for row in rows if not row.stored]
        if new:
            names = [*(name for name, _ in self._columns), "position"]
            records = zip(*self._arrays(new), strict=True)
            await self._writing.copy_records_to_table(self._table, schema_name=SCHEMA, columns=names, records=records)
        known = [row for row in rows if row.stored]
        if known:
            await self._writing.execute(update_sql(self._view, self._table), *self._arrays(known))

    def _arrays(self, rows: list[_Row]) -> list[list[Any]]:
        models = [row.model for row in rows]
        arrays = [[write(getattr(model, name)) for model in models] for name, write in self._columns]
        return [*arrays, [row.position for row in rows]]

    async def _suspect(self, refused: _Refused) -> None:
        """Find whose rows are refused, and go back to the checkpoint. Then each event of theirs is looked at by itself,
        so that the one that made the row what it is counts as a failed fold."""
        await add_key(self._writing, self._view, self._table)  # each try would go through all rows
        rows = [row for row in self._changed if row.model is not None]
        found = {row.key for row in await misfits(rows, self._objection)}
        if found <= self._suspects:
            self._stop(
                f"PostgreSQL does not take what was folded up to position {refused.reached}: {refused}", refused.error
            )
        self._suspects |= found
        await self._restore()

    async def _objection(self, rows: Sequence[_Row]) -> Exception | None:
        async def write() -> None:
            await self._limit()
            await self._write_rows(rows)

        return await objection(self._writing, write)

    async def _limit(self) -> None:
        """Of a transaction. It holds the row of the lease from its beginning: by it `end_stalled_sessions` finds the
        session of a worker that is stopped while it writes."""
        await write_derived(self._writing, quiet=self._of.lease_seconds)
        await self._writing.execute(_SQL["mine"], *self.lease)

    def _settle(self, reached: int) -> None:
        for row in self._changed:
            row.changed, row.stored = False, row.model is not None
            if row.model is None:
                del self._rows[row.key.int]
        self._changed.clear()
        self._aside.clear()
        self._taken.clear()
        self._position = reached

    async def _shrink(self) -> None:
        """Rows that do not fit are found by their key from now on."""
        over = len(self._rows) - self._of.cache
        if over <= 0:
            return
        if self._complete:
            await add_key(self._writing, self._view, self._table)
            self._complete = False
        for number in list(islice(self._rows, over)):
            del self._rows[number]

    # ------------------------------------------------------------------------------------------------------- swapping

    async def _verify(self) -> None:
        standing = replace(self._standing, position=self._position)
        report = await self._of.verifier.sample(self._reading, self._reading, standing, self._of.sample)
        if report.found:
            self._stop(
                f"of {report.checked} sampled rows, {report.found} are not what the log says, "
                f"such as {report.differences[0]}; is its fold without clock, chance and I/O?"
            )

    async def _swap(self) -> bool:
        """In one transaction: what is live stands still, the rest is folded, and clients read the new rows. False when
        it has to be tried again."""
        before = self._position
        try:
            async with table_lock(self._writing, self._view.name, seconds=SWAP_WAIT_SECONDS):
                return await self._take_its_place()
        except (asyncpg.LockNotAvailableError, asyncpg.TransactionRollbackError) as error:
            logger.info("the swap of %s waits for queries under way (%s)", self._view.name, error)
        except asyncpg.DependentObjectsStillExistError as error:
            await self._hinder(f"a column goes or changes its type, but what depends on the view stays: {error.detail}")
        except _Refused as refused:
            logger.info("the swap of %s waits for a row that is refused (%s)", self._view.name, refused)
        if self._position > before or self._changed or self._aside or self._taken:
            await self._restore()  # what was folded in the swap was rolled back with it
        return False

    async def _hinder(self, what: str) -> None:
        """Say once what a person has to take out of the way; the swap comes again by itself."""
        if await self._writing.fetch(_SQL["hinder"], *self.lease, storable(what, WHY_BYTES)):
            logger.warning("the swap of %s waits: %s", self._view.name, what)
        # Each swap in vain has the live projection wait for it, and a person is not that quick.
        await asyncio.sleep(HELD_UP_POLLS * self._of.poll)

    async def _take_its_place(self) -> bool:
        name, generation, _ = self.lease
        await self._limit()
        live = await self._writing.fetchrow(_SQL["hold_live"], name)
        if live is not None:
            if live["position"] - self._position > NEAR:
                return False
            if live["position"] > self._position:
                await self._fold_on(live["position"])
        await self._writing.execute(_SQL["retire"], name, generation)
        if not await self._writing.fetch(_SQL["publish"], *self.lease, self._position):
            raise CheckpointMoved
        await show(self._writing, self._view, self._table)
        return True
