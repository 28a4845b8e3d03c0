"""What an operator asks first: where each projection stands, who keeps it, what is parked, and how the sagas are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from headwater import sql
from headwater.sagas import Count, Limits, counted

_SQL = sql.load(__file__)
_HEADINGS = ("PROJECTION", "GENERATION", "STATE", "POSITION", "LAG", "SINCE", "WORKER", "PARKED KEYS")
_SAGA_HEADINGS = ("SAGA", "RUNNING", "UNDOING", "PARKED", "STUCK")


@dataclass(frozen=True)
class ProjectionStatus:
    """A generation of a projection. state: `live` or `building`. lag: events of the log it has not looked at;
    lag_seconds: the age of the first of them. worker: who keeps it, None when nobody does. parked_keys: rows that stay
    behind, see `headwater dead-letters list`."""

    name: str
    generation: int
    state: str
    position: int
    lag: int
    lag_seconds: float
    worker: str | None
    parked_keys: int


@dataclass(frozen=True)
class WorkerStatus:
    """A process that keeps projections. name: host/pid. units: how many it has."""

    name: str
    started_at: datetime
    units: int


@dataclass(frozen=True)
class Status:
    """The whole. position: where the log ends."""

    position: int
    projections: Sequence[ProjectionStatus]
    workers: Sequence[WorkerStatus]
    sagas: Sequence[Count]

    def as_json(self) -> str:
        """One JSON object, fields as in the classes."""
        return msgspec.json.encode(asdict(self)).decode()

    def as_text(self) -> str:
        """Tables, for people: projections, sagas where there are any, workers."""
        projections = [
            (p.name, p.generation, p.state, p.position, p.lag, _age(p.lag_seconds), p.worker or "nobody", p.parked_keys)
            for p in self.projections
        ]
        sagas = [
            (each.saga, each.running, each.undoing, each.parked, "" if each.stuck is None else str(each.stuck))
            for each in self.sagas
        ]
        workers = [(w.name, w.units, w.started_at.strftime("%Y-%m-%d %H:%M:%S UTC")) for w in self.workers]
        return "\n".join(
            [
                f"The log ends at position {self.position}.",
                "",
                aligned(_HEADINGS, projections),
                "",
                *((aligned(_SAGA_HEADINGS, sagas), "") if sagas else ()),
                aligned(("WORKER", "PROJECTIONS", "STARTED"), workers) if workers else "No worker is running.",
            ]
        )


async def status(connection: asyncpg.Connection, limits: Limits) -> Status:
    """As it is at this moment. limits: of the app's sagas."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        return Status(
            await connection.fetchval(_SQL["head"]),
            [ProjectionStatus(*row) for row in await connection.fetch(_SQL["projections"])],
            [WorkerStatus(*row) for row in await connection.fetch(_SQL["workers"])],
            await counted(connection, limits),
        )


def _age(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))}" if seconds else ""


def aligned(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in plain text: numbers to the right, everything else to the left, two spaces between columns."""
    texts = [list(headings), *([str(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [bool(rows) and isinstance(value, int) for value in (rows[0] if rows else headings)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in texts
    )
