"""One log for an outage of PostgreSQL: a line when it begins, one a minute while it lasts, one when it is over.

In an outage PostgreSQL is unreachable, or read-only: after a failover, the server may be a standby for some time. An
outage reaches every part of a process at once. Each part that meets it reports the failure to `Outage.covers` instead
of logging it. A failure alone does not prove an outage, since PostgreSQL may have ended just that connection, so
`Outage.run` tries to connect and then decides:

    usable -> a failure is reported -> connect -> PostgreSQL can be written: log that failure, once a minute -> usable
                                               -> it cannot: log the begin -> away
    away -> connect, with backoff -> still not: log a line a minute
                                  -> PostgreSQL can be written: log the end -> usable

A server that answers but has no room left, such as one with a full disk, is a `Shortage`, with the same lines.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

import asyncpg

from headwater.clock import Clock
from headwater.errors import OutcomeUnknown, Unavailable
from headwater.postgres.shortage import Shortage
from headwater.postgres.tally import LINE_EVERY, Tally, said, took
from headwater.supervisor import backoff

logger = logging.getLogger(__name__)

PROBE_PAUSE = 1.0
"""The longest time between two attempts to connect, in seconds."""

DRIVER = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Errors of the driver, which a fault in the code can cause: their traceback is logged. That of a connection which the
server or the network has ended says nothing."""

AFTERMATH_SECONDS = 30.0
"""For so long after an outage, or after the process has ended its connections itself, a part may still find that its
connection has ended. The longest backoff of the supervisor and the time until a silent connection counts as lost are
shorter."""


class Outage:
    """Knows whether the database of a process is away, and is the only place that logs it.

    connect: returns if PostgreSQL can be written. away: what is raised when it cannot. clock: of the lines' times.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[object]], away: tuple[type[BaseException], ...], clock: Clock
    ) -> None:
        self._connect = connect
        self._faults = away
        self._clock = clock
        self._reported = asyncio.Event()
        self._failures: dict[str, BaseException] = {}
        self._running = False
        self._away = False
        self._over_at: float | None = None
        self._logged_at: dict[str, datetime] = {}
        self._tally = Tally()
        self._shortage = Shortage(clock)

    def covers(self, part: str, error: BaseException) -> bool:
        """Report a failure. True if it is logged here, so that the part logs nothing; False for every other cause.

        part: as the operator reads it, such as "appender".
        """
        if not self._running:
            return False
        tally = self._tally_for(error)
        if tally is None:
            return False
        tally.failures[part] += 1
        if isinstance(error, self._faults):
            self._failures.setdefault(part, error)
            self._reported.set()
        elif tally is self._shortage.tally and not isinstance(error, Unavailable | OutcomeUnknown):
            self._shortage.report(error)
        logger.debug("%s cannot use PostgreSQL: %r", part, error)
        return True

    def _tally_for(self, error: BaseException) -> Tally | None:
        """Return where a failure is counted; None if it is due neither to an outage nor to a shortage."""
        if isinstance(error, self._faults):
            return self._tally
        if isinstance(error, asyncpg.InsufficientResourcesError):
            return self._shortage.tally
        if isinstance(error, Unavailable | OutcomeUnknown):
            # What a dispatcher answers when the log cannot be written, and for other reasons: no reason to connect.
            if self._away or self._failures or self._is_aftermath():
                return self._tally
            return self._shortage.tally if self._shortage.lasts else None
        return None

    def count(self, what: str, number: int) -> bool:
        """Add to a number that the outage's lines show. True if there is an outage now; False if nothing was added."""
        if self._away:
            self._tally.numbers[what] += number
        elif self._shortage.lasts:
            self._shortage.tally.numbers[what] += number
        return self._away or self._shortage.lasts

    def expect_ended(self) -> None:
        """Take in that the process has ended its connections itself. What fails by that is not logged."""
        self._over_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Look into what is reported, until cancelled. Runs under a supervisor."""
        self._running = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._look())
                group.create_task(self._shortage.run())
        finally:
            self._running = False
            self._forget()
            self._shortage.forget()

    async def _look(self) -> None:
        while True:
            await self._reported.wait()
            reason = await self._try_to_connect()
            if reason is None:
                self._log_single_failures()
            else:
                await self._wait_for_an_answer(reason)
            self._forget()

    async def _try_to_connect(self) -> BaseException | None:
        """Return why PostgreSQL is away; None if it can be written."""
        try:
            await self._connect()
        except self._faults as error:
            return error
        except asyncpg.PostgresError as error:
            return error
        return None

    async def _wait_for_an_answer(self, reason: BaseException) -> None:
        """Return when PostgreSQL can be written again."""
        state, over = _states(reason)
        self._away = True
        began = line = self._clock.now()
        logger.error(
            "PostgreSQL is %s (%s); every part of this process tries again until it %s", state, said(reason), over
        )
        failures = 1
        while True:
            await asyncio.sleep(backoff(failures, longest=PROBE_PAUSE))
            again = await self._try_to_connect()
            now = self._clock.now()
            if again is None:
                break
            failures += 1
            if now - line >= LINE_EVERY:
                line = now
                logger.error(
                    "PostgreSQL has been %s for %s (%s); %s", state, took(began, now), said(again), str(self._tally)
                )
        self._away = False
        self._over_at = asyncio.get_running_loop().time()
        logger.warning("PostgreSQL %s again after %s; %s", over, took(began, now), str(self._tally))

    def _log_single_failures(self) -> None:
        """PostgreSQL answers: log each failure as one of its own, at most once a minute for each part.

        Failures that follow from the last outage, or from ends that were expected, are not logged.
        """
        if self._is_aftermath():
            return
        now = self._clock.now()
        for part, error in self._failures.items():
            if part in self._logged_at and now - self._logged_at[part] < LINE_EVERY:
                continue
            self._logged_at[part] = now
            logger.warning(
                "%s failed, though PostgreSQL answers: %s",
                *(part, said(error)),
                exc_info=error if isinstance(error, DRIVER) else None,
            )

    def _is_aftermath(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._over_at is not None and now - self._over_at < AFTERMATH_SECONDS

    def _forget(self) -> None:
        self._reported.clear()
        self._failures.clear()
        self._tally.clear()


def _states(reason: BaseException) -> tuple[str, str]:
    """Return what PostgreSQL is in an outage that begins for this reason, and what it does after it."""
    if isinstance(reason, asyncpg.ReadOnlySQLTransactionError):
        return "read-only", "can be written"
    return "unreachable", "answers"
