"""A worker: it runs the units that it leases. Read models, sagas, reactors and the schedules are units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from headwater.config import Settings
from headwater.consumers.checkpoint import Generation, register
from headwater.consumers.leases import Unit
from headwater.consumers.loop import CommandPath, LoopSettings, Ports
from headwater.consumers.reactor_runner import REACTOR_LOOP, ReactorRunner
from headwater.consumers.scheduler import SCHEDULES, Scheduler
from headwater.domain.feature import Domain
from headwater.domain.projection import Projection
from headwater.domain.reactor import Reactor
from headwater.domain.read_model import View
from headwater.domain.saga import Saga
from headwater.postgres.database import Connection
from headwater.projections.generations import fingerprint, kinds_of
from headwater.projections.projection_runner import ProjectionRunner
from headwater.projections.projector import Projector
from headwater.projections.rebuild import BuildSettings, Rebuild
from headwater.projections.verify import Verifier
from headwater.sagas.conductor import Conductor
from headwater.telemetry import Progress

SCHEDULED = "schedules"
"""The fingerprint of the schedules' unit."""


def saga_fingerprint(saga: Saga[Any]) -> str:
    """Return the fingerprint of a saga's unit.

    Any code that has the saga and takes the same events can run it, because its records say what follows.
    """
    return f"saga.{kinds_of(saga.events)}"


def projection_fingerprint(projection: Projection[Any]) -> str:
    """Return the fingerprint of the unit of a projection with tables of the app's own, as that of a reactor."""
    return f"projection.{kinds_of(projection.events)}"


def reactor_fingerprint(reactor: Reactor) -> str:
    """Return the fingerprint of a reactor's unit: any code that has it and takes the same events can run it."""
    return f"reactor.{kinds_of(reactor.events)}"


async def register_units(connection: Connection, domain: Domain, *, insist: bool = False) -> None:
    """Create missing checkpoints, and take over those of older code that reads fewer kinds of events.

    Done at the start of every process, so that events that are appended before the first worker starts are not skipped.
    insist: see `register`.
    """
    for saga in domain.sagas:
        await register(connection, saga.category, saga_fingerprint(saga), from_end=not saga.from_start, insist=insist)
    for reactor in domain.reactors:
        await register(
            connection, reactor.unit, reactor_fingerprint(reactor), from_end=not reactor.from_start, insist=insist
        )
    for projection in domain.projections:
        await register(connection, projection.unit, projection_fingerprint(projection), insist=insist)
    if domain.schedules:
        await register(connection, SCHEDULES, SCHEDULED)


def names_of(domain: Domain) -> set[str]:
    """Return the names of all units of an app, without the schedules."""
    views, sagas = {view.name for view in domain.views}, {saga.category for saga in domain.sagas}
    own = {projection.unit for projection in domain.projections}
    return views | own | sagas | {reactor.unit for reactor in domain.reactors}


class _Runner(Protocol):
    async def run(self, leased: Generation, well: Callable[[], None]) -> None: ...


class Worker:
    """Runs the units that the leases give it. commands: None when the domain has neither sagas nor schedules."""

    def __init__(
        self,
        ports: Ports,
        domain: Domain,
        settings: Settings,
        commands: CommandPath | None,
    ) -> None:
        self._domain = domain
        self._settings = settings
        self._ports = ports
        self.projectors = {view.name: self._projector(view) for view in domain.views}
        self.own_projections = {each.unit: self._own_projection(each) for each in domain.projections}
        self.reacting = {reactor.unit: self._reacting(reactor) for reactor in domain.reactors}
        self.conductors: dict[str, Conductor] = {}
        self.scheduler: Scheduler | None = None
        if commands is not None:
            self.conductors = {saga.category: self._conductor(saga, commands) for saga in domain.sagas}
            if domain.schedules:
                self.scheduler = Scheduler(ports.database, commands.dispatcher, domain.schedules, clock=commands.clock)

    @property
    def runs(self) -> dict[str, str]:
        """The units that this code can run, with the fingerprint of each."""
        return (
            {view.name: fingerprint(view) for view in self._domain.views}
            | {saga.category: saga_fingerprint(saga) for saga in self._domain.sagas if saga.category in self.conductors}
            | {each.unit: projection_fingerprint(each) for each in self._domain.projections}
            | {reactor.unit: reactor_fingerprint(reactor) for reactor in self._domain.reactors}
            | ({} if self.scheduler is None else {SCHEDULES: SCHEDULED})
        )

    @property
    def progress(self) -> dict[str, Progress]:
        """What each consumer has done in this process, by the name of its unit."""
        projections = {name: projector.progress for name, projector in self.projectors.items()}
        acting: dict[str, ProjectionRunner | Conductor | ReactorRunner] = {
            **self.own_projections,
            **self.conductors,
            **self.reacting,
        }
        return projections | {name: each.progress for name, each in acting.items()}

    async def run(self, unit: Unit, well: Callable[[], None]) -> None:
        """Run a leased unit until the lease is lost. well: called when the unit has recovered from a failure."""
        await self._runner_of(unit).run(unit.leased, well)

    def _runner_of(self, unit: Unit) -> _Runner:
        if unit.name == SCHEDULES:
            assert self.scheduler is not None  # otherwise `runs` would not offer it
            return self.scheduler
        if unit.building:
            return self.rebuild_of(self._domain.view_named(unit.name))
        runners: dict[str, _Runner] = {
            **self.projectors,
            **self.own_projections,
            **self.conductors,
            **self.reacting,
        }
        return runners[unit.name]

    def _projector(self, view: View[Any]) -> Projector[Any]:
        sizes = LoopSettings(batch=self._settings.projection_batch, cache=self._settings.projection_cache)
        return Projector(self._ports, view, self._loop(sizes))

    def _own_projection(self, projection: Projection[Any]) -> ProjectionRunner:
        return ProjectionRunner(
            self._ports, projection, self._loop(LoopSettings(batch=self._settings.projection_batch))
        )

    def rebuild_of(self, view: View[Any]) -> Rebuild[Any]:
        """Return what builds the generations of a read model, with this worker's settings."""
        return Rebuild(
            self._ports.database,
            self._ports.log,
            view,
            verifier=Verifier(self._ports.log, view, stream_of=self._domain.stream_of(view)),
            settings=BuildSettings(
                cache=self._settings.projection_cache,
                pause=self._settings.rebuild_pause_seconds,
                poll=self._settings.poll_seconds,
                lease=self._settings.lease_seconds,
            ),
        )

    def _conductor(self, saga: Saga[Any], commands: CommandPath) -> Conductor:
        return Conductor(self._ports, commands, self._domain, saga, self._loop(LoopSettings()))

    def _reacting(self, reactor: Reactor) -> ReactorRunner:
        return ReactorRunner(self._ports, reactor, self._loop(REACTOR_LOOP))

    def _loop(self, settings: LoopSettings) -> LoopSettings:
        """Return a loop's settings with the pace that this process is set to."""
        return replace(settings, poll=self._settings.poll_seconds, lease=self._settings.lease_seconds)
