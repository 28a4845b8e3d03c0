"""Where each projection stands, as the database knows it, whichever process keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from headwater.postgres import queries
from headwater.postgres.database import Connection

_SQL = queries.load(__file__)


@dataclass(frozen=True)
class ProjectionStanding:
    """A generation of a projection. state: `live` or `building`. lag_events: events of the log that it has not passed;
    lag_seconds: the age of the oldest of them, 0 at the head. worker: who keeps it; None when nobody does. parked_keys:
    rows that stay behind, see `headwater dead-letters list`. differences: found by the last `headwater verify`; None
    when there was none. failure: why it is not built. hindrance: what its swap waits for. None: nothing is wrong."""

    name: str
    generation: int
    state: str
    position: int
    lag_events: int
    lag_seconds: float
    worker: str | None
    parked_keys: int
    differences: int | None
    failure: str | None
    hindrance: str | None


@dataclass(frozen=True)
class Standings:
    """The log's head, and every projection that is kept, live or being built."""

    head: int
    projections: Sequence[ProjectionStanding]

    def late(self, tolerance: float) -> list[str]:
        """The names of live projections that are behind by more seconds than that. One whose next generation is being
        built is waited for, not late: its code may be gone already."""
        built = {each.name for each in self.projections if each.state == "building" and each.failure is None}
        live = (each for each in self.projections if each.state == "live" and each.name not in built)
        return [each.name for each in live if each.lag_seconds > tolerance]


async def read_standings(connection: Connection | asyncpg.Pool) -> Standings:
    """One statement for all, of one moment."""
    rows = await connection.fetch(_SQL["standings"])
    standings = [
        ProjectionStanding(*(row[name] for name in ProjectionStanding.__dataclass_fields__))
        for row in rows
        if row["name"] is not None
    ]
    return Standings(rows[0]["head"], standings)


async def recorded_at(pool: asyncpg.Pool, positions: Iterable[int]) -> dict[int, datetime]:
    """When the events at some positions were recorded."""
    return {row["position"]: row["recorded_at"] for row in await pool.fetch(_SQL["recorded"], list(positions))}
