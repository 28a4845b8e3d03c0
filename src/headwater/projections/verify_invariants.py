"""Verify, for invariants: checks the events of the log against what the app declares about them.

All invariants share one pass over the log. An invariant with too many keys for the memory needs further passes, each
for a range of keys. The log up to a position never changes, so that this runs beside everything else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
import msgspec

from headwater.domain.invariant import AnyInvariant, Violation
from headwater.domain.messages import Event, Recorded
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import Connection, Database, take_times_by_number
from headwater.projections.key_range import KeyRange
from headwater.projections.verify_report import LISTED, FoundViolation, InvariantReport

_SQL = queries.load(__file__)

STATES_AT_ONCE = 200_000
"""Keys of an invariant in memory, at most twice as many while a range is cut."""


class KeyState(msgspec.Struct):
    """The result of an invariant for the last event of a key. found: the violation, after which the key is skipped."""

    state: Any = None
    found: FoundViolation | None = None


class InvariantStates:
    """The states of one invariant during a pass over the log, for the keys after the number
    `after`. counts: this pass counts events."""

    def __init__(self, invariant: AnyInvariant, after: int | None, most: int, report: InvariantReport) -> None:
        self.invariant = invariant
        self.range = KeyRange(after, None, most, KeyState)
        self.report = report
        self._counts = after is None

    def take(self, event: Recorded[Event]) -> None:
        """Check one event. An error of the app's code counts as a violation."""
        self.report.events += self._counts
        try:
            key, failed = self.invariant.key_of(event), None
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            key, failed = event.stream_id, f"`key` raised {type(error).__name__}: {error}"
        kept = self.range.row(key.int)
        if kept is None or kept.found is not None:
            return
        sentence = failed or self._step(kept, event)
        if sentence is not None:
            kept.found = FoundViolation(key, event.position, sentence)
        elif kept.state is None:
            del self.range.folded[key.int]

    def _step(self, kept: KeyState, event: Recorded[Event]) -> str | None:
        try:
            kept.state = self.invariant.holds(kept.state, event)
        except Violation as violation:
            return str(violation)
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises
            return f"`holds` raised {type(error).__name__}: {error}"
        return None

    def rest(self) -> InvariantStates | None:
        """Report the violations of the pass. Returns the states of the next pass; None if this was the last one."""
        self.report.add([each.found for each in self.range.folded.values() if each.found is not None])
        if self.range.upto is None:
            return None
        return InvariantStates(self.invariant, self.range.upto, self.range.most, self.report)


async def verify_invariants(
    database: Database,
    log: Log,
    invariants: Sequence[AnyInvariant],
    *,
    states: int = STATES_AT_ONCE,
    listed: int = LISTED,
) -> list[InvariantReport]:
    """Check the invariants up to the end of the log, and record the result. states: see STATES_AT_ONCE."""
    with ExitStack() as opened:
        connection = await database.connect("verifying invariants", session=True)
        opened.callback(connection.terminate)
        await take_times_by_number(connection)
        upto = await log.head()
        reports = [InvariantReport(each.name, upto, listed=listed) for each in invariants]
        passing = [
            InvariantStates(each, None, states, report) for each, report in zip(invariants, reports, strict=True)
        ]
        while passing:
            await _pass(connection, log, upto, passing)
            passing = [rest for each in passing if (rest := each.rest()) is not None]
        for report in reports:
            await connection.execute(_SQL["checked"], report.name, report.position, report.found)
        return reports


async def _pass(connection: asyncpg.Connection, log: Log, upto: int, passing: Sequence[InvariantStates]) -> None:
    takers: dict[type[Event], list[InvariantStates]] = {}
    for each in passing:
        for event_type in each.invariant.events:
            takers.setdefault(event_type, []).append(each)
    async for _, events in log.stream(connection, 0, upto, types=log.stored_names(takers)):
        for event in events:
            for each in takers.get(type(event.data), ()):
                each.take(event)


@dataclass(frozen=True)
class CheckedInvariant:
    """The last result of an invariant: the keys whose events contradict it, of the events up to a position."""

    name: str
    position: int
    violations: int
    checked_at: datetime


async def checked_invariants(connection: Connection | asyncpg.Pool) -> list[CheckedInvariant]:
    """Return the last result of each invariant that was ever checked, by name."""
    return [CheckedInvariant(**row) for row in await connection.fetch(_SQL["results"])]


async def forget_others(connection: Connection | asyncpg.Pool, declared: Collection[str]) -> None:
    """Remove the results of invariants that the app does not declare any more."""
    await connection.execute(_SQL["forget_others"], list(declared))
