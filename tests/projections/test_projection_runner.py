"""Projections into tables of the app's own: each event once, however it fails, and all again after a rebuild."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.ext.asyncio import AsyncConnection
from tests.support.projecting import QUICK, Counted, Poisoned, Removed, Start, tally_view, things, write
from tests.support.waiting import reached, until

from bank.accounts.domain import MoneyDeposited
from headwater import App, DefinitionError, Event, Feature, Park, Projection, Recorded, Stop
from headwater.cli import main
from headwater.consumers import dead_letters
from headwater.consumers.dead_letters import LetterFilter
from headwater.domain.failure_policy import OnFailure
from headwater.domain.serialization import stored_form
from headwater.eventstore.log import Append, append
from headwater.server.node import Node

UNIT = "projection seen"
PAGE = Path(__file__).parents[2] / "docs" / "own-tables.md"


class Seen:
    """A projection that notes each event in a table. broken: it fails on Poisoned. calls: the sizes of its batches."""

    def __init__(self) -> None:
        self.broken = True
        self.calls: list[int] = []

    async def handle(self, connection: AsyncConnection, batch: Sequence[Recorded[Counted | Poisoned]]) -> None:
        self.calls.append(len(batch))
        for event in batch:
            added = sa.text("insert into seen (position, key) values (:position, :key)")
            await connection.execute(added, {"position": event.position, "key": event.stream_id})
            if self.broken and isinstance(event.data, Poisoned):
                await connection.execute(sa.text("select 1 / 0"))

    async def reset(self, connection: AsyncConnection) -> None:
        await connection.execute(sa.text("delete from seen"))

    def app(self, on_failure: OnFailure) -> App:
        events: list[type[Event]] = [Counted, Poisoned]
        projection: Projection[Any] = Projection("seen", events, self.handle, self.reset, on_failure=on_failure)
        return App([Feature([things], projections=[projection])])


@pytest.fixture
async def table(connection: asyncpg.Connection) -> Any:
    """Make the table. Returns a function that reads its positions."""
    await connection.execute("create table seen (position bigint primary key, key uuid)")

    async def positions() -> list[int]:
        return [row[0] for row in await connection.fetch("select position from seen order by position")]

    return positions


async def standing(connection: asyncpg.Connection) -> tuple[int, str | None]:
    row = await connection.fetchrow("select position, failure from headwater.projections where name = $1", UNIT)
    assert row is not None
    return row["position"], row["failure"]


async def working(start: Start, app: App) -> Node:
    return await start(app, settings=replace(QUICK, poll_seconds=0.05), serve=False)


async def test_a_failing_event_is_parked_alone_and_all_others_are_written_once(
    start: Start, connection: asyncpg.Connection, table: Any
) -> None:
    seen, one, other = Seen(), uuid4(), uuid4()
    events = [Counted(thing_id=one), Poisoned(thing_id=one), Removed(thing_id=one), Counted(thing_id=one)]
    head = await write(connection, *events, Counted(thing_id=other))
    node = await working(start, seen.app(Park()))
    await reached(node.positions, UNIT, head)
    assert await table() == [1, 5]
    assert seen.calls == [4, 1, 1, 1], "first the batch, then its events without the one that waits"
    letters = await connection.fetch("select key, position, error from headwater.dead_letters order by position")
    assert [(row["key"], row["position"]) for row in letters] == [(str(one), 2), (str(one), 4)]
    assert "division by zero" in letters[0]["error"]

    seen.broken = False
    await dead_letters.retry(connection, LetterFilter(UNIT))
    await until(lambda: node.worker.progress[UNIT].parked_keys == 0)
    assert await table() == [1, 2, 4, 5]
    head = await write(connection, Poisoned(thing_id=one), Counted(thing_id=other))
    await reached(node.positions, UNIT, head)
    assert await table() == [1, 2, 4, 5, 6, 7]


async def test_stop_halts_before_the_event_with_everything_before_it_written(
    start: Start, connection: asyncpg.Connection, table: Any
) -> None:
    seen, key = Seen(), uuid4()
    head = await write(connection, Counted(thing_id=key), Counted(thing_id=key), Poisoned(thing_id=key))
    node = await working(start, seen.app(Stop()))

    async def halted() -> bool:
        position, failure = await standing(connection)
        return position == 2 and failure is not None and "Poisoned at position 3 raised" in failure

    await until(halted)
    assert await table() == [1, 2]
    seen.broken = False
    await reached(node.positions, UNIT, head)
    assert await table() == [1, 2, 3]
    assert await standing(connection) == (3, None)


async def test_a_lost_connection_repeats_the_batch_and_is_no_failure(
    start: Start, connection: asyncpg.Connection, table: Any
) -> None:
    seen, key, ended = Seen(), uuid4(), False
    handle = seen.handle

    async def losing(of: AsyncConnection, batch: Sequence[Recorded[Counted]]) -> None:
        nonlocal ended
        await handle(of, batch)
        if not ended:
            ended = True
            await of.execute(sa.text("select pg_terminate_backend(pg_backend_pid())"))

    seen.handle = losing  # type: ignore[assignment, method-assign]  # the function under test
    node = await working(start, seen.app(Park()))
    head = await write(connection, Counted(thing_id=key), Counted(thing_id=key))
    await reached(node.positions, UNIT, head)
    assert ended
    assert await table() == [1, 2]
    assert await connection.fetchval("select count(*) from headwater.dead_letters") == 0


async def test_the_example_of_the_guide_is_rebuilt_by_the_command(
    start: Start,
    dsn: str,
    connection: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    more = """
from bank.accounts.feature import accounts
from bank.users.feature import users
from headwater import App
app = App([users, accounts, feature])
"""
    (tmp_path / "guide_of_own_tables.py").write_text(code + more, encoding="utf-8")
    namespace: dict[str, Any] = {}
    exec(compile(code + more, str(PAGE), "exec"), namespace)
    await connection.execute("create schema mine; create table mine.turnover (day date primary key, moved numeric)")
    node = await working(start, namespace["app"])
    account = uuid4()
    moved = [MoneyDeposited(account_id=account, amount=Decimal(n), balance=Decimal(n)) for n in (1, 2)]
    appends = [Append(uuid4(), account, "account", None, [stored_form(each)], uuid4()) for each in moved]
    head = (await append(connection, appends))[-1].position
    await reached(node.positions, "projection turnover", head)
    assert await connection.fetchval("select moved from mine.turnover") == 3

    await connection.execute("update mine.turnover set moved = 1000")
    command = ("rebuild", "turnover", "--app", "guide_of_own_tables:app")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", dsn)
    assert await asyncio.to_thread(main, command) == 0
    assert capsys.readouterr().out == "The tables of turnover are emptied and written again, up to position 2.\n"
    assert await connection.fetchval("select moved from mine.turnover") == 3


async def handle(connection: AsyncConnection, batch: Sequence[Recorded[Counted]]) -> None: ...


async def reset(connection: AsyncConnection) -> None: ...


@pytest.mark.parametrize(
    "declared, said",
    [
        (partial(Projection, "seen", [], handle, reset), "must be a list of classes of events"),
        (
            partial(Projection, "seen", [Counted], handle, cast("Any", things.evolve)),
            "evolve must be an async function",
        ),
        (partial(Projection, "two words", [Counted], handle, reset), "A projection's name is letters, digits"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: Any, said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        declared()


def test_a_projection_shares_no_name_with_a_read_model_and_takes_events_of_the_app() -> None:
    with pytest.raises(DefinitionError, match="has the name of the read model Tally"):
        App([Feature([things], [tally_view], projections=[Projection("tally", [Counted], handle, reset)])])
    with pytest.raises(DefinitionError, match="takes MoneyDeposited, which no decider's evolve takes"):
        App([Feature([things], projections=[Projection("seen", [MoneyDeposited], handle, reset)])])
