"""The report of `headwater status`: projections, sagas, processes and appends, as JSON or as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg
import msgspec

from headwater.cli.terminal import aligned, printable
from headwater.consumers.scheduler import FailingSchedule, failing
from headwater.consumers.standings import ProjectionStanding, parked_in_words, read_standings
from headwater.eventstore.log import Verdict
from headwater.postgres import queries
from headwater.projections.verify_invariants import CheckedInvariant, checked_invariants
from headwater.sagas.operations import Limits, SagaCount, counted
from headwater.server.self_report import ProcessReport, Spread

_SQL = queries.load(__file__)
_HEADINGS = (
    *("PROJECTION", "GENERATION", "STATE", "POSITION", "LAG", "OLDEST", "WORKER"),
    *("EVENTS/S", "BATCH", "TO ROW", "99 %", "RETRIES", "PARKED KEYS"),
)
_SAGA_HEADINGS = ("SAGA", "RUNNING", "UNDOING", "PARKED", "STUCK")
_PROCESS_HEADINGS = ("PROCESS", "SERVES", "KEEPS", "READY", "STARTED", "TO CLIENT", "99 %")
_VERDICTS = tuple(verdict.name.lower() for verdict in Verdict)
_APPEND_HEADINGS = ("APPENDS OF", "COMMANDS EACH", *(verdict.upper() for verdict in _VERDICTS))

LATE_SECONDS = 30
"""The lag from which on a projection is late. docs/metrics.md has an alert for the same."""

APPENDED_SECONDS = 10
"""The time over which the rate of the log is measured."""


@dataclass(frozen=True)
class ProcessStatus:
    """A running process.

    name: host/pid. serves: it handles mutations and queries. units: the number of units that it runs; None when it is
    not a worker. report: its last report about itself.
    """

    name: str
    started_at: datetime
    serves: bool
    units: int | None
    report: ProcessReport


@dataclass(frozen=True)
class Status:
    """The whole report. position: the head of the log. appended_per_second: events, over the last ten seconds."""

    position: int
    appended_per_second: float
    projections: Sequence[ProjectionStanding]
    processes: Sequence[ProcessStatus]
    sagas: Sequence[SagaCount]
    invariants: Sequence[CheckedInvariant]
    failing_schedules: Sequence[FailingSchedule] = ()

    def as_json(self) -> str:
        """Return one JSON object with the fields of the classes."""
        return msgspec.json.encode(self).decode()

    def as_text(self) -> str:
        """Return tables of projections and their troubles, sagas, processes and appends, without the empty ones."""
        parts = [
            f"The log ends at position {self.position}. In the last {APPENDED_SECONDS} seconds "
            f"{self.appended_per_second:,.1f} events/s were appended.",
            aligned(_HEADINGS, [self._projection(each) for each in self.projections]),
            "\n".join(self._troubles()),
            _table(_SAGA_HEADINGS, [_saga(each) for each in self.sagas]),
            _table(_PROCESS_HEADINGS, [_process(each) for each in self.processes]),
            _table(_APPEND_HEADINGS, [row for each in self.processes for row in _appends(each)]),
        ]
        return "\n\n".join(part for part in parts if part)

    def _projection(self, standing: ProjectionStanding) -> tuple[object, ...]:
        return (
            *(standing.name, standing.generation, standing.state, standing.position, standing.lag_events),
            *(_age(standing.lag_seconds), standing.worker or "none", *self._pace(standing), standing.parked_keys),
        )

    def _pace(self, standing: ProjectionStanding) -> tuple[str, ...]:
        """Return the pace from its worker's report; empty cells before the first batch."""
        reported = (each.report.paces.get(standing.name) for each in self.processes if each.name == standing.worker)
        pace = next(filter(None, reported), None)
        if pace is None or standing.state == "building":
            return ("",) * 5
        speed = f"{pace.events_per_second:,.1f}", f"{pace.events_per_batch:,.1f}"
        return *speed, *_spread(pace.to_row), f"{pace.retries:,}"

    def _troubles(self) -> Iterator[str]:
        for each in self.projections:
            yield from _troubles(each)
        for schedule in self.failing_schedules:
            yield printable(f"Schedule {schedule.name} failed at {_time(schedule.fired_at)}: {schedule.failure}")
        for checked in self.invariants:
            yield from _violations(checked)
        for process in self.processes:
            yield from _process_troubles(process)
        if all(each.units is None for each in self.processes):
            yield "No worker is running."


async def status(connection: asyncpg.Connection, limits: Limits) -> Status:
    """Read the report of this moment. limits: of the app's sagas."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        standings = await read_standings(connection)
        appended = await connection.fetchval(_SQL["appended"], APPENDED_SECONDS)
        return Status(
            standings.head,
            (appended or 0) / APPENDED_SECONDS,
            standings.projections,
            [_process_status(row) for row in await connection.fetch(_SQL["processes"])],
            await counted(connection, limits),
            await checked_invariants(connection),
            await failing(connection),
        )


def _process_status(row: asyncpg.Record) -> ProcessStatus:
    report = msgspec.json.decode(row["report"], type=ProcessReport)
    units = row["units"] if row["works"] else None
    return ProcessStatus(row["name"], row["started_at"], row["serves"], units, report)


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; an empty text when it has no rows."""
    return aligned(headings, rows) if rows else ""


def _saga(count: SagaCount) -> tuple[object, ...]:
    stuck = "" if count.stuck is None else str(count.stuck)
    return count.saga, count.running, count.undoing, count.parked, stuck


def _process(process: ProcessStatus) -> tuple[object, ...]:
    serves, keeps = "yes" if process.serves else "no", "" if process.units is None else f"{process.units}"
    ready = "yes" if process.report.ready else "no"
    return process.name, serves, keeps, ready, _time(process.started_at), *_spread(process.report.to_client)


def _process_troubles(process: ProcessStatus) -> Iterator[str]:
    """Yield a sentence for each trouble that a process has reported."""
    for each in process.report.troubles:
        what = "is not ready" if each.unready else "is ready, but has a trouble"
        yield printable(f"{process.name} {what} since {_time(each.since)}: {each.name}: {each.why}")


def _appends(process: ProcessStatus) -> Iterator[tuple[object, ...]]:
    appends = process.report.appends
    if appends is not None:
        verdicts = (f"{appends.verdicts.get(verdict, 0):,}" for verdict in _VERDICTS)
        yield process.name, f"{appends.commands_per_append:,.1f}", *verdicts


def _spread(spread: Spread | None) -> tuple[str, str]:
    return ("", "") if spread is None else (_duration(spread.median), _duration(spread.p99))


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"


def _troubles(standing: ProjectionStanding) -> Iterator[str]:
    """Yield a sentence for each thing that is wrong with a generation."""
    name = f"{standing.name} {standing.generation}"
    if standing.state == "live" and standing.lag_seconds > LATE_SECONDS:
        keeper = "no worker runs it" if standing.worker is None else f"{standing.worker} runs it"
        yield f"{name} is {_age(standing.lag_seconds)} behind the log; {keeper}."
    if standing.failure is not None:
        verb = "halts before an event" if standing.state == "live" else "is not built"
        yield printable(f"{name} {verb}: {standing.failure}")
    if standing.parked_keys:
        yield printable(f"{name}: {parked_in_words(standing)}; see `headwater dead-letters list`.")
    if standing.hindrance is not None:
        yield printable(f"{name} is built, but cannot take its place yet: {standing.hindrance}")
    if standing.differences:
        rows = "row differs" if standing.differences == 1 else "rows differ"
        yield f"{name}: {standing.differences:,} {rows} from the log, as the last `headwater verify` found."


def _violations(checked: CheckedInvariant) -> Iterator[str]:
    if checked.violations:
        keys = "key" if checked.violations == 1 else "keys"
        events = f"the events of {checked.violations:,} {keys} contradict it"
        yield f"Invariant {checked.name}: {events}, as the last `headwater verify` found."


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _age(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))}" if seconds else ""
