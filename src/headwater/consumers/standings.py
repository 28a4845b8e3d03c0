"""The standing of each projection, saga and reactor, read from the database: the same from every process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime

import asyncpg

from headwater.postgres import queries
from headwater.postgres.database import Connection

_SQL = queries.load(__file__)


@dataclass(frozen=True)
class ProjectionStanding:
    """A generation of a projection, or a saga or reactor, which have one generation.

    state: `live` or `building`.
    lag_events: the number of events after its checkpoint.
    lag_seconds: the age of the oldest of them; 0 at the head.
    worker: the name of the worker that runs it; None when there is none.
    parked_keys: keys whose events wait; see `headwater dead-letters list`.
    differences: the result of the last `headwater verify`; None before the first.
    parked_failure: the error of the parked event that comes first in the log; None if none has failed.
    failure: why it cannot be built, or why it halts before an event; None if it goes on.
    hindrance: what its swap waits for; None if it waits for nothing.
    """

    name: str
    generation: int
    state: str
    position: int
    lag_events: int
    lag_seconds: float
    worker: str | None
    parked_keys: int
    parked_failure: str | None
    differences: int | None
    failure: str | None
    hindrance: str | None


@dataclass(frozen=True)
class Standings:
    """The head of the log, and every generation that is live or being built."""

    head: int
    projections: Sequence[ProjectionStanding]

    def late(self, tolerance: float) -> list[str]:
        """Return the names of live projections that are more than `tolerance` seconds behind.

        A projection whose next generation is being built is not late: no worker may have its code any more.
        """
        built = {each.name for each in self.projections if each.state == "building" and each.failure is None}
        live = (each for each in self.projections if each.state == "live" and each.name not in built)
        return [each.name for each in live if each.lag_seconds > tolerance]

    def failing(self, *, parked: bool) -> dict[str, str]:
        """Return why live units halt before an event, by name; with `parked`, also those that have parked keys."""
        live = [each for each in self.projections if each.state == "live"]
        halted = {each.name: f"it halts: {each.failure}" for each in live if each.failure is not None}
        if not parked:
            return halted
        return {each.name: parked_in_words(each) for each in live if each.parked_keys} | halted


def parked_in_words(standing: ProjectionStanding) -> str:
    """Return how many keys are parked, and why: `2 keys are parked, the first one by ValueError: ...`."""
    keys = "1 key is parked" if standing.parked_keys == 1 else f"{standing.parked_keys:,} keys are parked"
    return keys if standing.parked_failure is None else f"{keys}, the first one by {standing.parked_failure}"


async def read_standings(connection: Connection | asyncpg.Pool) -> Standings:
    """Read all standings in one statement, of one moment."""
    rows = await connection.fetch(_SQL["standings"])
    return Standings(rows[0]["head"], [_standing(row) for row in rows if row["name"] is not None])


def _standing(row: asyncpg.Record) -> ProjectionStanding:
    return ProjectionStanding(**{field.name: row[field.name] for field in fields(ProjectionStanding)})


async def recorded_at(pool: asyncpg.Pool, positions: Iterable[int]) -> dict[int, datetime]:
    """Return when the events at some positions were recorded, by position."""
    return {row["position"]: row["recorded_at"] for row in await pool.fetch(_SQL["recorded"], list(positions))}
