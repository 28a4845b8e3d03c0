"""What an operator asks first: where each projection stands, who keeps it, what is parked, and how the sagas are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import msgspec

from headwater import sql
from headwater.sagas import Count, Limits, counted
from headwater.standings import ProjectionStanding, read_standings
from headwater.telemetry import Pace
from headwater.terminal import aligned, printable

_SQL = sql.load(__file__)
_HEADINGS = (
    *("PROJECTION", "GENERATION", "STATE", "POSITION", "LAG", "OLDEST", "WORKER"),
    *("EVENTS/S", "BATCH", "RETRIES", "PARKED KEYS"),
)
APPENDED_SECONDS = 10
"""What the log's rate is worked out over."""

_SAGA_HEADINGS = ("SAGA", "RUNNING", "UNDOING", "PARKED", "STUCK")


@dataclass(frozen=True)
class WorkerStatus:
    """A process that keeps projections. name: host/pid. units: how many it has. paces: of what it keeps, by name, as it
    told with its last heartbeat."""

    name: str
    started_at: datetime
    units: int
    paces: Mapping[str, Pace]


@dataclass(frozen=True)
class Status:
    """The whole. position: where the log ends. appended_per_second: events, over the last ten seconds."""

    position: int
    appended_per_second: float
    projections: Sequence[ProjectionStanding]
    workers: Sequence[WorkerStatus]
    sagas: Sequence[Count]

    def as_json(self) -> str:
        """One JSON object, fields as in the classes."""
        return msgspec.json.encode(self).decode()

    def as_text(self) -> str:
        """Tables, for people: projections with what is wrong with them, sagas where there are any, workers."""
        projections = [
            (
                *(each.name, each.generation, each.state, each.position, each.lag_events, _age(each.lag_seconds)),
                each.worker or "nobody",
                *self._pace(each),
                each.parked_keys,
            )
            for each in self.projections
        ]
        troubles = [trouble for each in self.projections for trouble in _troubles(each)]
        sagas = [
            (each.saga, each.running, each.undoing, each.parked, "" if each.stuck is None else str(each.stuck))
            for each in self.sagas
        ]
        workers = [(w.name, w.units, w.started_at.strftime("%Y-%m-%d %H:%M:%S UTC")) for w in self.workers]
        return "\n".join(
            [
                f"The log ends at position {self.position}. In the last {APPENDED_SECONDS} seconds "
                f"{self.appended_per_second:,.1f} events/s were appended.",
                "",
                aligned(_HEADINGS, projections),
                "",
                *((*troubles, "") if troubles else ()),
                *((aligned(_SAGA_HEADINGS, sagas), "") if sagas else ()),
                aligned(("WORKER", "PROJECTIONS", "STARTED"), workers) if workers else "No worker is running.",
            ]
        )

    def _pace(self, standing: ProjectionStanding) -> tuple[str, str, str]:
        """As its worker has told; nothing of what it has not begun to keep."""
        paces = next((each.paces for each in self.workers if each.name == standing.worker), {})
        pace = None if standing.state == "building" else paces.get(standing.name)
        if pace is None:
            return "", "", ""
        return f"{pace.events_per_second:,.1f}", f"{pace.events_per_batch:,.1f}", f"{pace.retries:,}"


async def status(connection: asyncpg.Connection, limits: Limits) -> Status:
    """As it is at this moment. limits: of the app's sagas."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        standings = await read_standings(connection)
        appended = await connection.fetchval(_SQL["appended"], APPENDED_SECONDS)
        return Status(
            standings.head,
            (appended or 0) / APPENDED_SECONDS,
            standings.projections,
            [_worker(row) for row in await connection.fetch(_SQL["workers"])],
            await counted(connection, limits),
        )


def _worker(row: asyncpg.Record) -> WorkerStatus:
    name, started_at, units, paces = row
    return WorkerStatus(name, started_at, units, msgspec.json.decode(paces, type=dict[str, Pace]))


def _troubles(standing: ProjectionStanding) -> Iterator[str]:
    """What is wrong with a generation, in sentences."""
    name = f"{standing.name} {standing.generation}"
    if standing.failure is not None:
        yield printable(f"{name} is not built: {standing.failure}")
    if standing.hindrance is not None:
        yield printable(f"{name} is built, but cannot take its place yet: {standing.hindrance}")
    if standing.differences:
        rows = "row differs" if standing.differences == 1 else "rows differ"
        yield f"{name}: {standing.differences:,} {rows} from the log, as the last `headwater verify` found."


def _age(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))}" if seconds else ""
