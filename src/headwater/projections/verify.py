"""Verify: folds rows from the log again, and compares them with the stored rows, at one position.

The rows and the position are read in one REPEATABLE READ transaction. The log up to that position never changes, so it
is read on another connection.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from itertools import pairwise
from typing import Any, Generic, TypeVar
from uuid import UUID

import asyncpg
import msgspec

from headwater.consumers.checkpoint import Generation
from headwater.domain.fields import Field
from headwater.domain.messages import Event, Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_key import RowKey
from headwater.errors import HeadwaterError
from headwater.eventstore.log import Log
from headwater.postgres import queries
from headwater.postgres.database import Database, take_times_by_number
from headwater.projections import row_events
from headwater.projections.generations import fingerprint, read_generation
from headwater.projections.key_range import KeyRange, LogRow
from headwater.projections.row_folder import SLICE_SECONDS, RouteFailed, RowFolder
from headwater.projections.row_statements import select_sql
from headwater.projections.tables import SCHEMA
from headwater.projections.verify_report import LISTED, Difference, VerifyReport

_SQL = queries.load(__file__)

M = TypeVar("M", bound=ReadModel)

ROWS_AT_ONCE = 200_000
"""Stored rows in memory, at most, and twice as many folded ones. A larger table is compared in ranges of keys, with a
pass over the log for each. Removed rows are not in the table: a range that has too many keys in the log is cut."""


class NotVerifiable(HeadwaterError):
    """The rows were made by another version of this code, so that its fold may differ; or a route raised."""


class Verifier(Generic[M]):
    """Compares the rows of one read model with the log.

    stream_of: from a row's key to the stream whose fold it is; None if rows gather several streams. rows: see
    ROWS_AT_ONCE. listed: see LISTED.
    slice_seconds: folds yield to the event loop after this long.
    """

    def __init__(
        self,
        log: Log,
        view: View[M],
        *,
        stream_of: Callable[[RowKey], UUID] | None = None,
        rows: int = ROWS_AT_ONCE,
        listed: int = LISTED,
        slice_seconds: float = SLICE_SECONDS,
    ) -> None:
        self._log = log
        self._view = view
        self._key = view.key
        self._stream_of = stream_of
        self._at_once = rows
        self._listed = listed
        self._folder = RowFolder(log, view, slice_seconds=slice_seconds)

    async def live(self, database: Database, sample: int | None) -> VerifyReport:
        """Verify the live generation: a random sample of keys, or every key if `sample` is None.

        Raises:
            NotVerifiable: the rows were made by another version of this code.
        """
        with ExitStack() as opened:
            rows = await database.connect(f"verifying {self._view.name}", session=True)
            opened.callback(rows.terminate)
            log = await database.connect(f"verifying {self._view.name}, log", session=True)
            opened.callback(log.terminate)
            for each in (rows, log):
                await take_times_by_number(each)
            async with rows.transaction(isolation="repeatable_read", readonly=True):
                generation = await self._generation(rows)
                report = await (
                    self.all(rows, log, generation) if sample is None else self.sample(rows, log, generation, sample)
                )
            await rows.execute(_SQL["verified"], report.name, report.generation, report.found)
            return report

    async def _generation(self, connection: asyncpg.Connection) -> Generation:
        row = await connection.fetchrow(_SQL["live"], self._view.name)
        if row is None or row["fingerprint"] != fingerprint(self._view):
            raise NotVerifiable(
                f"the rows of {self._view.name} were made by another version of this code; verify them with that "
                "version, or when the next generation is live"
            )
        return read_generation(row)

    async def sample(
        self, rows: asyncpg.Connection, log: asyncpg.Connection, generation: Generation, count: int
    ) -> VerifyReport:
        """Compare random keys: half of them from the table, the others from the log, which may have no row."""
        report = VerifyReport(self._view.name, generation.number, generation.position, listed=self._listed)
        keys = await self._some_keys(rows, generation, count)
        if keys:
            folded = await self._fold_some(log, generation.position, keys)
            condition, arrays = self._folder.columns.among(), self._folder.columns.arrays(keys.values())
            await self._compare(rows, report, generation, folded, condition, *arrays)
        return report

    async def all(self, rows: asyncpg.Connection, log: asyncpg.Connection, generation: Generation) -> VerifyReport:
        """Compare every key, in as many passes over the log as memory requires."""
        report = VerifyReport(self._view.name, generation.number, generation.position, listed=self._listed)
        ranges = await self._ranges(rows, generation)
        number, key_of = self._key.number, self._key.key_of
        while ranges:
            after, upto = (None if end is None else number(end) for end in ranges.pop())
            part = KeyRange(after, upto, self._at_once, LogRow)
            await self._fold_log(log, generation.position, part.has, part.row)
            if part.upto != upto:
                ranges.append((key_of(part.upto), None if upto is None else key_of(upto)))
            ends = (None if end is None else key_of(end) for end in (part.after, part.upto))
            condition, values = self._folder.columns.within(*ends)
            await self._compare(rows, report, generation, part.folded, condition, *values)
        return report

    # ----------------------------------------------------------------------------------------------- stored rows

    async def _ranges(
        self, connection: asyncpg.Connection, generation: Generation
    ) -> list[tuple[RowKey | None, RowKey | None]]:
        """Return ranges of keys, after the one and up to the other, that hold at most `rows` rows each. None: the range
        has no such end. Together they cover every possible key."""
        key, table = self._folder.columns.listed, f'{SCHEMA}."{generation.table}"'
        numbered = f'select {key}, row_number() over (order by {key}) as "the place" from {table}'  # noqa: S608 - our own names
        last = await connection.fetch(
            f'select {key} from ({numbered}) n where "the place" % $1 = 0 order by {key}',  # noqa: S608 - the same
            self._at_once,
        )
        ends = [None, *map(self._key.of_row, last), None]
        return list(pairwise(ends))

    async def _some_keys(self, rows: asyncpg.Connection, generation: Generation, count: int) -> dict[Any, RowKey]:
        listed, table = self._folder.columns.listed, f'{SCHEMA}."{generation.table}"'
        by_chance = f"select {listed} from {table} order by random() limit $1"  # noqa: S608 - the same
        number = self._key.number
        found = map(self._key.of_row, await rows.fetch(by_chance, (count + 1) // 2))
        keys = {number(key): key for key in found}
        # Twice as many positions as keys that are still wanted: some hold no event of this read model.
        wanted = min(generation.position, 2 * (count - len(keys)))
        events = await self._log.at(random.sample(range(1, generation.position + 1), wanted))
        random.shuffle(events)  # otherwise events late in the log would rarely be chosen
        for event in events:
            for routed in self._keys_of(event)[: count - len(keys)]:
                keys.setdefault(number(routed), routed)
        return keys

    # ------------------------------------------------------------------------------------------- folded rows

    async def _fold_some(self, log: asyncpg.Connection, upto: int, keys: dict[Any, RowKey]) -> dict[Any, LogRow]:
        folded = {number: LogRow() for number in keys}
        if self._stream_of is None:
            await self._fold_log(log, upto, folded.__contains__, folded.get)
            return folded
        turn = self._folder.time_slice()
        # Closed before the connection is used again: the cursor holds a transaction.
        key_of = {self._stream_of(key): key for key in keys.values()}
        async with aclosing(self._log.read_streams(log, list(key_of), upto)) as events:
            async for event in events:
                if turn.is_over():
                    await turn.give_way()
                key = key_of[event.stream_id]
                if self._keys_of(event) == (key,):
                    self._take(folded[self._key.number(key)], key, event)
        return folded

    async def _fold_log(
        self,
        log: asyncpg.Connection,
        upto: int,
        wanted: Callable[[Any], bool],
        row_of: Callable[[Any], LogRow | None],
    ) -> None:
        # A stream's id that is the row's key shows without decoding the event that it is not wanted.
        of = (lambda stream_id: wanted(stream_id.int)) if self._stream_of and self._key.is_uuid else None
        number, turn = self._key.number, self._folder.time_slice()
        async for _, events in self._log.stream(log, 0, upto, types=self._folder.types, of=of):
            for event in events:
                if turn.is_over():
                    await turn.give_way()
                for key in self._keys_of(event):
                    row = row_of(number(key))
                    if row is not None:
                        self._take(row, key, event)

    def _keys_of(self, event: Recorded[Event]) -> Sequence[RowKey]:
        try:
            return self._folder.keys_of(event)
        except RouteFailed as failure:
            raise NotVerifiable(str(failure)) from failure

    def _take(self, row: LogRow, key: RowKey, event: Recorded[Event]) -> None:
        row.events += 1
        row.places += event.position
        if row.failed is not None:
            return
        try:
            model = self._folder.fold(key, row.model, event)
        except Exception as error:  # noqa: BLE001 - whatever a user's fold raises
            row.failed = f"{type(error).__name__} at position {event.position}: {error}"
            return
        if model is not row.model:
            row.model, row.position = model, event.position

    # ---------------------------------------------------------------------------------------------------- comparing

    async def _compare(
        self,
        rows: asyncpg.Connection,
        report: VerifyReport,
        generation: Generation,
        folded: dict[Any, LogRow],
        those: str,
        *values: object,
    ) -> None:
        """Compare the stored rows of some keys with the folded ones. those: an SQL condition on the key's columns."""
        key = self._key
        select = f"{select_sql(self._view, generation.table)} where {those}"
        stored = {key.number(key.of_row(record)): record for record in await rows.fetch(select, *values)}
        letters = await rows.fetch(_SQL["parked"], report.name, report.generation)
        parked = {key.number(key.read(row["key"])) for row in letters}
        for number in stored.keys() | folded.keys():
            if number in parked:
                report.parked += 1
                continue
            report.checked += 1
            text = key.text(key.key_of(number))
            report.add(self._differences(text, stored.get(number), folded.get(number) or LogRow()))
        if self._view.history:
            columns = self._folder.columns
            kept = await row_events.totals(rows, generation.table, columns, those, *values)
            self._compare_history(report, kept, folded)

    def _compare_history(
        self, report: VerifyReport, kept: Mapping[Any, tuple[int, int]], folded: Mapping[Any, LogRow]
    ) -> None:
        """Compare the history of each key by the number of its events and the sum of their positions."""
        for number in kept.keys() | folded.keys():
            row = folded.get(number) or LogRow()
            pair = kept.get(number, (0, 0)), (row.events, row.places)
            if pair[0] != pair[1]:
                shown = (f"{events} events, positions of {places} in all" for events, places in pair)
                report.add([Difference(self._key.text(self._key.key_of(number)), "history", *shown)])

    def _differences(self, key: str, stored: asyncpg.Record | None, folded: LogRow) -> list[Difference]:
        if folded.failed is not None:
            return [Difference(key, "fold", "a row" if stored is not None else "no row", f"raised {folded.failed}")]
        if stored is None or folded.model is None:
            there = stored is not None, folded.model is not None
            if there[0] == there[1]:
                return []
            return [Difference(key, "row", *("a row" if each else "no row" for each in there))]
        try:
            pairs = [
                (each, read, stored[each.name], write(getattr(folded.model, each.name)))
                for each, write, read in self._folder.codec.columns
            ]
            found = [
                Difference(key, each.name, _shown(each, was), _shown(each, is_))
                for each, read, was, is_ in pairs
                if not _same(each, read, was, is_)
            ]
        except Exception as error:  # noqa: BLE001 - a fold may give anything
            why = f"{type(error).__name__}: {error}"
            return [Difference(key, "fold", "a row", f"gave what cannot be stored: {why}")]
        if stored["position"] != folded.position:
            found.append(Difference(key, "position", stored["position"], folded.position))
        return found


def _shown(field: Field, value: Any) -> Any:
    """Return a value for display. Lists and nested values are stored as JSON."""
    return json.loads(value) if field.is_json and value is not None else value


def _same(field: Field, read: Callable[[Any], Any], was: Any, is_: Any) -> bool:
    """True if two stored values are equal. PostgreSQL reformats JSON: 1e23 comes back as an integer, and the entries of
    an object in another order. So JSON is compared as the values that it is read as."""
    if field.is_json and was is not None and is_ is not None:
        try:
            return bool(read(was) == read(is_))
        except msgspec.ValidationError:  # a row that was changed by hand
            return False
    return bool(was == is_ or (was != was and is_ != is_))  # NaN is the same as NaN
