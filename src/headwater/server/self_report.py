"""What each process tells of itself now and then, for `headwater status`: a row of its own, gone when it ends.

The numbers are the process's own, as at `/metrics`, but ready to be read by people: rates, means and quantiles instead
of counters. A worker's leases have a heartbeat of their own, which must not wait for this one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from itertools import accumulate
from types import TracebackType
from uuid import UUID

import asyncpg
import msgspec

from headwater.consumers.leases import process_name
from headwater.consumers.standings import recorded_at
from headwater.eventstore.appender import AppendCounts
from headwater.postgres import queries
from headwater.postgres.database import FAILING
from headwater.supervisor import Supervisor, backoff, within
from headwater.telemetry import Distribution, Progress, Telemetry

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

MISSED = 3
"""A process that was not heard of so many times is not shown any more."""

LEAVE_SECONDS = 2.0


class Spread(msgspec.Struct, frozen=True):
    """How long something took, in seconds: half of all were not above the median, 99 of 100 not above p99. Both are
    worked out from a `Distribution`, and no finer than its bounds."""

    median: float
    p99: float


class Pace(msgspec.Struct, frozen=True):
    """How one that follows the log gets on. events_per_second: since the report before. events_per_batch, retries:
    since its process started, batches without an event not counted. to_row: from the recording of an event to the
    commit, of the last report that had any."""

    events_per_second: float
    events_per_batch: float
    retries: int
    to_row: Spread | None = None


class Appends(msgspec.Struct, frozen=True):
    """What a process has sent to the log since it started. verdicts: commands by what became of them; see
    `log.Verdict`."""

    commands_per_append: float
    verdicts: dict[str, int]


class Report(msgspec.Struct, frozen=True):
    """A process on itself. paces: of what it has kept since it started, by name. appends: None in one that has sent
    nothing to the log. to_client: from the recording of an event to the moment when a subscriber had taken its change,
    of the last report that had any; None in one that has sent none."""

    paces: dict[str, Pace] = {}
    appends: Appends | None = None
    to_client: Spread | None = None


class _Recent:
    """The spread of a distribution's values since the look before, or of the last ones there were."""

    def __init__(self, whole: Distribution) -> None:
        self._whole = whole
        self._before = list(whole.counts)
        self._spread: Spread | None = None

    def look(self) -> Spread | None:
        counts = [now - before for now, before in zip(self._whole.counts, self._before, strict=True)]
        if any(counts):
            bounds, self._before = self._whole.bounds, list(self._whole.counts)
            self._spread = Spread(_quantile(bounds, counts, 0.5), _quantile(bounds, counts, 0.99))
        return self._spread


def _quantile(bounds: tuple[float, ...], counts: list[int], part: float) -> float:
    """As Prometheus works it out: as if the values between two bounds lay evenly. The last bound for what is beyond."""
    wanted = part * sum(counts)
    lower, passed = 0.0, 0
    for bound, count, reached in zip(bounds, counts, accumulate(counts), strict=False):
        if reached >= wanted:
            return round(lower + (bound - lower) * (wanted - passed) / count, 6)
        lower, passed = bound, reached
    return lower


class Measures:
    """A process's numbers, read for each report. progress: of those that follow the log, by name. tally: of its
    appender; None in a process that decides no commands."""

    def __init__(
        self,
        progress: Mapping[str, Progress],
        tally: AppendCounts | None,
        sent: Distribution,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._tally = tally
        self._clock = clock
        self._told_at = clock()
        self._events = {name: each.events for name, each in progress.items()}
        self._to_row = {name: _Recent(each.delays) for name, each in progress.items()}
        self._to_client = _Recent(sent)

    def report(self) -> Report:
        """The process as it is. The next call tells what was done since this one."""
        now, before = self._clock(), self._events
        seconds = max(now - self._told_at, 0.001)
        self._told_at, self._events = now, {name: each.events for name, each in self._progress.items()}
        paces = {
            name: Pace(
                round((each.events - before[name]) / seconds, 1),
                round(each.sizes.mean, 1),
                each.retries,
                self._to_row[name].look(),
            )
            for name, each in self._progress.items()
            if each.batches or each.retries
        }
        return Report(paces, self._appends(), self._to_client.look())

    def _appends(self) -> Appends | None:
        tally = self._tally
        if tally is None or not tally.batches:
            return None
        verdicts = {verdict.name.lower(): count for verdict, count in tally.verdicts.items()}
        return Appends(round(tally.sizes.mean, 1), verdicts)


async def settle_ages(pool: asyncpg.Pool, telemetry: Telemetry) -> None:
    """Find out how old the changes were that subscribers have taken: afterwards, all up to now are counted."""
    async with telemetry.settling:
        if unread := telemetry.take_unread():
            telemetry.settle(unread, await recorded_at(pool, {position for position, _, _ in unread}))


class Reporting:
    """Tells a process's reports: `async with Reporting(...)`. Leaving takes the row away.

    pool: where nothing of clients queues. process_id: that of its leases, where it has some. every: seconds from one
    report to the next.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        measures: Measures,
        telemetry: Telemetry,
        supervisor: Supervisor,
        *,
        is_logged: Callable[[str, BaseException], bool] = lambda part, error: False,
        process_id: UUID,
        serves: bool,
        every: float,
    ) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._is_logged = is_logged
        self._measures = measures
        self._telemetry = telemetry
        self._process_id = process_id
        self._serves = serves
        self._every = every

    async def __aenter__(self) -> Reporting:
        self._supervisor.start("report", self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._supervisor.stop("report")
        try:
            await self._supervisor.farewell(self._leave(), LEAVE_SECONDS)
        except FAILING as failure:
            logger.warning("the process could not sign off (%r); it is shown for some seconds more", failure)

    async def run(self) -> None:
        """Tell until cancelled. Nothing depends on it: what keeps it from telling is logged, once, and makes nobody the
        less ready."""
        failures, forgotten = 0, False
        while True:
            try:
                if not forgotten:
                    await within(MISSED * self._every, self._forget())
                    forgotten = True
                await within(MISSED * self._every, self._tell())
            except Exception as error:
                failures += 1
                if not self._is_logged("report", error) and failures == 1:
                    trace = None if isinstance(error, FAILING) else error
                    logger.warning("the process cannot tell of itself (%r); it goes on trying", error, exc_info=trace)
            else:
                failures = 0
            await asyncio.sleep(max(self._every, backoff(failures)) if failures else self._every)

    async def _forget(self) -> None:
        await self._pool.execute(_SQL["forget"])

    async def _leave(self) -> None:
        await self._pool.execute(_SQL["leave"], self._process_id)

    async def _tell(self) -> None:
        await settle_ages(self._pool, self._telemetry)
        report = msgspec.json.encode(self._measures.report()).decode()
        await self._pool.execute(
            _SQL["tell"], self._process_id, process_name(), self._serves, MISSED * self._every, report
        )
