"""A node: one running process. What it opens, which tasks it runs, and in which order it stops.

`serve` handles mutations, queries and subscriptions. `work` runs projections, sagas, reactors and schedules. `headwater
dev` does both.

    opening: check the schema and the log, then open and start everything (`_open`)
      -> running
      -> draining: commands in flight are answered; those that take too long are abandoned (`answered`, `__aexit__`)
      -> closing: all tasks stop, then everything is closed; what waits too long is cut off (`_close`)

A failure while opening leads straight to closing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from headwater.clock import Clock, SystemClock
from headwater.commands.dispatcher import Dispatcher
from headwater.config import Settings
from headwater.consumers.failure_log import Halted
from headwater.consumers.leases import Leases, Unit
from headwater.consumers.loop import CommandPath, Ports
from headwater.consumers.standings import read_standings
from headwater.eventstore.appender import Appender
from headwater.eventstore.audit_trail import Trail
from headwater.eventstore.compatibility import require_readable
from headwater.eventstore.doorbell import Doorbell, PostgresBell
from headwater.eventstore.epoch import Epoch
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.eventstore.snapshots import SnapshotStore
from headwater.graphql.serving import ClientLimits, Serving
from headwater.live.feed import Feed
from headwater.logs import node_name
from headwater.postgres.database import FAILING, Database
from headwater.postgres.requirements import checked, require_rights
from headwater.postgres.schema_version import require_schema
from headwater.projections.generations import adopt, prepare, renew, schemas_of
from headwater.projections.history import History
from headwater.projections.reader import Reader
from headwater.projections.retire import RetiredTables
from headwater.projections.tables import snake_case
from headwater.projections.tombstones import Tombstones
from headwater.server.health import GRACE_SECONDS, HEALTH, Health
from headwater.server.self_report import Measures, SelfReports
from headwater.server.worker import Worker, names_of, register_units
from headwater.supervisor import Supervisor, within
from headwater.telemetry import Telemetry

if TYPE_CHECKING:
    from headwater.app import App

logger = logging.getLogger(__name__)

PROBES = 2

DRAINING = 0.6
"""The part of the shutdown time that commands may take to finish.

In the rest they are answered, and everything closes.
"""

LEAST_SECONDS = 0.25
"""The minimum time of each step of a shutdown, however long earlier steps took. A database that answers needs less."""


class Node:
    """A process of an app: `async with Node(app, settings, dsn, serve=True, work=True) as node`.

    clock: used by decisions, sagas and schedules.
    probe_seconds: the time that the database has to answer a health check or a scrape. grace_seconds: how long a
    trouble has to last before the process is not ready. pause: the seconds before the restart of a task, by the number
    of its failures; by default a growing backoff.

    Raises, on entering:
        Unsuitable: the server, or a right of the role, is not what Headwater needs.
        SchemaMissing: the database is not migrated.
        LogUnreadable: the log holds events that this app cannot read.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        dsn: str,
        *,
        serve: bool,
        work: bool,
        clock: Clock | None = None,
        probe_seconds: float = 2.0,
        grace_seconds: float = GRACE_SECONDS,
        pause: Callable[[int], float] | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.positions = Positions()
        self.telemetry = Telemetry()
        self._clock = clock or SystemClock()
        self.database = Database(
            dsn,
            pool_size=settings.pool_size,
            statement_timeout=settings.statement_timeout_seconds,
            session_dsn=settings.listen_url,
            clock=self._clock,
            greet=self.positions.epochs.enter,
        )
        self.supervisor = Supervisor(self._is_logged, pause=pause)
        # Connections of its own, so that scrapes do not wait for slow queries that occupy the whole pool.
        self.probe = Database(
            dsn,
            pool_size=PROBES,
            statement_timeout=settings.statement_timeout_seconds,
            session_dsn=settings.listen_url,
            greet=self.positions.epochs.enter,
        )
        # One more for the health checks: a scrape may wait for a lock that says nothing about this process.
        self._pulse = Database(
            dsn,
            pool_size=1,
            statement_timeout=probe_seconds / 2,
            session_dsn=settings.listen_url,
            greet=self.positions.epochs.enter,
        )
        self.positions.epochs.on_change(self._leave_earlier_server)
        self.probe_seconds = probe_seconds
        self._grace_seconds = grace_seconds
        self._dsn = dsn
        self._serve = serve
        self._work = work
        self._stack = AsyncExitStack()
        self._ending_since: float | None = None

    def _is_logged(self, name: str, error: BaseException) -> bool:
        """True if a task's failure has lines of its own in the log: of an outage, or of a unit that halts."""
        return isinstance(error, Halted) or self.database.outage.covers(name, error)

    def _leave_earlier_server(self, epoch: Epoch) -> None:
        """End every other connection: it may be to a server of the epoch that has ended."""
        for each in self._databases:
            each.end_greeted()

    async def __aenter__(self) -> Node:
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.decides:
            await self._in_time(self.appender.drain())
        await self._close()

    async def _close(self) -> None:
        """Stop all tasks at once, then close everything that is open, the last one first.

        What still waits for the database at the deadline is cut off.
        """
        left = self._left(1)
        cut = [asyncio.get_running_loop().call_later(left, each.cut_off) for each in self._databases]
        self.supervisor.over_within(left)
        try:
            await self.supervisor.stop_all()
            await self._stack.aclose()
        finally:
            for each in cut:
                each.cancel()

    async def answered(self) -> None:
        """Return when the commands in flight are answered.

        When that takes too long for a shutdown, they are answered with what is known, and no more are accepted.
        """
        if self.decides:
            await self._in_time(self.appender.answered())

    async def _in_time(self, answering: Coroutine[Any, Any, None]) -> None:
        try:
            await asyncio.wait_for(answering, self._left(DRAINING))
        except TimeoutError:
            self.appender.abandon()

    def _left(self, part: float) -> float:
        """Return the seconds until a part of the shutdown time is over. The time starts with the first call."""
        now = asyncio.get_running_loop().time()
        if self._ending_since is None:
            self._ending_since = now
        return max(LEAST_SECONDS, self._ending_since + self.settings.shutdown_seconds * part - now)

    async def _open(self) -> None:
        await self._require()
        for each in self._databases:
            await self._stack.enter_async_context(each)
        await require_schema(self.database.pool)
        await require_readable(self.database.pool, self.app.domain)
        await self._prepare()
        self.log = Log(self.database.pool, self.app.domain.codec)
        await self._stack.enter_async_context(self.supervisor)
        self.supervisor.start("outage", self.database.outage.run)
        self._start_doorbell()
        lost = partial(self.positions.epochs.report_lost, self.database.pool, node_name())
        self.supervisor.start("lost positions", partial(lost, partial(self.supervisor.well, "lost positions")))
        if self.decides:
            self._start_commands()
        if self._serve:
            self._start_serving()
        if self._work:
            await self._start_working()
        await self._start_health()
        await self._start_reporting()

    async def _require(self) -> None:
        """Check the server and the role's rights before anything relies on them."""
        async with checked(self._dsn, self.settings.listen_url) as connection:
            await require_rights(
                connection,
                decides=self.decides,
                works=self._work,
                shown=[snake_case(view.name) for view in self.app.domain.views],
                schemas=schemas_of(self.app.domain.views),
            )

    async def _prepare(self) -> None:
        """Create the tables of the read models, and register every unit, before anything reads them."""
        async with self.database.pool.acquire() as connection:
            for view in self.app.domain.views:
                await prepare(connection, view)
                await (renew if self._work else adopt)(connection, view)
            await register_units(connection, self.app.domain)

    def _start_doorbell(self) -> None:
        bell = PostgresBell(self.database)
        doorbell = Doorbell(bell, self.positions)
        self.supervisor.start("doorbell", doorbell.run)
        self.supervisor.start("listener", partial(bell.listen, partial(self.supervisor.well, "listener")))

    @property
    def decides(self) -> bool:
        """True if the process decides commands: of clients, or of sagas and schedules."""
        return self._serve or bool(self._work and (self.app.domain.sagas or self.app.domain.schedules))

    def _start_commands(self) -> None:
        settings = self.settings
        self.appender = Appender(
            self.database, self.positions, queue=settings.append_queue, batch=settings.append_batch
        )
        epochs = self.positions.epochs
        self.snapshots = SnapshotStore(self.database, epoch=lambda: epochs.current.number)
        epochs.on_change(lambda _: self.snapshots.forget())
        epochs.on_change(lambda _: self.dispatcher.forget())
        self.supervisor.start("snapshots", partial(self.snapshots.run, partial(self.supervisor.well, "snapshots")))
        self.dispatcher = Dispatcher(
            self.app.domain,
            self.log,
            self.appender,
            snapshots=self.snapshots,
            cache=settings.stream_cache,
            clock=self._clock,
        )
        supervisor = self.supervisor
        well, unwell = partial(supervisor.well, "appender"), partial(supervisor.unwell, "appender")
        supervisor.start("appender", partial(self.appender.run, well, unwell))

    def _start_serving(self) -> None:
        settings = self.settings
        feeds = {}
        for view in self.app.domain.views:
            reader = Reader(
                self.database.pool,
                view,
                self.positions,
                patience=settings.at_least_seconds,
                poll=settings.poll_seconds,
            )
            feed = feeds[view.model] = Feed(reader, self.positions, poll=settings.poll_seconds)
            name = f"feed {view.name}"
            self.supervisor.start(name, partial(feed.run, partial(self.supervisor.well, name)))
        histories = {
            view.model: History(self.app.domain, view, self.log, self.database.pool) for view in self.app.domain.views
        }
        trail = Trail(
            self.database.pool,
            self.log,
            self.positions,
            poll=settings.poll_seconds,
            is_logged=self.database.outage.covers,
        )
        self.serving = Serving(
            dispatcher=self.dispatcher,
            feeds=feeds,
            histories=histories,
            trail=trail,
            database=self.database,
            epochs=self.positions.epochs,
            limits=ClientLimits(settings.default_page, settings.max_page, settings.outbox),
            telemetry=self.telemetry,
        )

    async def _start_working(self) -> None:
        self.worker = Worker(
            Ports(self.database, self.log, self.positions),
            self.app.domain,
            self.settings,
            CommandPath(self.appender, self.dispatcher, self._clock) if self.decides else None,
        )
        self.leases = Leases(
            self.database,
            self.worker.runs,
            self.positions,
            self.supervisor,
            run_unit=self._run_unit,
            lease=self.settings.lease_seconds,
        )
        retired = RetiredTables(self.database, seconds=self.settings.retired_seconds)
        self.supervisor.start("retired", partial(retired.run, partial(self.supervisor.well, "retired")))
        tombstones = Tombstones(self.database, seconds=self.settings.tombstone_seconds)
        self.supervisor.start("tombstones", partial(tombstones.run, partial(self.supervisor.well, "tombstones")))
        # Exits before the supervisor, so that the leases of this process are given back at once.
        await self._stack.enter_async_context(self.leases)

    async def _run_unit(self, unit: Unit) -> None:
        await self.worker.run(unit, partial(self.supervisor.well, unit.task))

    async def _start_health(self) -> None:
        self.health = Health(
            self._pulse,
            self.positions.epochs,
            self.supervisor,
            appender=self.appender if self.decides else None,
            housekeeping=self._housekeeping,
            faulty=self._faulty,
            clock=self._clock,
            seconds=self.probe_seconds,
            grace=self._grace_seconds,
            is_logged=self.database.outage.covers,
        )
        await self.health.begin()
        self.supervisor.start(HEALTH, self.health.run)

    def _housekeeping(self) -> set[str]:
        """Return the tasks whose failure leaves this process ready: if it serves, those that are a worker's."""
        if not (self.serves and self.works):
            return set()
        return {"leases", "retired", "tombstones", *(unit.task for unit in self.leases.held)}

    async def _faulty(self) -> dict[str, str]:
        """Return the units that are later than the settings tolerate, or that fail, with the reason of each."""
        tolerance, failures = self.settings.ready_lag_seconds, self.settings.ready_failures
        if not self.serves or (not tolerance and failures == "ignored"):
            return {}
        try:
            standings = await within(self.probe_seconds, read_standings(self.probe.pool))
        except FAILING:
            return {}  # nothing is known of them, and they are no part of this process
        # Not units that this code does not have: they stand still on purpose.
        ours = names_of(self.app.domain)
        failing = standings.failing(parked=failures == "parked") if failures != "ignored" else {}
        faulty = {f"unit {name}": why for name, why in failing.items() if name in ours}
        if tolerance:
            # Not reactors: a slow outside service is no reason to send clients elsewhere.
            late = ours.difference(reactor.unit for reactor in self.app.domain.reactors)
            for name in late.intersection(standings.late(tolerance)):
                faulty[f"projection {name}"] = f"it is more than {tolerance:g} s behind the log"
        return faulty

    async def _start_reporting(self) -> None:
        measures = Measures(
            self.worker.progress if self.works else {},
            self.appender.counts if self.decides else None,
            self.telemetry.sent,
        )
        process_id = self.leases.worker_id if self.works else uuid4()
        await self._stack.enter_async_context(
            SelfReports(
                self.probe.pool,
                measures,
                self.telemetry,
                self.supervisor,
                troubles=lambda: self.health.troubles,
                is_logged=self.database.outage.covers,
                process_id=process_id,
                serves=self.serves,
                every=self.settings.lease_seconds / 3,  # the rhythm of the leases: a process that is shown is alive
            )
        )

    @property
    def serves(self) -> bool:
        """True if the process handles mutations and queries. Then it has `serving` and `appender`."""
        return self._serve

    @property
    def works(self) -> bool:
        """True if the process runs projections, sagas, reactors and schedules. Then it has `worker` and `leases`."""
        return self._work

    async def troubles(self) -> dict[str, str]:
        """Look now. Returns what makes the process unready if it lasts, by the name of a task or of what does not work.

        `health` has what has lasted.
        """
        return await self.health.look()

    @property
    def _databases(self) -> tuple[Database, ...]:
        return self.database, self.probe, self._pulse
