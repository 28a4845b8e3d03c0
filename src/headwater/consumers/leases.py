"""Leases: any number of workers share the units of work, and no unit runs in two of them.

A unit is a generation of a projection, a saga, a reactor, or the schedules. A worker has one lease and renews it by a
heartbeat every third of its duration, however many units it owns. A unit is free if it has no owner, or if its owner's
lease has expired. Claiming a unit raises its fencing token, and every commit checks the token: a worker that was paused
until its lease expired commits nothing. Only the database's clock counts.

    every third of a lease, or when the doorbell rings:
      heartbeat -> stop units that were lost -> release units assigned to others -> claim free units assigned here

Every worker computes the assignment from the same rows (`assign`), so there is no leader. Two workers that read at the
same moment may compute different assignments. The guarded UPDATE decides between them, and the next round corrects it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg

from headwater.consumers.checkpoint import Generation
from headwater.eventstore.positions import Positions
from headwater.logs import node_name
from headwater.postgres import queries
from headwater.postgres.database import FAILING, Connection, Database
from headwater.supervisor import Supervisor

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

LEASES = "leases"
"""The name under which the doorbell rings when a unit was released."""

LEAVE_SECONDS = 2.0

TERMINATION_MS = 500
"""The time to wait for the end of a terminated session, so that its units can be claimed at once."""

UnitKey: TypeAlias = tuple[str, int]
"""The name of a unit, and its generation."""


@dataclass(frozen=True)
class Unit:
    """A unit of work as its row describes it.

    table: of a projection's rows; empty for a saga, a reactor and the schedules. building: it is a generation that
    clients do not see yet. fence: the fencing token; a commit with an older one is refused. owner: the id of the worker
    that claimed it last.
    """

    name: str
    generation: int
    table: str
    position: int
    fence: int
    fingerprint: str
    building: bool
    owner: UUID | None

    @classmethod
    def of(cls, row: asyncpg.Record) -> Unit:
        """Return the unit of a row of the queries `units` and `claim`."""
        return cls(
            name=row["name"],
            generation=row["generation"],
            table=row["table_name"],
            position=row["position"],
            fence=row["fence"],
            fingerprint=row["fingerprint"],
            building=row["building"],
            owner=row["owner"],
        )

    @property
    def key(self) -> UnitKey:
        """The identity of the unit."""
        return self.name, self.generation

    @property
    def task(self) -> str:
        """The name of the task that runs the unit, as logs and readiness show it."""
        if not self.table:
            return self.name  # "saga Transfer" says already what it is
        return f"building {self.name} {self.generation}" if self.building else f"projection {self.name}"

    @property
    def code(self) -> str:
        """The name and fingerprint that a worker's code must declare to run the unit."""
        return _code(self.name, self.fingerprint)

    @property
    def leased(self) -> Generation:
        """The generation with the fencing token of this lease."""
        return Generation(self.generation, self.table, self.position, self.fence, self.fingerprint)


def assign(units: Sequence[Unit], workers: Mapping[UUID, Collection[str]]) -> dict[UnitKey, UUID]:
    """Return the worker of each unit. workers: the live workers by id, with the code that each declares.

    The units are spread evenly: the numbers of units of two workers that can run them differ by one at most. A unit
    keeps its owner unless that would break this rule. A unit that no worker's code can run is not in the result.
    """
    able = {unit.key: [worker for worker, codes in workers.items() if unit.code in codes] for unit in units}
    assigned = {unit.key: unit.owner for unit in units if unit.owner is not None and unit.owner in able[unit.key]}
    load = Counter(assigned.values())
    for key, candidates in able.items():
        if key not in assigned and candidates:
            assigned[key] = min(candidates, key=lambda worker: (load[worker], worker))
            load[assigned[key]] += 1
    moved = True
    while moved:
        moved = False
        for key, holder in assigned.items():
            other = min(able[key], key=lambda worker: (load[worker], worker))
            if load[holder] > load[other] + 1:
                assigned[key], moved = other, True
                load[holder] -= 1
                load[other] += 1
    return assigned


async def end_stalled_sessions(connection: Connection, quiet: float) -> None:
    """Terminate the sessions of workers whose leases have expired and that still lock a unit's row.

    Such a worker's process was stopped in the middle of a transaction. quiet: seconds without a message from it.
    """
    for row in await connection.fetch(_SQL["end_stalled_sessions"], quiet, TERMINATION_MS):
        logger.warning(
            "terminated the database session %d, which locked %s: the lease of its worker has expired",
            *(row["pid"], row["name"]),
        )


class Leases:
    """The units of one worker process: `async with Leases(...)`. Leaving releases all of them at once.

    runs: the units that this code can run, by name, with the fingerprint of each. run_unit: runs a unit until it is
    cancelled, and returns if the unit was lost. lease: seconds without a heartbeat after which another worker may claim
    this worker's units.
    """

    def __init__(
        self,
        database: Database,
        runs: Mapping[str, str],
        positions: Positions,
        supervisor: Supervisor,
        *,
        run_unit: Callable[[Unit], Awaitable[None]],
        lease: float = 6.0,
    ) -> None:
        self.worker_id = uuid4()
        self._database = database
        self._runs = [_code(name, fingerprint) for name, fingerprint in runs.items()]
        self._positions = positions
        self._supervisor = supervisor
        self._run_unit = run_unit
        self._lease = lease
        self._held: dict[UnitKey, Unit] = {}

    @property
    def held(self) -> list[Unit]:
        """The units that this process runs now, each as it was claimed."""
        return list(self._held.values())

    async def __aenter__(self) -> Leases:
        self._supervisor.start("leases", self.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._supervisor.stop("leases")
        await self._supervisor.stop(*(unit.task for unit in self.held))
        self._held.clear()
        try:
            await self._supervisor.farewell(self._leave(), LEAVE_SECONDS)
        except FAILING as failure:
            logger.warning("the units could not be released (%r); their lease expires in %g s", failure, self._lease)

    async def run(self) -> None:
        """Renew the lease, release and claim units until cancelled. Runs under the supervisor."""
        # A connection outside the pool: a heartbeat must not queue behind queries.
        connection = await self._database.connect("leases")
        try:
            await connection.execute(_SQL["forget_workers"], timeout=self._lease)
            while True:
                rung = self._positions.known(LEASES)
                await self._renew(connection)
                self._supervisor.well("leases")
                await self._positions.moved(LEASES, rung, self._lease / 3)
        finally:
            connection.terminate()

    async def _renew(self, connection: asyncpg.Connection) -> None:
        """One round: the heartbeat, and what follows from the rows."""
        fetch = partial(connection.fetch, timeout=self._lease)
        await fetch(_SQL["heartbeat"], self.worker_id, node_name(), self._runs, self._lease)
        workers = {row["worker_id"]: frozenset(row["runs"]) for row in await fetch(_SQL["workers"])}
        units = {unit.key: unit for unit in map(Unit.of, await fetch(_SQL["units"]))}
        assigned = assign(list(units.values()), workers)
        await self._stop_lost(units)
        owned = [unit for unit in units.values() if unit.owner == self.worker_id]
        await self._release(connection, [unit for unit in owned if assigned.get(unit.key) != self.worker_id])
        wanted = [units[key] for key, worker in assigned.items() if worker == self.worker_id and key not in self._held]
        if any(unit.owner not in {None, *workers} for unit in wanted):
            await end_stalled_sessions(connection, self._lease / 2)
        await self._claim(connection, wanted)

    async def _stop_lost(self, units: Mapping[UnitKey, Unit]) -> None:
        """Stop the units that another worker claimed, or that changed from building to live."""
        for unit in self.held:
            now = units.get(unit.key)
            if now is None or (now.owner, now.fence, now.building) != (unit.owner, unit.fence, unit.building):
                await self._stop(unit)

    async def _release(self, connection: asyncpg.Connection, units: Sequence[Unit]) -> None:
        if not units:
            return
        for unit in units:
            await self._stop(unit)
        await connection.fetch(_SQL["release"], self.worker_id, *_keys(units), timeout=self._lease)

    async def _claim(self, connection: asyncpg.Connection, units: Sequence[Unit]) -> None:
        if not units:
            return
        fences = [unit.fence for unit in units]
        rows = await connection.fetch(_SQL["claim"], self.worker_id, *_keys(units), fences, timeout=self._lease)
        for unit in map(Unit.of, rows):
            self._held[unit.key] = unit
            self._supervisor.start(unit.task, partial(self._run_claimed, unit))

    async def _run_claimed(self, unit: Unit) -> None:
        await self._run_unit(unit)
        # The unit was lost or has changed its state: ring for the next round, which stops this task.
        self._positions.report(LEASES, self._positions.known(LEASES) + 1)
        await asyncio.Event().wait()

    async def _stop(self, unit: Unit) -> None:
        held = self._held.pop(unit.key, None)
        if held is not None:
            await self._supervisor.stop(held.task)

    async def _leave(self) -> None:
        connection = await self._database.connect("leases")
        try:
            await connection.fetch(_SQL["leave"], self.worker_id)
        finally:
            connection.terminate()


def _code(name: str, fingerprint: str) -> str:
    return f"{name} {fingerprint}"


def _keys(units: Sequence[Unit]) -> tuple[list[str], list[int]]:
    return [unit.name for unit in units], [unit.generation for unit in units]
