"""What a worker keeps: read models, sagas, reactors and schedules, each a unit that any worker may lease."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from headwater.clock import Clock
from headwater.commands.dispatcher import Dispatcher
from headwater.config import Settings
from headwater.consumers.checkpoint import Generation, register
from headwater.consumers.leases import Unit
from headwater.consumers.reactor_runner import Reacting
from headwater.consumers.scheduler import SCHEDULES, Scheduler
from headwater.domain.feature import Domain
from headwater.domain.reactor import Reactor
from headwater.domain.read_model import View
from headwater.domain.saga import Saga
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Log
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Connection, Database
from headwater.projections.generations import fingerprint, kinds_of
from headwater.projections.projector import Projector
from headwater.projections.rebuild import Rebuild
from headwater.sagas.conductor import Conductor
from headwater.supervisor import Supervisor
from headwater.telemetry import Progress

SCHEDULED = "schedules"
"""The fingerprint of the schedules' unit."""


def conducted(saga: Saga[Any, Any]) -> str:
    """The fingerprint of a saga's unit: any code that brings the saga, and takes the same events, can run it, since its
    records tell what follows."""
    return f"saga.{kinds_of(saga.events)}"


def reacted(reactor: Reactor) -> str:
    """The fingerprint of a reactor's unit: any code that brings the reactor, and takes the same events, can run it."""
    return f"reactor.{kinds_of(reactor.events)}"


async def register_units(connection: Connection, domain: Domain, *, insist: bool = False) -> None:
    """Make the checkpoints that are missing now, so that what is appended before the first worker starts is not passed
    over, and have older code keep none that it would pass over something with. insist: see `register`."""
    for saga in domain.sagas:
        await register(connection, saga.category, conducted(saga), from_end=not saga.from_start, insist=insist)
    for reactor in domain.reactors:
        await register(connection, reactor.unit, reacted(reactor), from_end=not reactor.from_start, insist=insist)
    if domain.schedules:
        await register(connection, SCHEDULES, SCHEDULED)


def names_of(domain: Domain) -> set[str]:
    """What an app has kept, by the names of its units."""
    views, sagas = {view.name for view in domain.views}, {saga.category for saga in domain.sagas}
    return views | sagas | {reactor.unit for reactor in domain.reactors}


class _Keeper(Protocol):
    async def run(self, standing: Generation, well: Callable[[], None]) -> None: ...


class Worker:
    """Keeps what the leases give it: `run_unit` for each. appender, dispatcher: None where the domain has neither sagas
    nor schedules. clock: what sagas and schedules go by."""

    def __init__(
        self,
        database: Database,
        log: Log,
        domain: Domain,
        settings: Settings,
        positions: Positions,
        supervisor: Supervisor,
        clock: Clock,
        appender: Appender | None,
        dispatcher: Dispatcher | None,
    ) -> None:
        self._database = database
        self._log = log
        self._domain = domain
        self._settings = settings
        self._positions = positions
        self._supervisor = supervisor
        self._clock = clock
        self.projectors = {view.name: self._projector(view) for view in domain.views}
        self.reacting = {reactor.unit: self._reacting(reactor) for reactor in domain.reactors}
        self.conductors: dict[str, Conductor] = {}
        self.scheduler: Scheduler | None = None
        if appender is not None and dispatcher is not None:
            self.conductors = {saga.category: self._conductor(saga, appender, dispatcher) for saga in domain.sagas}
            if domain.schedules:
                self.scheduler = Scheduler(database, dispatcher, domain.schedules, clock=clock)

    @property
    def runs(self) -> dict[str, str]:
        """What this code can keep, with the fingerprint of each."""
        return (
            {view.name: fingerprint(view) for view in self._domain.views}
            | {saga.category: conducted(saga) for saga in self._domain.sagas if saga.category in self.conductors}
            | {reactor.unit: reacted(reactor) for reactor in self._domain.reactors}
            | ({} if self.scheduler is None else {SCHEDULES: SCHEDULED})
        )

    @property
    def progress(self) -> dict[str, Progress]:
        """What each that follows the log has done in this process, by its name among the projections."""
        projections = {name: projector.progress for name, projector in self.projectors.items()}
        acting: dict[str, Conductor | Reacting] = {**self.conductors, **self.reacting}
        return projections | {name: each.progress for name, each in acting.items()}

    async def run_unit(self, unit: Unit) -> None:
        """Keep what was leased, until it is another's."""
        await self._keeper(unit).run(unit.leased, partial(self._supervisor.well, unit.task))

    def _keeper(self, unit: Unit) -> _Keeper:
        if unit.name == SCHEDULES:
            assert self.scheduler is not None  # or it would not be among those that it runs
            return self.scheduler
        if unit.building:
            return self._rebuild(self._domain.view_named(unit.name))
        keepers: dict[str, _Keeper] = {**self.projectors, **self.conductors, **self.reacting}
        return keepers[unit.name]

    def _projector(self, view: View[Any]) -> Projector[Any]:
        return Projector(
            self._database,
            self._log,
            view,
            self._positions,
            batch=self._settings.projection_batch,
            cache=self._settings.projection_cache,
            poll=self._settings.poll_seconds,
            lease=self._settings.lease_seconds,
        )

    def _rebuild(self, view: View[Any]) -> Rebuild[Any]:
        return Rebuild(
            self._database,
            self._log,
            view,
            cache=self._settings.projection_cache,
            pause=self._settings.rebuild_pause_seconds,
            poll=self._settings.poll_seconds,
            by_stream=self._domain.by_stream(view),
            lease=self._settings.lease_seconds,
        )

    def _conductor(self, saga: Saga[Any, Any], appender: Appender, dispatcher: Dispatcher) -> Conductor:
        return Conductor(
            self._database,
            self._log,
            appender,
            dispatcher,
            self._domain,
            saga,
            self._positions,
            clock=self._clock,
            poll=self._settings.poll_seconds,
            lease=self._settings.lease_seconds,
        )

    def _reacting(self, reactor: Reactor) -> Reacting:
        return Reacting(
            self._database,
            self._log,
            reactor,
            self._positions,
            poll=self._settings.poll_seconds,
            lease=self._settings.lease_seconds,
        )
