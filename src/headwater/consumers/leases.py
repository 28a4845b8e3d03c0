"""Leases: any number of processes share the projections, and none is kept by two.

The unit is a generation of a projection. A process has one lease, and one heartbeat every third of it, however many
units it keeps; a unit is free when nobody owns it, or when its owner's lease has run out. Taking one raises its fence,
and every commit checks the fence: a process that slept over its lease and wakes up writes nothing. Only the database's
clock counts.

    a look, every third of a lease or when rung for:
      beat -> stop what is another's -> give back what is due to another -> take what is free and due to me

What is due to whom is worked out by each process from the same rows (`shares`), so nobody leads. Two that look at the
same moment may think differently; the guarded UPDATE decides, and the next look puts it right.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
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
from headwater.postgres import queries
from headwater.postgres.database import FAILING, Connection, Database
from headwater.supervisor import Supervisor

logger = logging.getLogger(__name__)
_SQL = queries.load(__file__)

LEASES = "leases"
"""What rings among the positions when something was given back."""

LEAVE_SECONDS = 2.0

GONE_MS = 500
"""How long to wait for a session to be gone that is ended, so that what it held can be taken at once."""

Place: TypeAlias = tuple[str, int]
"""A projection's name, and a generation of it."""


@dataclass(frozen=True)
class Unit:
    """What is leased: a generation of a projection. building: it is made beside the live one, unseen by clients.
    fence: of this lease; a commit with another is refused. owner: the worker that has it."""

    name: str
    generation: int
    table: str
    position: int
    fence: int
    fingerprint: str
    building: bool
    owner: UUID | None

    @property
    def place(self) -> Place:
        """Which unit it is, whoever has it."""
        return self.name, self.generation

    @property
    def task(self) -> str:
        """The name of the task that keeps it, for the operator."""
        if not self.table:
            return self.name  # a saga or its like, which says what it is
        return f"building {self.name} {self.generation}" if self.building else f"projection {self.name}"

    @property
    def code(self) -> str:
        """What a worker's code must declare to keep it."""
        return _code(self.name, self.fingerprint)

    @property
    def leased(self) -> Generation:
        """The generation with the fencing token of this lease."""
        return Generation(self.generation, self.table, self.position, self.fence, self.fingerprint)


def shares(units: Sequence[Unit], workers: Mapping[UUID, Collection[str]]) -> dict[Place, UUID]:
    """Which worker each unit is due to: workers by id, with the code that each can keep, all of them alive.

    Nobody has more than one more than another who could keep it; what is well where it is stays there. A unit that no
    worker's code can keep is due to nobody.
    """
    able = {unit.place: [worker for worker, codes in workers.items() if unit.code in codes] for unit in units}
    due = {unit.place: unit.owner for unit in units if unit.owner is not None and unit.owner in able[unit.place]}
    load = Counter(due.values())
    for place, candidates in able.items():
        if place not in due and candidates:
            due[place] = min(candidates, key=lambda worker: (load[worker], worker))
            load[due[place]] += 1
    moved = True
    while moved:
        moved = False
        for place, holder in due.items():
            other = min(able[place], key=lambda worker: (load[worker], worker))
            if load[holder] > load[other] + 1:
                due[place], moved = other, True
                load[holder] -= 1
                load[other] += 1
    return due


async def cut_off(connection: Connection, quiet: float) -> None:
    """End the sessions that keep units from being taken, of workers whose leases are over: those whose process was
    stopped in the middle of a transaction, and of whom PostgreSQL has heard nothing for so many seconds."""
    for name, pid, _ in await connection.fetch(_SQL["cut_off"], quiet, GONE_MS):
        logger.warning("the session %d is ended: it held %s, and its worker says nothing more", pid, name)


class Leases:
    """One worker process's part of the units: `async with Leases(...)`. Leaving gives everything back at once.

    runs: what this code can keep, with the fingerprint of each. run_unit: keeps a unit until it is cancelled, and
    returns when the unit is no longer its own. lease: seconds until another may take over what this process has, when
    it says nothing more.
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
        self._runs = [_code(name, made) for name, made in runs.items()]
        self._positions = positions
        self._supervisor = supervisor
        self._run_unit = run_unit
        self._lease = lease
        self._held: dict[Place, Unit] = {}

    @property
    def held(self) -> list[Unit]:
        """What this process keeps now, each as it was leased."""
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
            logger.warning("the leases could not be given back (%r); they run out in %g s", failure, self._lease)

    async def run(self) -> None:
        """Beat and look until cancelled. Runs under the supervisor."""
        # Its own connection: a heartbeat must not queue behind queries.
        connection = await self._database.connect("leases")
        try:
            await connection.execute(_SQL["forget"], timeout=self._lease)
            while True:
                rung = self._positions.known(LEASES)
                await self._look(connection)
                self._supervisor.well("leases")
                await self._positions.moved(LEASES, rung, self._lease / 3)
        finally:
            connection.terminate()

    async def _look(self, connection: asyncpg.Connection) -> None:
        fetch = partial(connection.fetch, timeout=self._lease)
        await fetch(_SQL["beat"], self.worker_id, process_name(), self._runs, self._lease)
        workers = {row["worker_id"]: frozenset(row["runs"]) for row in await fetch(_SQL["workers"])}
        units = {unit.place: unit for unit in [Unit(*row) for row in await fetch(_SQL["units"])]}
        due = shares(list(units.values()), workers)
        await self._stop_lost(units)
        mine = [unit for unit in units.values() if unit.owner == self.worker_id]
        await self._give(connection, [unit for unit in mine if due.get(unit.place) != self.worker_id])
        wanted = [units[place] for place, worker in due.items() if worker == self.worker_id and place not in self._held]
        if any(unit.owner not in {None, *workers} for unit in wanted):
            await cut_off(connection, self._lease / 2)
        await self._take(connection, wanted)

    async def _stop_lost(self, units: Mapping[Place, Unit]) -> None:
        """What another has taken, or what is something else now."""
        for unit in self.held:
            now = units.get(unit.place)
            if now is None or (now.owner, now.fence, now.building) != (unit.owner, unit.fence, unit.building):
                await self._stop(unit)

    async def _give(self, connection: asyncpg.Connection, units: Sequence[Unit]) -> None:
        if not units:
            return
        for unit in units:
            await self._stop(unit)
        await connection.fetch(_SQL["give"], self.worker_id, *_places(units), timeout=self._lease)

    async def _take(self, connection: asyncpg.Connection, units: Sequence[Unit]) -> None:
        if not units:
            return
        fences = [unit.fence for unit in units]
        rows = await connection.fetch(_SQL["take"], self.worker_id, *_places(units), fences, timeout=self._lease)
        for unit in [Unit(*row) for row in rows]:
            self._held[unit.place] = unit
            self._supervisor.start(unit.task, partial(self._keep, unit))

    async def _keep(self, unit: Unit) -> None:
        await self._run_unit(unit)
        # It is another's, or something else now: the next look, which is now, stops this task.
        self._positions.report(LEASES, self._positions.known(LEASES) + 1)
        await asyncio.Event().wait()

    async def _stop(self, unit: Unit) -> None:
        held = self._held.pop(unit.place, None)
        if held is not None:
            await self._supervisor.stop(held.task)

    async def _leave(self) -> None:
        connection = await self._database.connect("leases")
        try:
            await connection.fetch(_SQL["leave"], self.worker_id)
        finally:
            connection.terminate()


def _code(name: str, made: str) -> str:
    return f"{name} {made}"


def _places(units: Sequence[Unit]) -> tuple[list[str], list[int]]:
    return [unit.name for unit in units], [unit.generation for unit in units]


def process_name() -> str:
    """This process, for people: host/pid."""
    return f"{socket.gethostname()}/{os.getpid()}"
