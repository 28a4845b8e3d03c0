"""Read models whose columns have the names of PostgreSQL's keywords."""

from __future__ import annotations

import asyncio
import keyword
from collections.abc import AsyncIterator, Sequence
from types import new_class
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.waiting import until

from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, View
from headwater.consumers.loop import LoopSettings, Ports
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, Log, append
from headwater.eventstore.positions import Positions
from headwater.postgres.database import Database
from headwater.projections.filter import All, Compare
from headwater.projections.generations import prepare, rebuild
from headwater.projections.history import History
from headwater.projections.order import Order
from headwater.projections.projector import Projector
from headwater.projections.reader import Reader
from headwater.projections.rebuild import BuildSettings, Rebuild
from headwater.projections.verify import Verifier

COLUMNS_PER_TABLE = 50

TABLES = ["Select", "Default", "Table", "Collation", "Lateral", "Limit", "Offset", "Group", "Order", "Tablesample"]
"""Names of read models that are keywords, too. The view of `Select` is `read.select`."""

NOT_FIELDS = {*keyword.kwlist, "position"}
"""Keywords of PostgreSQL that no field can have: Python's own, and the column that Headwater adds."""


class Say(Command):
    word_id: UUID


class Said(Event):
    word_id: UUID
    text: str


def decide(command: Say, state: None) -> list[Said]:
    return []


def evolve(state: None, event: Said) -> None:
    return None


def read_model(number: int, words: Sequence[str]) -> View[Any]:
    """Return a read model with a column a word. The first is the key; each of the others has an index."""
    key, *texts = words
    annotations = {key: "UUID"} | dict.fromkeys(texts, "str")
    members = {"__module__": __name__, "__annotations__": annotations}
    name, declared = TABLES[number], {"key": key, "indexes": texts}
    model: Any = new_class(name, (ReadModel,), declared, lambda body: body.update(members))

    def fold(row: Any, event: Recorded[Said]) -> Any:
        return model(**{key: event.data.word_id}, **dict.fromkeys(texts, event.data.text))

    return View(model, fold, route=lambda event: event.data.word_id, history=True)


@pytest.fixture
async def views(connection: asyncpg.Connection) -> list[View[Any]]:
    rows = await connection.fetch("select word from pg_get_keywords() order by word")
    words = [row["word"] for row in rows if row["word"] not in NOT_FIELDS]
    assert {"collation", "lateral", "concurrently", "tablesample", "user", "select"} <= set(words)
    parts = [words[start : start + COLUMNS_PER_TABLE] for start in range(0, len(words), COLUMNS_PER_TABLE)]
    assert len(parts) <= len(TABLES)
    return [read_model(number, part) for number, part in enumerate(parts)]


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    async with Database(dsn, pool_size=3) as database:
        yield database


async def write(connection: asyncpg.Connection, *events: Said) -> int:
    commands = [Append(uuid4(), each.word_id, "word", None, [stored_form(each)], uuid4()) for each in events]
    return (await append(connection, commands))[-1].position


async def project(database: Database, log: Log, connection: asyncpg.Connection, view: View[Any], head: int) -> None:
    projector = Projector(Ports(database, log, Positions()), view, LoopSettings(poll=0.05))
    task = asyncio.create_task(projector.run(await prepare(connection, view)))
    try:
        await until(lambda: task.done() or projector.progress.position == head)
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_every_keyword_of_postgresql_can_be_a_column(
    database: Database, connection: asyncpg.Connection, views: list[View[Any]]
) -> None:
    app = App([Feature([Decider("word", "word_id", None, decide, evolve)], views)])
    log = Log(database.pool, app.domain.codec)
    first, second = uuid4(), uuid4()
    changes = [(first, "b"), (second, "a"), (first, "c")]
    head = await write(connection, *(Said(word_id=key, text=text) for key, text in changes))

    for view in views:
        await project(database, log, connection, view, head)
        await require_readable(database, view, first, second)
        past: Any = await History(app.domain, view, log, database.pool).row(first, 1)
        assert {past[each.name] for each in view.fields if (each.name,) != view.key.names} == {"b"}
        # Rows that a rebuild has stored before are updated by another statement than new ones.
        await Rebuild(database, log, view, settings=BuildSettings(events=1)).build(await rebuild(connection, view))
        await require_readable(database, view, first, second)
        report = await Verifier(log, view).live(database, None)
        assert (report.checked, report.differences) == (2, [])


async def require_readable(database: Database, view: View[Any], first: UUID, second: UUID) -> None:
    reader = Reader(database.pool, view, Positions())
    names = [each.name for each in view.fields if (each.name,) != view.key.names]
    where = All((*(Compare(name, "eq", "c") for name in names), Compare(view.key.names[0], "eq", first)))
    order = [Order(name) for name in names]

    assert await reader.count(where) == 1
    page = await reader.page(All(), order, first=1)
    assert [view.key.of_row(row) for row in page.rows] == [second]
    page = await reader.page(All(), order, first=1, after=reader.cursor(order, page.rows[0]))
    assert [view.key.of_row(row) for row in page.rows] == [first]
    assert {page.rows[0][name] for name in names} == {"c"}
    row, _ = await reader.row(first)
    assert row is not None
    assert set(await reader.rows([first, second])) == {first, second}
    assert len((await reader.initial_rows(where)).rows) == 1
    assert len((await reader.changes(0)).rows) == 2
