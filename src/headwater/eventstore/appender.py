"""Group commit: while one append is in flight, commands queue up; the next append writes all of them.

One connection, one task, one batch at a time. States:

    connecting -> idle -> writing -> settling -> idle ...
        |            \\-> (connection lost, silent or read-only) -> connecting -> writing the same batch again
        \\-> patience is over: all waiting commands fail -> connecting ...

Writing a batch again is safe and its verdicts are correct: commands whose events were committed before the connection
was lost return as done, with their first result; the others are judged for the first time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import asyncpg
import msgspec

from headwater.errors import OutcomeUnknown, Overloaded, Unavailable
from headwater.eventstore.epoch import Commands, EpochEnded
from headwater.eventstore.log import Append, Appended, Verdict, append
from headwater.eventstore.positions import LOG, Positions
from headwater.postgres.database import AWAY, CONNECT_SECONDS, LOST, Database
from headwater.postgres.tally import said
from headwater.supervisor import backoff
from headwater.telemetry import SECONDS, SIZES, Distribution

logger = logging.getLogger(__name__)

LOST_FOR_WRITING: tuple[type[BaseException], ...] = (*LOST, asyncpg.ReadOnlySQLTransactionError)
"""Errors of a connection that cannot be used for writing: it is lost, or its server has become a standby."""

NOT_NOW: tuple[type[BaseException], ...] = (
    asyncpg.InsufficientResourcesError,  # for example a full disk
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,
)
"""Errors of a call that PostgreSQL rejects for now, for no fault of the call: it is rolled back."""

SHORTAGE_SECONDS = 60.0
"""The seconds for which a rejected append says that there is no room."""

AT_FAULT = (asyncpg.PostgresError, ValueError, TypeError, OverflowError)
"""Errors of a call that holds a value which PostgreSQL rejects, or which the driver cannot send."""

SMALL_BATCH = 16
"""A batch takes at least so many commands, if they wait. Larger batches leave some commands for the next one, so that
there is work while this one is written. For so few commands that gains nothing: the flush to the disk takes longer than
deciding them."""


class Chain(msgspec.Struct, eq=False, gc=False):
    """Commands of one stream, each decided on the state that the one before it will leave, before any was written. When
    one loses, the later ones were decided on a state that never existed, and are not sent."""

    broken: bool = False


class _Waiting(msgspec.Struct, eq=False):
    append: Append
    chain: Chain
    answer: asyncio.Future[Appended]


@dataclass
class AppendCounts:
    """The work of the appender since the start. sizes: commands in an append. seconds: duration of an append."""

    batches: int = 0
    commands: int = 0
    events: int = 0
    verdicts: dict[Verdict, int] = field(default_factory=lambda: dict.fromkeys(Verdict, 0))
    sizes: Distribution = field(default_factory=lambda: Distribution(SIZES))
    seconds: Distribution = field(default_factory=lambda: Distribution(SECONDS))


class Appender:
    """The process's only writer of commands to the log.

    queue: the most commands that may wait. batch: the most commands in one append. patience: seconds to wait for an
    unreachable database before the waiting commands fail; a connection that is silent for half of that counts as lost.
    write: appends a batch on a connection.

    A command is stamped with the number of `epochs.current` in which it was decided.
    """

    def __init__(
        self,
        database: Database,
        positions: Positions,
        *,
        queue: int = 10_000,
        batch: int = 500,
        patience: float = 10.0,
        write: Callable[[asyncpg.Connection, Sequence[Append]], Awaitable[list[Appended]]] = append,
    ) -> None:
        self._database = database
        self._positions = positions
        self._limit = queue
        self._batch = batch
        self._patience = patience
        self.epochs = positions.epochs
        self._append_batch = write
        self._queue: deque[_Waiting] = deque()
        self._writing: list[_Waiting] = []
        self._share = SMALL_BATCH
        self._arrived = asyncio.Event()
        self._closing = False
        self._away_since: float | None = None
        self.counts = AppendCounts()
        self._shortage: tuple[float, str] | None = None

    @property
    def waiting(self) -> int:
        """The number of commands that wait for the next append."""
        return len(self._queue)

    @property
    def writing(self) -> int:
        """Commands of the append in progress."""
        return len(self._writing)

    @property
    def shortage(self) -> str | None:
        """Why PostgreSQL had no room for the latest append, as with a full disk.

        None if it had, or if that append was longer ago than SHORTAGE_SECONDS: then nothing is known.
        """
        if self._shortage is None or time.monotonic() - self._shortage[0] > SHORTAGE_SECONDS:
            return None
        return self._shortage[1]

    def submit(self, command: Append, chain: Chain) -> asyncio.Future[Appended]:
        """Queue a command for the next append.

        Returns a future of the verdict. It raises Unavailable (nothing was written) or OutcomeUnknown when the database
        stays unreachable.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the process is shutting down.
        """
        if self._closing:
            raise Unavailable("The server is shutting down; nothing was written. Try again.")
        if len(self._queue) >= self._limit:
            raise Overloaded(
                f"The queue of commands is full ({len(self._queue)} are waiting); nothing was written. Try again later."
            )
        answer: asyncio.Future[Appended] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(command, chain, answer))
        self._arrived.set()
        return answer

    async def drain(self) -> None:
        """Take no more commands, and return when all waiting ones have their answer."""
        self._closing = True
        await self.answered()

    async def answered(self) -> None:
        """Return when all commands that wait now have their answer."""
        answers = [waiting.answer for waiting in (*self._writing, *self._queue)]
        if answers:
            await asyncio.wait(answers)

    def abandon(self) -> None:
        """Take no more commands, and fail the waiting ones: the process ends before the log has answered."""
        self._closing = True
        self._give_up()

    async def run(
        self, well: Callable[[], None] = lambda: None, unwell: Callable[[str], None] = lambda why: None
    ) -> None:
        """Connect, write batches, reconnect. Runs under a supervisor.

        well, unwell: called when the log can be written again, and with the reason when it cannot.
        """
        failures = 0
        while True:
            try:
                connection = await self._connect()
                try:
                    self._fail_outdated()
                    if self._writing:  # the batch of the lost connection; well() only after it is written
                        await self._write(connection)
                    well()
                    self._away_since, failures = None, 0
                    await self._write_batches(connection)
                finally:
                    connection.terminate()
            except AWAY as error:
                why = str(error) or type(error).__name__
                failures += 1
                if not self._database.outage.covers("appender", error):
                    logger.warning("the log cannot be written (%s); connecting again (failure %d)", why, failures)
                unwell(f"the log cannot be written: {why}")
            self._note_absence()
            await asyncio.sleep(0 if failures == 1 else backoff(failures - 1))

    async def _connect(self) -> asyncpg.Connection:
        return await self._database.connect_to_write("appender", seconds=min(CONNECT_SECONDS, self._patience / 2))

    def _fail_outdated(self) -> None:
        """Fail the commands in flight that were decided in an epoch that has ended: they may be written or lost."""
        for waiting in self._writing:
            if self._is_outdated(waiting):
                self._fail(waiting, OutcomeUnknown(OutcomeUnknown.__doc__))
        self._writing = [waiting for waiting in self._writing if not self._is_outdated(waiting)]

    def _is_outdated(self, waiting: _Waiting) -> bool:
        return waiting.append.epoch not in (None, self.epochs.current.number)

    def _note_absence(self) -> None:
        """Record that the log is unreachable, and fail the waiting commands if it has been for too long."""
        self._away_since = self._away_since or time.monotonic()
        if time.monotonic() - self._away_since >= self._patience:
            self._give_up()

    def _give_up(self) -> None:
        """Fail the waiting commands: queued ones were not written, those of the batch in flight may have been."""
        outage, unwritten, unknown = self._database.outage, len(self._queue), len(self._writing)
        if outage.count("commands not written", unwritten):
            outage.count("commands with unknown outcome", unknown)
        else:
            logger.error("the log is unreachable: %d commands not written, %d with unknown outcome", unwritten, unknown)
        for waiting in self._writing:
            self._fail(waiting, OutcomeUnknown(OutcomeUnknown.__doc__))
        for waiting in self._queue:
            self._fail(waiting, Unavailable(Unavailable.__doc__))
        self._writing = []
        self._queue.clear()

    async def _write_batches(self, connection: asyncpg.Connection) -> None:
        while True:
            if not self._writing:
                await self._take()
            await self._write(connection)

    async def _append(self, connection: asyncpg.Connection, batch: list[_Waiting]) -> list[Appended]:
        """Append a batch.

        Raises:
            TimeoutError: PostgreSQL did not answer; the connection counts as lost.
        """
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience / 2):
                return await self._append_batch(connection, [waiting.append for waiting in batch])
        except LOST_FOR_WRITING:
            self._away_since = self._away_since or started  # the batch has waited since then
            raise

    async def _take(self) -> None:
        """Wait for commands, and take a batch of those that do not depend on a command that lost."""
        while not self._writing:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            room = min(self._share, self._batch)
            epoch = self.epochs.current.number
            while self._queue and len(self._writing) < room:
                waiting = self._queue.popleft()
                if waiting.chain.broken or waiting.append.epoch not in (None, epoch):
                    self._settle(waiting, _behind(waiting.append))
                else:
                    self._writing.append(waiting)

    async def _write(self, connection: asyncpg.Connection) -> None:
        batch, started = self._writing, time.perf_counter()
        try:
            answers = await self._append(connection, batch)
        except LOST_FOR_WRITING:
            raise
        except EpochEnded as error:
            # Nothing was written: they are decided again. The next connection learns the epoch.
            self._writing = []
            for waiting in batch:
                self._settle(waiting, _behind(waiting.append))
            raise ConnectionResetError("the log is in another epoch") from error
        except NOT_NOW as error:
            self._note_rejection(error, len(batch))
            self._writing = []
            for waiting in batch:
                self._fail(waiting, Unavailable(Unavailable.__doc__))
            return
        except AT_FAULT as error:
            await self._write_singly(connection, error)
            return
        self.counts.seconds.observe(time.perf_counter() - started)
        if self._is_outdated(batch[0]):  # the answers came from a server that was left meanwhile
            self._fail_outdated()
            return
        self._writing = []
        # The callers that get their answer now send their next commands, beside those that wait. A batch takes half of
        # all, so that one is written while the other half is decided: both cores work, instead of taking turns.
        self._share = max(SMALL_BATCH, (len(batch) + len(self._queue) + 1) // 2)
        self._settle_batch(batch, answers)

    def _note_rejection(self, error: BaseException, commands: int) -> None:
        """Log that an append was rejected for now. A full disk rejects every one: the outage's lines count them."""
        if isinstance(error, asyncpg.InsufficientResourcesError):
            self._shortage = time.monotonic(), said(error)
        if self._database.outage.covers("appender", error):
            self._database.outage.count("commands not written", commands)
        else:
            logger.warning("PostgreSQL rejected an append for now (%s); %d commands failed", error, commands)

    async def _write_singly(self, connection: asyncpg.Connection, error: Exception) -> None:
        """Write each command by itself after PostgreSQL rejected the whole call, so that only the faulty one fails."""
        if len(self._writing) > 1:
            logger.warning("an append of %d commands failed (%s); writing them one by one", len(self._writing), error)
        while self._writing:
            first, *others = self._writing
            if first.chain.broken:
                self._settle(first, _behind(first.append))
            else:
                try:
                    answers = await self._append(connection, [first])
                except LOST_FOR_WRITING:
                    raise
                except EpochEnded as ended:
                    raise ConnectionResetError("the log is in another epoch") from ended
                except NOT_NOW as rejection:
                    self._note_rejection(rejection, 1)
                    self._fail(first, Unavailable(Unavailable.__doc__))
                except AT_FAULT as fault:
                    self._fail(first, fault)
                else:
                    if self._is_outdated(first):
                        self._fail(first, OutcomeUnknown(OutcomeUnknown.__doc__))
                    else:
                        self._settle_batch([first], answers)
            self._writing = others  # not earlier: drain() and _give_up() need the first one until then

    def _settle_batch(self, batch: list[_Waiting], answers: list[Appended]) -> None:
        self._shortage = None
        counts = self.counts
        counts.batches += 1
        counts.commands += len(batch)
        counts.sizes.observe(len(batch))
        for waiting, appended in zip(batch, answers, strict=True):
            counts.verdicts[appended.verdict] += 1
            if appended.verdict is Verdict.ACCEPTED:
                counts.events += len(waiting.append.events)
            self._settle(waiting, appended)
        self.epochs.remember(Commands([waiting.append for waiting in batch], answers), self.epochs.current)
        self._positions.report(LOG, max((a.position for a in answers if a.verdict is Verdict.ACCEPTED), default=0))

    def _settle(self, waiting: _Waiting, appended: Appended) -> None:
        if appended.verdict is not Verdict.ACCEPTED:
            waiting.chain.broken = True
        if not waiting.answer.done():  # its caller may be cancelled
            waiting.answer.set_result(appended)

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        waiting.chain.broken = True
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


def _behind(command: Append) -> Appended:
    return Appended(Verdict.BEHIND, 0, 0, command.stream_id)
