"""Each process reports about itself for `headwater status`: one row, updated regularly and removed when it ends.

The numbers are those of `/metrics`, prepared for people: rates, means and quantiles instead of counters. The leases of
a worker have a heartbeat of their own, which must not wait for these reports.
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

from headwater.consumers.standings import recorded_at
from headwater.eventstore.appender import AppendCounts
from headwater.logs import node_name
from headwater.postgres import queries
from headwater.postgres.database import FAILING
from headwater.server.health import Trouble
from headwater.supervisor import Supervisor, backoff, within
from headwater.telemetry import Distribution, Progress, Telemetry

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

MISSED = 3
"""Reports that a process may miss before `headwater status` stops showing it."""

LEAVE_SECONDS = 2.0


class Spread(msgspec.Struct, frozen=True):
    """The median and the 99th percentile of a duration, in seconds. No finer than the bounds of its `Distribution`."""

    median: float
    p99: float


class Pace(msgspec.Struct, frozen=True):
    """The speed of a consumer.

    events_per_second: since the previous report. events_per_batch, retries: since the process started; batches without
    events do not count. to_row: time from the recording of an event to the commit, of the last report that had any.
    """

    events_per_second: float
    events_per_batch: float
    retries: int
    to_row: Spread | None = None


class Appends(msgspec.Struct, frozen=True):
    """What a process has sent to the log since it started. verdicts: commands by their `log.Verdict`."""

    commands_per_append: float
    verdicts: dict[str, int]


class ProcessReport(msgspec.Struct, frozen=True):
    """What a process reports about itself.

    paces: of the consumers that it has run since it started, by the name of the unit. appends: None when it has sent
    nothing to the log. to_client: time from the recording of an event to the hand-over of its change to a subscriber,
    of the last report that had any; None when it has sent no change. troubles: what is wrong with it, since when.
    """

    paces: dict[str, Pace] = {}
    appends: Appends | None = None
    to_client: Spread | None = None
    troubles: list[Trouble] = []

    @property
    def ready(self) -> bool:
        """True if nothing that is wrong makes the process unready."""
        return not any(each.unready for each in self.troubles)


class _Recent:
    """The spread of the values since the previous report; if there are none, of the last values."""

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
    """Return a quantile as Prometheus does: values between two bounds count as evenly spread, values beyond as the last
    bound."""
    wanted = part * sum(counts)
    lower, passed = 0.0, 0
    for bound, count, reached in zip(bounds, counts, accumulate(counts), strict=False):
        if reached >= wanted:
            return round(lower + (bound - lower) * (wanted - passed) / count, 6)
        lower, passed = bound, reached
    return lower


class Measures:
    """The measurements of a process, read for each report.

    progress: of its consumers, by the name of the unit. counts: of its appender; None in a process that decides no
    commands.
    """

    def __init__(
        self,
        progress: Mapping[str, Progress],
        counts: AppendCounts | None,
        sent: Distribution,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._counts = counts
        self._clock = clock
        self._reported_at = clock()
        self._events = {name: each.events for name, each in progress.items()}
        self._to_row = {name: _Recent(each.delays) for name, each in progress.items()}
        self._to_client = _Recent(sent)

    def report(self) -> ProcessReport:
        """Return a report. Rates cover the time since the previous call."""
        now, before = self._clock(), self._events
        seconds = max(now - self._reported_at, 0.001)
        self._reported_at, self._events = now, {name: each.events for name, each in self._progress.items()}
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
        return ProcessReport(paces, self._appends(), self._to_client.look())

    def _appends(self) -> Appends | None:
        counts = self._counts
        if counts is None or not counts.batches:
            return None
        verdicts = {verdict.name.lower(): count for verdict, count in counts.verdicts.items()}
        return Appends(round(counts.sizes.mean, 1), verdicts)


async def settle_ages(pool: asyncpg.Pool, telemetry: Telemetry) -> None:
    """Measure the age of all changes that were handed to subscribers since the last call."""
    async with telemetry.settling:
        if unread := telemetry.take_unread():
            telemetry.settle(unread, await recorded_at(pool, {position for position, _, _ in unread}))


class SelfReports:
    """Writes the reports of a process: `async with SelfReports(...)`. Leaving removes its row.

    pool: one that clients' queries do not use. troubles: returns what is wrong with the process. process_id: the
    worker_id of its leases, where it has some. every: seconds between two reports. pause: returns the seconds to wait
    after a number of failures in a row.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        measures: Measures,
        telemetry: Telemetry,
        supervisor: Supervisor,
        *,
        troubles: Callable[[], list[Trouble]],
        is_logged: Callable[[str, BaseException], bool] = lambda part, error: False,
        process_id: UUID,
        serves: bool,
        every: float,
        pause: Callable[[int], float] = backoff,
    ) -> None:
        self._pool = pool
        self._supervisor = supervisor
        self._is_logged = is_logged
        self._measures = measures
        self._telemetry = telemetry
        self._troubles = troubles
        self._process_id = process_id
        self._serves = serves
        self._every = every
        self._pause = pause

    async def __aenter__(self) -> SelfReports:
        self._supervisor.start("report", self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._supervisor.stop("report")
        try:
            await self._supervisor.farewell(self._leave(), LEAVE_SECONDS)
        except FAILING as failure:
            logger.warning("this process could not remove its report (%r); it is shown for some seconds more", failure)

    async def run(self) -> None:
        """Report until cancelled.

        Nothing depends on it: a failure is logged once, and does not make the process unready.
        """
        failures, forgotten = 0, False
        while True:
            try:
                if not forgotten:
                    await within(MISSED * self._every, self._forget())
                    forgotten = True
                await within(MISSED * self._every, self._write())
            except Exception as error:
                failures += 1
                if not self._is_logged("report", error) and failures == 1:
                    trace = None if isinstance(error, FAILING) else error
                    logger.warning("this process cannot write its report (%r); it tries again", error, exc_info=trace)
            else:
                failures = 0
            await asyncio.sleep(max(self._every, self._pause(failures)) if failures else self._every)

    async def _forget(self) -> None:
        await self._pool.execute(_SQL["forget"])

    async def _leave(self) -> None:
        await self._pool.execute(_SQL["leave"], self._process_id)

    async def _write(self) -> None:
        await settle_ages(self._pool, self._telemetry)
        report = msgspec.structs.replace(self._measures.report(), troubles=self._troubles())
        text = msgspec.json.encode(report).decode()
        await self._pool.execute(_SQL["write"], self._process_id, node_name(), self._serves, MISSED * self._every, text)
