"""Reading rows: pages, counts, initial rows, the changes after a position, and waiting for a position."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.support.waiting import until

from headwater import Event, ReadModel, Recorded, View
from headwater.domain.row_key import RowKey
from headwater.errors import BadUserInput, LogWentBack, ProjectionBehind
from headwater.eventstore.positions import Positions
from headwater.projections.filter import EVERYTHING, Compare, Filter, to_predicate
from headwater.projections.generations import prepare
from headwater.projections.live_columns import read_live_columns
from headwater.projections.order import Order
from headwater.projections.reader import (
    DEFAULT_LIMITS,
    Changes,
    Page,
    Reader,
    ReadLimits,
    changes_sql,
    compiled,
    initial_rows_statement,
)
from headwater.projections.row_codec import writer_of
from headwater.projections.row_statements import delete_sql, upsert_sql


class Size(Enum):
    SMALL = "small"
    LARGE = "Large"


class Seen(Event):
    sample_id: UUID


class Sample(ReadModel, key="sample_id"):
    """Columns to order by; two have names that the reader's own SQL uses."""

    sample_id: UUID
    text: str | None
    amount: Decimal
    ratio: float | None
    number: int | None
    day: date | None
    at: datetime | None
    size: Size | None
    removed: bool
    complete_to: int


def fold(row: Sample | None, event: Recorded[Seen]) -> Sample | None:
    return row


view = View(Sample, fold)
EMPTY: dict[str, Any] = {
    **dict.fromkeys(("text", "ratio", "number", "day", "at", "size")),
    "amount": Decimal(0),
    "removed": True,
    "complete_to": 7,
}


class Table:
    """The table of the read model, written as a projection writes it."""

    def __init__(self, pool: asyncpg.Pool, name: str) -> None:
        self.pool = pool
        self._upsert = upsert_sql(view, name)
        self._delete = delete_sql(view, name)

    async def put(self, rows: Sequence[tuple[UUID, int, dict[str, Any]]]) -> None:
        """Store rows, each with its key and position."""
        models = [Sample(sample_id=key, **values) for key, _, values in rows]
        columns = [[writer_of(each)(getattr(model, each.name)) for model in models] for each in view.fields]
        await self.pool.execute(self._upsert, *columns, [position for _, position, _ in rows])
        await self.pool.execute(
            "delete from headwater.tombstones where projection = 'Sample' and key = any($1)",
            [str(key) for key, _, _ in rows],
        )

    async def remove(self, key: UUID, position: int) -> None:
        await self.pool.execute(self._delete, [key])
        await self.pool.execute("insert into headwater.tombstones values ('Sample', 1, $1, $2)", str(key), position)

    async def move(self, position: int) -> None:
        """Move the checkpoint."""
        await self.pool.execute("update headwater.projections set position = $1 where name = 'Sample'", position)


@pytest.fixture
async def table(dsn: str) -> AsyncIterator[Table]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=3) as pool:
        async with pool.acquire() as connection:
            standing = await prepare(connection, view)
        yield Table(pool, standing.table)


# Pages -------------------------------------------------------------------------------------------------------------

# Few values for each column, so that many rows are equal in an order.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.none() | st.sampled_from(["", "a", "A", "ä", "😀", "%"]),
    "amount": st.sampled_from([Decimal(n) for n in ("0", "1.5", "1.50", "-2", "10", "9")]),
    "ratio": st.none() | st.sampled_from([0.1, -1.5, 1e300]),
    "number": st.none() | st.sampled_from([0, 5, -(2**63)]),
    "day": st.none() | st.sampled_from([date(2026, 1, 31), date(1, 1, 1)]),
    "at": st.none() | st.sampled_from([datetime(2026, 1, 31, tzinfo=UTC) + timedelta(microseconds=n) for n in (0, 1)]),
    "size": st.none() | st.sampled_from(Size),
    "removed": st.booleans(),
    "complete_to": st.just(0),
}
ORDERS = st.lists(
    st.builds(Order, st.sampled_from([*set(VALUES) - {"removed", "complete_to"}, "sample_id"]), st.booleans()),
    max_size=3,
)
FILTERS: st.SearchStrategy[Filter] = st.sampled_from(
    [
        EVERYTHING,
        Compare("removed", "eq", True),
        Compare("number", "is_null", False),
        Compare("amount", "gt", Decimal(100)),
    ]
)


def in_order(rows: Sequence[Any], order: Sequence[Order]) -> list[UUID]:
    """Return the keys in order: missing values last when ascending, first when descending; equal rows by key."""
    rows = sorted(rows, key=lambda row: row["sample_id"])
    for each in reversed(order):
        missing = [row for row in rows if row[each.column] is None]
        present = [row for row in rows if row[each.column] is not None]
        # Sorting keeps the order of equal rows, also when it is reversed.
        present.sort(key=lambda row, name=each.column: row[name], reverse=each.descending)  # type: ignore[misc]  # one type
        rows = [*missing, *present] if each.descending else [*present, *missing]
    return [row["sample_id"] for row in rows]


def keys_of(page: Page) -> list[UUID]:
    return [row["sample_id"] for row in page.rows]


@given(
    rows=st.lists(st.fixed_dictionaries(VALUES), max_size=14),
    walks=st.lists(st.tuples(ORDERS, FILTERS, st.integers(1, 5)), min_size=3, max_size=5),
)
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_all_pages_together_are_all_rows_in_order_forward_and_backward(
    table: Table, rows: list[dict[str, Any]], walks: list[tuple[list[Order], Filter, int]]
) -> None:
    await table.pool.execute("truncate read.sample_1")
    await table.put([(uuid4(), place, row) for place, row in enumerate(rows)])
    stored = await table.pool.fetch("select * from read.sample")
    reads = Reader(table.pool, view, Positions())
    for order, where, size in walks:
        chosen = [row for row in stored if to_predicate(where)(row)]
        whole = in_order(chosen, order)
        assert await reads.count(where) == len(whole)

        walked: list[UUID] = []
        cursor = None
        while True:
            page = await reads.page(where, order, first=size, after=cursor)
            walked += keys_of(page)
            assert page.has_previous is (cursor is not None)
            assert page.has_next is (len(walked) < len(whole))
            if not page.has_next:
                break
            assert len(page.rows) == size
            cursor = reads.cursor(order, page.rows[-1])
        assert walked == whole, order

        walked, cursor = [], None
        while True:
            page = await reads.page(where, order, last=size, before=cursor)
            walked = keys_of(page) + walked
            assert page.has_next is (cursor is not None)
            assert page.has_previous is (len(walked) < len(whole))
            if not page.has_previous:
                break
            cursor = reads.cursor(order, page.rows[0])
        assert walked == whole, order


async def test_a_page_without_rows_reports_rows_before_and_after_it(table: Table) -> None:
    reads = Reader(table.pool, view, Positions())
    assert await reads.page(EVERYTHING, [], first=10) == Page([], False, False)
    assert await reads.page(EVERYTHING, [], last=10) == Page([], False, False)
    key = uuid4()
    await table.put([(key, 1, EMPTY)])
    (row,) = (await reads.page(EVERYTHING, [], first=1)).rows
    cursor = reads.cursor([], row)
    assert await reads.page(EVERYTHING, [], first=0) == Page([], True, False)
    assert await reads.page(EVERYTHING, [], first=10, after=cursor) == Page([], False, True)
    assert await reads.page(EVERYTHING, [], last=10, before=cursor) == Page([], True, False)


async def test_the_next_page_is_the_same_after_rows_before_it_are_added_and_removed(table: Table) -> None:
    reads, order = Reader(table.pool, view, Positions()), [Order("number")]
    keys = [UUID(int=n) for n in range(6)]
    await table.put([(key, n, EMPTY | {"number": n * 10}) for n, key in enumerate(keys)])
    page = await reads.page(EVERYTHING, order, first=2)
    assert keys_of(page) == keys[:2]
    cursor = reads.cursor(order, page.rows[-1])
    await table.remove(keys[1], 7)  # the cursor's own row, too
    await table.put([(UUID(int=9), 8, EMPTY | {"number": 5})])
    assert keys_of(await reads.page(EVERYTHING, order, first=2, after=cursor)) == keys[2:4]


def cursor_of(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


KEY = "01980000-0000-7000-8000-000000000001"


STRANGE = [
    "",
    "x",
    "ä",
    "not base64!",
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    *map(
        cursor_of,
        [
            None,
            5,
            {},
            [],
            ["number,sample_id"],
            ["number,sample_id", 1],
            ["number,sample_id", 1, KEY, 1],
            ["-number,sample_id", 1, KEY],
            ["sample_id", KEY],
            ["text,sample_id", 1, KEY],
            ["number,sample_id", "x", KEY],
            ["number,sample_id", [], KEY],
            ["number,sample_id", 2**63, KEY],
            ["number,sample_id", float("inf"), KEY],
            ["number,sample_id", 1, 5],
            ["number,sample_id", 1, "5"],
        ],
    ),
]


async def test_a_malformed_cursor_or_one_of_another_order_is_bad_user_input(table: Table) -> None:
    reads, order = Reader(table.pool, view, Positions()), [Order("number")]
    for cursor in STRANGE:
        with pytest.raises(BadUserInput, match="cursor"):
            raise AssertionError(cursor, await reads.page(EVERYTHING, order, first=1, after=cursor))
        with pytest.raises(BadUserInput, match="cursor"):
            raise AssertionError(cursor, await reads.page(EVERYTHING, order, last=1, before=cursor))


IMPOSSIBLE: list[tuple[str, object]] = [
    ("text", "\0"),
    ("text", "\ud800"),
    ("amount", "x"),
    ("amount", {}),
    ("day", "2026-02-30"),
    ("day", 5),
    ("at", "noon"),
    ("at", 5),
    ("at", "0001-01-01T00:00:00+23:59"),
    ("size", "\0"),
]


async def test_a_cursor_with_a_value_that_no_row_can_have_is_bad_user_input(table: Table) -> None:
    reads = Reader(table.pool, view, Positions())
    for column, value in IMPOSSIBLE:
        cursor = cursor_of([f"{column},sample_id", value, KEY])
        with pytest.raises(BadUserInput, match="cursor"):
            raise AssertionError(column, value, await reads.page(EVERYTHING, [Order(column)], first=1, after=cursor))


@pytest.mark.parametrize("value", ["\0", "\ud800"])
async def test_a_filter_with_a_value_that_no_row_can_have_is_bad_user_input(table: Table, value: str) -> None:
    reads, where = Reader(table.pool, view, Positions()), Compare("text", "eq", value)
    for read in (reads.count(where), reads.keys(where), reads.initial_rows(where), reads.page(where, [], first=1)):
        with pytest.raises(BadUserInput, match="The filter or the cursor holds a value that no row can have"):
            await read


# Rows --------------------------------------------------------------------------------------------------------------


async def test_rows_are_found_by_key(table: Table) -> None:
    keys = [uuid4(), uuid4()]
    await table.put([(key, place, EMPTY) for place, key in enumerate(keys, 3)])
    await table.move(9)
    reads = Reader(table.pool, view, Positions())
    row, position = await reads.row(keys[0])
    assert row is not None
    assert (row["sample_id"], row["position"], row["complete_to"], row["removed"], position) == (keys[0], 3, 7, True, 9)
    assert await reads.row(uuid4()) == (None, 9)
    found = await reads.rows([*keys, uuid4(), keys[0]])
    assert {key: row["position"] for key, row in found.items()} == {keys[0]: 3, keys[1]: 4}


async def test_initial_rows_come_in_order_of_position_with_the_checkpoint(table: Table) -> None:
    await table.put([(uuid4(), position, EMPTY | {"number": position}) for position in (3, 1, 2)])
    await table.move(5)
    reads = Reader(table.pool, view, Positions())
    initial = await reads.initial_rows()
    assert ([row["position"] for row in initial.rows], initial.position) == ([1, 2, 3], 5)
    initial = await reads.initial_rows(Compare("number", "gt", 1))
    assert ([row["position"] for row in initial.rows], initial.position) == ([2, 3], 5)


async def test_initial_rows_are_read_in_parts(table: Table) -> None:
    await table.put([(uuid4(), position, EMPTY | {"number": position}) for position in range(1, 9)])
    await table.move(8)
    reads = Reader(table.pool, view, Positions(), limits=ReadLimits(initial_rows=3))
    where, after, seen = Compare("number", "ne", 2), 0, []
    while True:
        part = await reads.initial_rows(where, after=after, upto=7)
        seen.append(([row["position"] for row in part.rows], part.cut, part.position))
        if not part.cut:
            break
        after = part.rows[-1]["position"]
    assert seen == [([1, 3, 4], True, 8), ([5, 6, 7], True, 8), ([], False, 8)]


async def test_a_part_of_the_initial_rows_is_found_by_the_index_on_the_position(table: Table) -> None:
    await table.pool.execute(
        "insert into read.sample_1 (sample_id, amount, removed, complete_to, position) "
        "select gen_random_uuid(), 0, false, 0, n from generate_series(1, 20000) n"
    )
    await table.pool.execute("analyze")
    live = await read_live_columns(table.pool, view)
    where = Compare("removed", "eq", False)
    text, *values = compiled(initial_rows_statement(live, where, 100, 19_000, DEFAULT_LIMITS.initial_rows))
    lines = [row[0] for row in await table.pool.fetch(f"explain {text}", *values)]
    assert any("Index Scan using sample_1_position" in line for line in lines), lines
    assert not any("Sort" in line or "Seq Scan" in line for line in lines), lines


async def test_initial_rows_wait_for_each_other_without_taking_the_connections_of_other_reads(
    table: Table, connection: asyncpg.Connection
) -> None:
    await table.move(1)
    reads = Reader(table.pool, view, Positions())
    await reads.checkpoint()
    async with connection.transaction():
        await connection.execute("lock table read.sample in access exclusive mode")
        opening = [asyncio.create_task(reads.initial_rows()) for _ in range(20)]
        waiting = "select count(*) from pg_locks where not granted and mode = 'AccessShareLock'"
        await until(lambda: _count(connection, waiting, DEFAULT_LIMITS.initial_reads))
        async with asyncio.timeout(5):
            assert await reads.checkpoint() == 1
    async with asyncio.timeout(20):
        assert [initial.position for initial in await asyncio.gather(*opening)] == [1] * 20


async def _count(connection: asyncpg.Connection, query: str, expected: int) -> bool:
    return bool(await connection.fetchval(query) == expected)


# Changes -----------------------------------------------------------------------------------------------------------


async def test_changes_are_the_rows_and_removals_after_a_position(table: Table) -> None:
    reads = Reader(table.pool, view, Positions())
    assert await reads.changes(0) == Changes([], [], 0, edition=1 << 32)
    keys = [uuid4() for _ in range(4)]
    await table.put([(key, place, EMPTY) for place, key in enumerate(keys, 1)])
    await table.move(4)
    changes = await reads.changes(2)
    assert ([row["sample_id"] for row in changes.rows], changes.removed, changes.position) == (keys[2:], [], 4)
    assert [(row["removed"], row["complete_to"]) for row in changes.rows] == [(True, 7)] * 2

    await table.remove(keys[0], 5)
    await table.move(6)
    changes = await reads.changes(4)
    assert (changes.rows, changes.removed, changes.position) == ([], [(keys[0], 5)], 6)
    assert await reads.changes(6) == Changes([], [], 6, edition=1 << 32)
    await table.pool.execute("update headwater.head set position = 98")
    assert await reads.changes(98) == Changes([], [], 98, edition=1 << 32), "the position never falls"
    assert await reads.changes(99) == Changes([], [], 99, edition=1 << 32, beyond=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_changes_that_are_cut_lose_nothing(table: Table, limit: int) -> None:
    rows, removed = {uuid4(): n for n in range(1, 22, 3)}, {uuid4(): n for n in range(2, 30, 4)}
    await table.put([(key, position, EMPTY) for key, position in rows.items()])
    for key, position in removed.items():
        await table.remove(key, position)
    await table.move(40)
    reads = Reader(table.pool, view, Positions(), limits=ReadLimits(changed_rows=limit))
    after, pages = 0, 0
    seen: dict[UUID, int] = {}
    gone: dict[RowKey, int] = {}
    while True:
        changes = await reads.changes(after)
        assert len(changes.rows) <= limit
        for position in [*(row["position"] for row in changes.rows), *(position for _, position in changes.removed)]:
            assert after < position <= changes.position, "each change is in exactly one page"
        seen |= {row["sample_id"]: row["position"] for row in changes.rows}
        gone |= dict(changes.removed)
        pages += 1
        if changes.position == after:
            break
        after = changes.position
    assert (seen, gone, after) == (rows, removed, 40)
    assert pages >= len(rows) / limit


async def test_changes_are_found_by_their_index_and_the_tombstones_are_read_once(table: Table) -> None:
    """So each page of a replay costs the same, whatever the size of the table and the number of tombstones."""
    await table.pool.execute(
        "insert into read.sample_1 (sample_id, amount, removed, complete_to, position) "
        "select gen_random_uuid(), 0, false, 0, n from generate_series(1, 20000) n"
    )
    await table.pool.execute(
        "insert into headwater.tombstones select 'Sample', 1, gen_random_uuid(), n from generate_series(1, 2000) n"
    )
    await table.pool.execute("analyze")
    query = changes_sql(await read_live_columns(table.pool, view))
    for place, value in enumerate(("'Sample'", "100", "50"), 1):
        query = query.replace(f"${place}", value)
    explained = await table.pool.fetchval(f"explain (analyze, format json) {query}")

    def parts(plan: dict[str, Any]) -> list[dict[str, Any]]:
        return [plan, *(each for inner in plan.get("Plans", ()) for each in parts(inner))]

    plan = parts(json.loads(explained)[0]["Plan"])
    (rows,) = [part for part in plan if part.get("Relation Name") == "sample_1"]
    assert (rows["Node Type"], rows["Actual Rows"]) == ("Index Scan", 50)
    (tombstones,) = [part for part in plan if part.get("Relation Name") == "tombstones"]
    assert tombstones["Actual Loops"] == 1


# Waiting -----------------------------------------------------------------------------------------------------------


async def test_reach_returns_at_once_when_the_rows_are_complete(table: Table) -> None:
    positions = Positions()
    await table.move(3)
    await Reader(table.pool, view, positions, patience=0, poll=20).reach(3)
    assert positions.known("Sample") == 3


class Watched(Positions):
    """Positions that note each wait, and each wait that is over."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[int] = []
        self.ended = 0

    async def moved(self, name: str, after: int, seconds: float, alarms: int | None = None) -> None:
        self.waits.append(after)
        await super().moved(name, after, seconds, alarms)
        self.ended += 1


async def test_reach_waits_for_its_position_and_for_no_earlier_one(table: Table) -> None:
    positions = Watched()
    reads = Reader(table.pool, view, positions, patience=20, poll=20)
    waiting = asyncio.create_task(reads.reach(5))
    earlier = asyncio.create_task(reads.reach(4))
    await until(lambda: len(positions.waits) == 2)
    positions.report("Sample", 4)
    await asyncio.wait_for(earlier, 5)
    await until(lambda: len(positions.waits) == 3)  # it was woken, and waits again
    assert not waiting.done()
    positions.report("Sample", 5)  # the doorbell, not the poll
    await asyncio.wait_for(waiting, 5)


async def test_reach_polls_when_the_doorbell_does_not_ring(table: Table) -> None:
    positions = Watched()
    reads = Reader(table.pool, view, positions, patience=20, poll=0.02)
    waiting = asyncio.create_task(reads.reach(5))
    await until(lambda: positions.ended)
    assert not waiting.done()
    await table.move(5)
    await asyncio.wait_for(waiting, 5)


async def test_reach_fails_when_its_patience_is_over(table: Table) -> None:
    reads = Reader(table.pool, view, Positions(), patience=0.05, poll=0.02)
    await table.move(3)
    with pytest.raises(ProjectionBehind) as behind:
        await reads.reach(5)
    assert str(behind.value) == "Sample has reached position 3, not 5, in 0.05 s; ask again."


async def test_reach_fails_when_the_log_loses_its_position_meanwhile(table: Table) -> None:
    """In the new epoch, the position of that number is another one."""
    positions = Watched()
    async with table.pool.acquire() as connection:
        await positions.epochs.enter(connection)
    reads = Reader(table.pool, view, positions, patience=20, poll=20)
    waiting = asyncio.create_task(reads.reach(5))
    await until(lambda: positions.waits)
    await table.pool.execute("select headwater.begin_epoch(1, 'a test')")
    await positions.epochs.refresh(table.pool)
    positions.report("Sample", 5)
    with pytest.raises(LogWentBack):
        await asyncio.wait_for(waiting, 5)
