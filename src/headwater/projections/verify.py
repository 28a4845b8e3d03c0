"""Verify: fold rows again from the log, and compare them with what is stored, at one position.

The rows and the position are read in one REPEATABLE READ transaction. What the log holds up to that position never
changes, so it is read on another connection, meanwhile or afterwards.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg

from headwater.consumers.checkpoint import Generation
from headwater.domain.fields import Field, Kind
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_fold import Breath, fold_of
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import Database, take_times_by_number
from headwater.projections import row_events
from headwater.projections.generations import fingerprint
from headwater.projections.row_codec import writer_of
from headwater.projections.row_statements import select_sql
from headwater.projections.tables import SCHEMA

_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

ROWS_AT_ONCE = 200_000
"""Rows that are held in memory as stored, and twice as many as folded; more are taken in ranges of keys, with a pass
each. Of rows that were removed the table says nothing: a range that turns out to have too many keys is cut."""

LISTED = 100
"""Differences that are kept and printed, at most; all are counted."""

FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)


class NotVerifiable(HeadwaterError):
    """The rows were made by another version of this code: a fold of today says nothing of them. Or its route says of
    an event not which row it changes."""


@dataclass(frozen=True)
class Difference:
    """What a row is, and what the log says. column: `row` when there should be one and is none, or the other way round;
    `fold` when the fold raised, or gave what cannot be stored; `history` when it is kept of other events."""

    key: UUID
    column: str
    stored: object
    folded: object

    def __str__(self) -> str:
        return f"{self.key}  {self.column}: stored {self.stored!s}, folded {self.folded!s}"


@dataclass
class Report:
    """What was compared, at which position. parked: keys with dead letters, whose rows stay behind. found: how many
    differences there are; differences: the first of them."""

    name: str
    generation: int
    position: int
    checked: int = 0
    parked: int = 0
    found: int = 0
    differences: list[Difference] = field(default_factory=list)

    def add(self, differences: list[Difference]) -> None:
        """Count them, and keep as many as are printed: every row of a large table may differ."""
        self.found += len(differences)
        self.differences += differences[: LISTED - len(self.differences)]

    def lines(self) -> list[str]:
        """For a person: a line of counts, then the differences, so many at most."""
        parked = f", {self.parked:,} parked" if self.parked else ""
        found = _counted(self.found, "difference") if self.found else "no difference"
        counts = f"{self.name}: {_counted(self.checked, 'row')} compared at position {self.position:,}{parked}: {found}"
        more = self.found - len(self.differences)
        rest = [f"  and {more:,} more"] if more else []
        return [counts, *(f"  {each}" for each in self.differences), *rest]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


@dataclass(slots=True)
class _Folded:
    """A row as the log says. failed: what the fold raised, after which nothing is known of it. events: how many it is
    folded from; places: what their positions add up to."""

    model: Any = None
    position: int = 0
    failed: str | None = None
    events: int = 0
    places: int = 0


class _Range:
    """Rows of the keys from low to high, as the log says. When there are more than twice as many as there should be,
    the upper ones are left for another pass, and `high` says so; of those that stay nothing is lost."""

    def __init__(self, low: UUID, high: UUID, rows: int) -> None:
        self.folded: dict[int, _Folded] = {}
        self._lowest, self._highest = low.int, high.int
        self._rows = rows

    @property
    def high(self) -> UUID:
        return UUID(int=self._highest)

    def has(self, number: int) -> bool:
        """Whether a key is in it, by its number."""
        return self._lowest <= number <= self._highest

    def row(self, number: int) -> _Folded | None:
        """What is folded of a key so far; None when it is not in the range, or not any more."""
        row = self.folded.get(number)
        if row is None and self.has(number):
            row = self.folded[number] = _Folded()
            if len(self.folded) > 2 * self._rows:
                self._cut()
                row = self.folded.get(number)
        return row

    def _cut(self) -> None:
        numbers = sorted(self.folded)
        self._highest = numbers[self._rows - 1]
        for number in numbers[self._rows :]:
            del self.folded[number]


class Verifier(Generic[M]):
    """Compares the rows of one read model with the log. by_stream: whether a row's key is the id of the stream that all
    its events are in."""

    def __init__(self, log: Log, view: View[M], *, by_stream: bool = False, rows: int = ROWS_AT_ONCE) -> None:
        self._log = log
        self._view = view
        self._by_stream = by_stream
        self._at_once = rows
        self._types = log.stored_names(view.events)
        self._route = {event: view.route_of(event) for event in view.events}
        self._fold = fold_of(view)
        self._columns = [(each, writer_of(each)) for each in view.fields]

    async def live(self, database: Database, sample: int | None) -> Report:
        """Verify what clients read: so many keys by chance, or all (None).

        Raises:
            NotVerifiable: the rows were made by another version of this code.
        """
        with ExitStack() as opened:
            rows = await database.connect(f"verifying {self._view.name}")
            opened.callback(rows.terminate)
            log = await database.connect(f"verifying {self._view.name}, log")
            opened.callback(log.terminate)
            for each in (rows, log):
                await take_times_by_number(each)
            async with rows.transaction(isolation="repeatable_read", readonly=True):
                standing = await self._standing(rows)
                report = await (
                    self.all(rows, log, standing) if sample is None else self.sample(rows, log, standing, sample)
                )
            await rows.execute(_SQL["verified"], report.name, report.generation, report.found)
            return report

    async def _standing(self, connection: asyncpg.Connection) -> Generation:
        row = await connection.fetchrow(_SQL["standing"], self._view.name)
        if row is None or row["fingerprint"] != fingerprint(self._view):
            raise NotVerifiable(
                f"{self._view.name} is made by another version of this code than the one that runs here; verify it "
                "with that one, or when the next generation is live"
            )
        return Generation(*row)

    async def sample(
        self, rows: asyncpg.Connection, log: asyncpg.Connection, standing: Generation, count: int
    ) -> Report:
        """Some keys that have a row, and some that the log speaks of, which may have none."""
        report = Report(self._view.name, standing.number, standing.position)
        keys = await self._some_keys(rows, standing, count)
        if keys:
            folded = await self._fold_some(log, standing.position, keys)
            await self._compare(rows, report, standing, folded, "= any($1::uuid[])", list(keys.values()))
        return report

    async def all(self, rows: asyncpg.Connection, log: asyncpg.Connection, standing: Generation) -> Report:
        """Every key, in as many passes over the log as its rows need memory."""
        report = Report(self._view.name, standing.number, standing.position)
        ranges = await self._ranges(rows, standing)
        while ranges:
            low, high = ranges.pop()
            part = _Range(low, high, self._at_once)
            await self._fold_log(log, standing.position, part.has, part.row)
            if part.high < high:
                ranges.append((UUID(int=part.high.int + 1), high))
            await self._compare(rows, report, standing, part.folded, "between $1 and $2", low, part.high)
        return report

    # ----------------------------------------------------------------------------------------------- what is stored

    async def _ranges(self, connection: asyncpg.Connection, standing: Generation) -> list[tuple[UUID, UUID]]:
        """Ranges of keys with so many rows each. Together they hold every key, also those without a row."""
        key, table = f'"{self._view.key}"', f'{SCHEMA}."{standing.table}"'
        numbered = f"select {key} as key, row_number() over (order by {key}) as place from {table}"  # noqa: S608 - our own names
        ends = await connection.fetch(
            f"select key from ({numbered}) n where place % $1 = 0 order by key",  # noqa: S608 - the same
            self._at_once,
        )
        highs = [*(row["key"] for row in ends if row["key"] != LAST), LAST]
        lows = [FIRST, *(UUID(int=high.int + 1) for high in highs[:-1])]
        return list(zip(lows, highs, strict=True))

    async def _some_keys(self, rows: asyncpg.Connection, standing: Generation, count: int) -> dict[int, UUID]:
        key, table = f'"{self._view.key}"', f'{SCHEMA}."{standing.table}"'
        by_chance = f"select {key} from {table} order by random() limit $1"  # noqa: S608 - the same
        found = await rows.fetch(by_chance, (count + 1) // 2)
        keys = {row[0].int: row[0] for row in found}
        # Twice as many places as keys are still wanted: not each has an event of this read model.
        wanted = min(standing.position, 2 * (count - len(keys)))
        events = await self._log.at(random.sample(range(1, standing.position + 1), wanted))
        random.shuffle(events)  # or they would be enough before the log's later ones had their turn
        for event in events:
            routed = self._key_of(event)
            if routed is not None and len(keys) < count:
                keys.setdefault(routed.int, routed)
        return keys

    # ------------------------------------------------------------------------------------------- what the log says

    async def _fold_some(self, log: asyncpg.Connection, upto: int, keys: dict[int, UUID]) -> dict[int, _Folded]:
        folded = {number: _Folded() for number in keys}
        if not self._by_stream:
            await self._fold_log(log, upto, folded.__contains__, folded.get)
            return folded
        breath = Breath()
        # Closed before the connection is used again: it has the transaction of a cursor.
        async with aclosing(self._log.read_streams(log, list(keys.values()), upto)) as events:
            async for event in events:
                if breath.due:
                    await breath.take()
                if self._key_of(event) == event.stream_id:
                    self._take(folded[event.stream_id.int], event.stream_id, event)
        return folded

    async def _fold_log(
        self,
        log: asyncpg.Connection,
        upto: int,
        wanted: Callable[[int], bool],
        row_of: Callable[[int], _Folded | None],
    ) -> None:
        of = (lambda stream_id: wanted(stream_id.int)) if self._by_stream else None
        breath = Breath()
        async for _, events in self._log.stream(log, 0, upto, types=self._types, of=of):
            for event in events:
                if breath.due:
                    await breath.take()
                key = self._key_of(event)
                row = None if key is None else row_of(key.int)
                if key is not None and row is not None:
                    self._take(row, key, event)

    def _key_of(self, event: Recorded[Event]) -> UUID | None:
        """Whose row an event changes; None when it is not of this read model."""
        route = self._route.get(type(event.data))
        if route is None:
            return None
        try:
            return route(event.data)
        except Exception as error:
            raise NotVerifiable(
                f"the route of {event.data.__declared__.name} at position {event.position} raised "
                f"{type(error).__name__}: {error}"
            ) from error

    def _take(self, row: _Folded, key: UUID, event: Recorded[Event]) -> None:
        row.events += 1
        row.places += event.position
        if row.failed is not None:
            return
        try:
            model = self._fold(key, row.model, event)
        except Exception as error:  # noqa: BLE001 - whatever a user's fold raises
            row.failed = f"{type(error).__name__} at position {event.position}: {error}"
            return
        if model is not row.model:
            row.model, row.position = model, event.position

    # ---------------------------------------------------------------------------------------------------- comparing

    async def _compare(
        self,
        rows: asyncpg.Connection,
        report: Report,
        standing: Generation,
        folded: dict[int, _Folded],
        those: str,
        *values: Any,
    ) -> None:
        """What is stored of some keys with what is folded of them. those: which they are, as SQL says it of a key."""
        select = f'{select_sql(self._view, standing.table)} where "{self._view.key}" {those}'
        stored = {record[self._view.key].int: record for record in await rows.fetch(select, *values)}
        parked = {row["key"].int for row in await rows.fetch(_SQL["parked"], report.name, report.generation)}
        for number in stored.keys() | folded.keys():
            if number in parked:
                report.parked += 1
                continue
            report.checked += 1
            report.add(self._differences(UUID(int=number), stored.get(number), folded.get(number) or _Folded()))
        if self._view.history:
            self._compare_history(report, await row_events.totals(rows, standing.table, those, *values), folded)

    def _compare_history(
        self, report: Report, kept: Mapping[int, tuple[int, int]], folded: Mapping[int, _Folded]
    ) -> None:
        """What is kept of where the events of each key are, by what they add up to."""
        for number in kept.keys() | folded.keys():
            row = folded.get(number) or _Folded()
            pair = kept.get(number, (0, 0)), (row.events, row.places)
            if pair[0] != pair[1]:
                shown = (f"{events} events, positions of {places} in all" for events, places in pair)
                report.add([Difference(UUID(int=number), "history", *shown)])

    def _differences(self, key: UUID, stored: asyncpg.Record | None, folded: _Folded) -> list[Difference]:
        if folded.failed is not None:
            return [Difference(key, "fold", "a row" if stored is not None else "no row", f"raised {folded.failed}")]
        if stored is None or folded.model is None:
            there = stored is not None, folded.model is not None
            if there[0] == there[1]:
                return []
            return [Difference(key, "row", *("a row" if each else "no row" for each in there))]
        try:
            pairs = [
                (each, stored[each.name], write(getattr(folded.model, each.name))) for each, write in self._columns
            ]
            found = [
                Difference(key, each.name, _shown(each, was), _shown(each, is_))
                for each, was, is_ in pairs
                if not _same(each, was, is_)
            ]
        except Exception as error:  # noqa: BLE001 - a fold may give anything
            why = f"{type(error).__name__}: {error}"
            return [Difference(key, "fold", "a row", f"gave what cannot be stored: {why}")]
        if stored["position"] != folded.position:
            found.append(Difference(key, "position", stored["position"], folded.position))
        return found


def _shown(field: Field, value: Any) -> Any:
    """A list is stored as JSON."""
    return json.loads(value) if field.many and value is not None else value


def _same(field: Field, was: Any, is_: Any) -> bool:
    """PostgreSQL spells JSON in its own way: 1e23 comes back as a whole number, which is not the float of before."""
    if field.many and was is not None and is_ is not None:
        number = float if field.kind is Kind.FLOAT else None
        was, is_ = (json.loads(value, parse_int=number) for value in (was, is_))
    return bool(was == is_ or (was != was and is_ != is_))  # NaN is the same as NaN
