"""Columns and indexes: each declared type comes back unchanged, and each declared index is created."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from tests.support.folding import fold_of_log, stored
from tests.support.projecting import (
    TIME,
    Colour,
    Counted,
    bare,
    everything_view,
    full,
    projecting,
    things_app,
    write,
)
from tests.support.waiting import reached

from headwater import ReadModel, Recorded, View
from headwater.consumers.checkpoint import Generation
from headwater.projections.generations import prepare, rebuild
from headwater.projections.tables import add_indexes, add_key


async def test_every_column_type_returns_the_value_that_was_stored(dsn: str, connection: asyncpg.Connection) -> None:
    keys = [uuid4(), uuid4()]
    async with projecting(dsn, things_app, everything_view) as (projector,):
        await reached(projector.positions, everything_view.name, await write(connection, full(keys[0]), bare(keys[1])))
    rows = await stored(connection, everything_view)
    assert rows == await fold_of_log(connection, things_app, everything_view)
    row: Any = rows[keys[0]][0]
    assert [str(each) for each in (row.amount, row.maybe_amount, *row.amounts)] == [
        *("12.500", "0.00", "1.10"),  # PostgreSQL's numeric has no negative zero
        "123456789012345678901234567890.123456789",
    ]
    assert [type(each) for each in (row.colour, row.colours[0], row.day, row.at, row.yes, row.ratios[0])] == [
        *(Colour, Colour, date, datetime, bool, float)
    ]
    assert [each.utcoffset() is not None for each in (row.at, *row.times)] == [True, True, True]

    raw: Any = await connection.fetchrow("select * from read.everything where thing_id = $1", keys[0])
    assert {name: raw[name] for name in ("text", "colour", "at", "number", "maybe_text")} == {
        "text": full(keys[0]).text,
        "colour": "grün",
        "at": TIME,
        "number": 2**63 - 1,
        "maybe_text": "",
    }


async def test_columns_and_indexes_follow_the_declaration(dsn: str, connection: asyncpg.Connection) -> None:
    async with projecting(dsn, things_app, everything_view) as (projector,):
        await reached(projector.positions, everything_view.name, await write(connection, bare(uuid4())))
    columns = await connection.fetch(
        "select attname, format_type(atttypid, atttypmod) as type, attnotnull from pg_attribute "
        "where attrelid = 'read.everything_1'::regclass and attnum > 0 order by attnum"
    )
    assert {name: (kind, needed) for name, kind, needed in columns if not name.startswith("maybe")} == {
        "thing_id": ("uuid", True),
        "text": ("text", True),
        "amount": ("numeric", True),
        "colour": ("text", True),
        "day": ("date", True),
        "at": ("timestamp with time zone", True),
        "yes": ("boolean", True),
        "ratio": ("double precision", True),
        "number": ("bigint", True),
        "link": ("uuid", True),
        **dict.fromkeys(
            ["texts", "amounts", "colours", "days", "times", "links", "numbers", "ratios", "flags"], ("jsonb", True)
        ),
        "position": ("bigint", True),
    }
    assert {name: needed for name, _, needed in columns if name.startswith("maybe")} == dict.fromkeys(
        ["maybe_text", "maybe_amount", "maybe_colour", "maybe_at", "maybe_texts"], False
    )
    indexes = await connection.fetch("select indexdef from pg_indexes where tablename = 'everything_1'")
    assert sorted(definition.rpartition("USING")[2].strip() for (definition,) in indexes) == [
        'btree ("position")',
        "btree (day, amount)",
        "btree (text)",
        "btree (thing_id)",
    ]


class LongNames(ReadModel, key="thing_id", name="L" + "o" * 55, indexes=["a_b", ("a", "b"), "pkey", ("c", "a_b")]):
    """Its indexes have names that are too long, or equal to other names."""

    thing_id: UUID
    a: int
    b: int
    c: int
    a_b: int
    pkey: int


class ShortNames(ReadModel, key="thing_id", indexes=["a_b", ("a", "b"), "pkey", "a"]):
    """The same indexes with names that fit."""

    thing_id: UUID
    a: int
    b: int
    a_b: int
    pkey: int


def fold_names(row: Any, event: Recorded[Counted]) -> Any:
    return row


async def test_every_declared_index_is_created_under_any_name(connection: asyncpg.Connection) -> None:
    query = "select indexdef from pg_indexes where tablename = $1 order by 1"

    async def indexes(generation: Generation) -> list[str]:
        return sorted(row[0].rpartition("(")[2][:-1] for row in await connection.fetch(query, generation.table))

    for model, expected in (
        (LongNames, ["a, b", "a_b", "c, a_b", "pkey", "thing_id"]),
        (ShortNames, ["a", "a, b", "a_b", "pkey", "thing_id"]),
    ):
        view = View(model, fold_names)
        first = await prepare(connection, view)
        again = await rebuild(connection, view)
        for generation in (first, again):
            await add_key(connection, view, generation.table)
            await add_indexes(connection, view, generation.table)
            await add_indexes(connection, view, generation.table)  # existing indexes are not created again
            assert await indexes(generation) == sorted(['"position"', *expected])
    assert await connection.fetchval("select to_regclass('read.short_names_1_a')") == "read.short_names_1_a"
