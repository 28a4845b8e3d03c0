"""Filters: SQL and the Python predicate select the same rows, for any rows and any filter."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headwater import Event, ReadModel, Recorded, View
from headwater.eventstore.positions import Positions
from headwater.projections.filter import All, Compare, Filter, Not, Some, to_predicate
from headwater.projections.generations import prepare
from headwater.projections.reader import Reader
from headwater.projections.row_codec import writer_of
from headwater.projections.row_statements import upsert_sql


class Size(Enum):
    SMALL = "small"
    LARGE = "Large"
    HUGE = "riesengroß"


class Seen(Event):
    sample_id: UUID


class Sample(ReadModel, key="sample_id"):
    """A required and an optional column of each type that can be filtered."""

    sample_id: UUID
    text: str
    maybe_text: str | None
    number: int | None
    amount: Decimal
    maybe_amount: Decimal | None
    ratio: float
    maybe_ratio: float | None
    yes: bool
    maybe_yes: bool | None
    day: date | None
    at: datetime
    maybe_at: datetime | None
    size: Size
    maybe_size: Size | None
    link: UUID | None


def fold(row: Sample | None, event: Recorded[Seen]) -> Sample | None:
    return row


view = View(Sample, fold)

WORDS = (
    "",
    "a",
    "A",
    "ab",
    "Ab",
    "b",
    "ä",
    "Ä",
    "a\u0308",
    "ß",
    "ss",
    "ẞ",
    "\u0131",
    "I",
    "%",
    "_",
    "100%",
    "10_",
    "\\",
    "\\%",
)
TEXT = st.sampled_from([*WORDS, "😀", "😀a", "\U0010ffff", "\uffff", "'", '"', "{a}", " ", "\n", "$1"]) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4
)
NUMBERS = st.sampled_from([0, 1, -1, 2, 2**31, -(2**63), 2**63 - 1])
AMOUNTS = st.sampled_from(
    [Decimal(n) for n in ("0", "-0", "0.00", "1", "1.0", "1.00", "1.01", "-1", "1E+3", "1000.0")]
) | (st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**20), max_value=10**20))
RATIOS = st.sampled_from([0.0, -0.0, 1.0, 0.1, 0.1 + 0.2, 0.3, -1.5, 1e300, 5e-324]) | st.floats(
    allow_nan=False, allow_infinity=False
)
DAYS = st.sampled_from([date(1, 1, 1), date(2026, 1, 31), date(2026, 2, 1), date(9999, 12, 31)])
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-11))])
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
TIMES = st.builds(
    lambda microseconds, zone: (NOON + timedelta(microseconds=microseconds)).astimezone(zone),
    st.sampled_from([0, 1, -1, 1_000_000, 86_400_000_000]),
    ZONES,
)
SIZES = st.sampled_from(Size)
LINKS = st.sampled_from([UUID(int=n) for n in (0, 1, 2**127, 2**128 - 1)])

OF_COLUMN: dict[str, st.SearchStrategy[Any]] = {
    "text": TEXT,
    "maybe_text": TEXT,
    "number": NUMBERS,
    "amount": AMOUNTS,
    "maybe_amount": AMOUNTS,
    "ratio": RATIOS,
    "maybe_ratio": RATIOS,
    "yes": st.booleans(),
    "maybe_yes": st.booleans(),
    "day": DAYS,
    "at": TIMES,
    "maybe_at": TIMES,
    "size": SIZES.map(lambda size: size.value),
    "maybe_size": SIZES.map(lambda size: size.value),
    "link": LINKS,
}
MANY = ("in", "not_in")
EQUALITY = ("eq", "ne", *MANY)
ORDER = ("lt", "lte", "gt", "gte")
OPERATORS = {
    **dict.fromkeys(OF_COLUMN, (*EQUALITY, *ORDER)),
    **dict.fromkeys(("text", "maybe_text"), (*EQUALITY, *ORDER, "contains", "starts_with")),
    **dict.fromkeys(("yes", "maybe_yes"), ("eq", "ne")),
    **dict.fromkeys(("size", "maybe_size", "link"), EQUALITY),
}

IN_ROWS = OF_COLUMN | {
    "size": SIZES,
    "maybe_size": SIZES,
}
OPTIONAL = {each.name for each in view.fields if each.optional}
ROWS = st.fixed_dictionaries(
    {name: st.none() | values if name in OPTIONAL else values for name, values in IN_ROWS.items()}
)


@st.composite
def comparisons(draw: st.DrawFn) -> Compare:
    column = draw(st.sampled_from(sorted(OF_COLUMN)))
    operator = draw(st.sampled_from((*OPERATORS[column], "is_null")))
    value = st.booleans() if operator == "is_null" else OF_COLUMN[column]
    return Compare(column, operator, draw(st.lists(value, max_size=3).map(tuple) if operator in MANY else value))


TREES: st.SearchStrategy[Filter] = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: All(tuple(parts))),
        st.lists(inner, max_size=3).map(lambda parts: Some(tuple(parts))),
        inner.map(Not),
    ),
    max_leaves=6,
)


@pytest.fixture
async def pool(dsn: str) -> Any:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        yield pool


async def filled(pool: asyncpg.Pool, rows: list[dict[str, Any]]) -> list[asyncpg.Record]:
    """Store rows in an empty table; return them as they are read back."""
    async with pool.acquire() as connection:
        standing = await prepare(connection, view)
        await connection.execute(f"truncate read.{standing.table}")
        models = [Sample(sample_id=UUID(int=place), **row) for place, row in enumerate(rows)]
        columns = [[writer_of(each)(getattr(model, each.name)) for model in models] for each in view.fields]
        await connection.execute(upsert_sql(view, standing.table), *columns, list(range(len(models))))
        return await connection.fetch("select * from read.sample")


async def agree(pool: asyncpg.Pool, rows: list[asyncpg.Record], tree: Filter) -> set[UUID]:
    """Return the keys that both select; fail if they differ."""
    reader = Reader(pool, view, Positions())
    by_sql = await reader.keys(tree)
    by_python = {row["sample_id"] for row in rows if to_predicate(tree)(row)}
    differ = by_sql ^ by_python
    assert by_sql == by_python, (tree, [dict(row) for row in rows if row["sample_id"] in differ])
    assert await reader.count(tree) == len(by_sql)
    return by_sql  # type: ignore[return-value]  # the keys are UUIDs


@given(rows=st.lists(ROWS, min_size=1, max_size=12), trees=st.lists(TREES, min_size=8, max_size=16))
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # the assertion shows filter and rows; shrinking takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
async def test_sql_and_predicate_select_the_same_rows(
    pool: asyncpg.Pool, rows: list[dict[str, Any]], trees: list[Filter]
) -> None:
    stored = await filled(pool, rows)
    for tree in trees:
        chosen = await agree(pool, stored, tree)
        refused = await agree(pool, stored, Not(tree))
        assert chosen.isdisjoint(refused)
        assert len(chosen) + len(refused) == len(rows), "a row is either in or out"


ROW: dict[str, Any] = {
    **dict.fromkeys(OF_COLUMN),
    "text": "Ärger 100% 😀",
    "amount": Decimal("1.10"),
    "ratio": 0.5,
    "yes": True,
    "at": NOON,
    "size": Size.HUGE,
}


MEANINGS: list[tuple[Filter, bool]] = [
    (Compare("text", "contains", "100%"), True),
    (Compare("text", "contains", "10_%"), False),
    (Compare("text", "contains", "är"), False),
    (Compare("text", "contains", ""), True),
    (Compare("text", "starts_with", "Ä"), True),
    (Compare("text", "starts_with", "%"), False),
    (Compare("text", "gt", "z"), True),  # by code point, Ä is after z
    (Compare("amount", "eq", Decimal("1.1")), True),
    (Compare("amount", "in", (Decimal(2), Decimal("1.100"))), True),
    (Compare("at", "eq", NOON.astimezone(timezone(timedelta(hours=9)))), True),
    (Compare("size", "eq", "riesengroß"), True),
    (Compare("text", "in", ()), False),
    (Compare("text", "not_in", ()), True),
    (Compare("number", "eq", 1), False),
    (Compare("number", "ne", 1), True),
    (Compare("number", "in", (1,)), False),
    (Compare("number", "not_in", (1,)), True),
    (Compare("number", "not_in", ()), True),
    (Compare("number", "lt", 1), False),
    (Compare("number", "gte", 1), False),
    (Compare("maybe_text", "contains", ""), False),
    (Compare("number", "is_null", True), True),
    (Compare("number", "is_null", False), False),
    (Compare("yes", "is_null", True), False),
    (All(), True),
    (Some(()), False),
    (Not(All()), False),
    (Not(Compare("number", "lt", 1)), True),
]


async def test_each_operator_selects_the_rows_that_it_names(pool: asyncpg.Pool) -> None:
    stored = await filled(pool, [ROW])
    for tree, chosen in MEANINGS:
        assert await agree(pool, stored, tree) == ({UUID(int=0)} if chosen else set()), tree


def test_an_unknown_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown operator: 'like'"):
        to_predicate(Compare("text", "like", "%"))
