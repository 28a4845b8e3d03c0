"""Reactors on a real log: delivery at least once and in order, with receivers that fail, hang or recover."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec.structs import replace
from tests.support import posts
from tests.support.executing import accepted
from tests.support.posts import QUICK, Outside, Read, app_of, posted, view, write
from tests.support.waiting import until

from bank.accounts.domain import Deposit, OpenAccount, ReceiveTransfer, ReturnTransfer, SendTransfer, Withdraw
from bank.accounts.statements import append_once, statements
from bank.main import app as bank
from headwater import Retry
from headwater.cli import main
from headwater.consumers import dead_letters
from headwater.consumers.standings import read_standings
from headwater.errors import ReactionFailed
from headwater.ids import derived_id, new_id
from headwater.projections.generations import rebuild
from headwater.server.node import Node

Start: TypeAlias = Callable[..., Any]

UNIT = "reactor outside"
SOON = Retry(times=3, first=0.001, longest=0.01)


async def working(start: Start, *outside: Any) -> Node:
    """Start a worker that runs these reactors."""
    node: Node = await start(app_of(*outside), settings=QUICK, serve=False)
    return node


async def reached(node: Node, position: int) -> None:
    await until(lambda: node.worker.progress[UNIT].position >= position)


async def letters(connection: asyncpg.Connection) -> list[tuple[int, int, str | None, bool]]:
    """Return (position, attempts, first line of the error, True if a retry is planned) of each letter, in order."""
    rows = await connection.fetch("select * from headwater.dead_letters order by position")
    return [
        (r["position"], r["attempts"], r["error"] and r["error"].splitlines()[0], r["next_attempt_at"] is not None)
        for r in rows
    ]


async def letters_are(connection: asyncpg.Connection, expected: list[Any]) -> bool:
    return await letters(connection) == expected


async def stands_at(connection: asyncpg.Connection, unit: str = UNIT) -> int:
    position = await connection.fetchval("select position from headwater.projections where name = $1", unit)
    assert isinstance(position, int)
    return position


# In order ------------------------------------------------------------------------------------------------------------


async def test_events_are_delivered_in_the_order_of_their_stream(start: Start, connection: asyncpg.Connection) -> None:
    outside, boxes = Outside(), [uuid4() for _ in range(7)]
    node = await working(start, outside.reactor())
    events = [posted(boxes[n % 7], str(n)) for n in range(350)]
    head = await write(connection, *events[:200], Read(box_id=boxes[0]), *events[200:])
    await reached(node, head)
    assert {box: outside.of(box) for box in boxes} == {
        box: [str(n) for n in range(350) if boxes[n % 7] == box] for box in boxes
    }
    ids = await connection.fetch("select event_id, data ->> 'note' as note from headwater.events where type = 'Posted'")
    assert {note: key for _, note, key in outside.got} == {
        row["note"]: str(derived_id(row["event_id"], UNIT)) for row in ids
    }


async def test_order_delivers_the_events_of_several_streams_one_after_another(
    start: Start, connection: asyncpg.Connection
) -> None:
    outside, to, other = Outside(raises={"a": ConnectionError("down")}), uuid4(), uuid4()
    node = await working(start, outside.reactor(order=lambda event: event.to, on_failure=Retry(times=0)))
    head = await write(connection, posted(uuid4(), "a", to), posted(uuid4(), "b", to), posted(uuid4(), "c", other))
    await reached(node, head)
    assert outside.notes == ["c"]
    outside.raises.clear()
    await dead_letters.retry(connection, dead_letters.LetterFilter(UNIT, str(to)))
    await until(lambda: outside.notes == ["c", "a", "b"])


def no_order(event: Any) -> UUID:
    if event.note == "raises":
        raise IsADirectoryError("as ZoneInfo raises")
    return {"none": None, "text": "a text"}.get(event.note, event.box_id)  # type: ignore[no-any-return]  # a mistake


@pytest.mark.parametrize(
    "note, said",
    [
        ("none", "TypeError: tests.consumers.test_reactor_runner.no_order returned None, not a UUID"),
        ("text", "TypeError: tests.consumers.test_reactor_runner.no_order returned 'a text', not a UUID"),
        ("raises", "IsADirectoryError: as ZoneInfo raises"),
    ],
)
async def test_an_event_whose_order_is_invalid_stops_the_reactor_before_it(
    start: Start, connection: asyncpg.Connection, note: str, said: str
) -> None:
    outside, box = Outside(), uuid4()
    node = await start(app_of(outside.reactor(order=no_order)), settings=QUICK, serve=False)
    await write(connection, Read(box_id=box), posted(box, "0"), Read(box_id=box), posted(box, note), posted(box, "1"))
    await until(lambda: UNIT in node.supervisor.troubles)
    why = f"KeyUnknown: the key of Posted at position 4 is not known: {said}"
    assert node.supervisor.troubles[UNIT] == why
    assert why in (await node.troubles())[UNIT], "in readiness"
    assert (outside.notes, await stands_at(connection)) == (["0"], 3)


# When the outside fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, said",
    [
        (ConnectionRefusedError("nobody there"), "ConnectionRefusedError: nobody there"),
        (TimeoutError("no answer"), "TimeoutError: no answer"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
        (asyncpg.InterfaceError("its database"), "InterfaceError: its database"),
        (asyncio.CancelledError(), "RuntimeError: what it waited for was cancelled"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
async def test_a_failure_delays_only_its_own_key_and_is_parked_after_the_last_retry(
    start: Start, connection: asyncpg.Connection, error: BaseException, said: str
) -> None:
    outside, one, other = Outside(raises={"bad": error}), uuid4(), uuid4()
    node = await working(start, outside.reactor(on_failure=SOON))
    notes = ["0", "bad", "2", "3"]
    head = await write(connection, *(posted(one, note) for note in notes), *(posted(other, n) for n in "01234"))
    await until(lambda: letters_are(connection, [(2, 4, said, False), (3, 0, None, False), (4, 0, None, False)]))
    await reached(node, head)
    assert (outside.of(one), outside.of(other)) == (["0"], [*"01234"])
    assert outside.tried.count("bad") == 4
    (letter,) = await connection.fetch("select error, traceback_hash from headwater.dead_letters where position = 2")
    assert letter["error"].splitlines()[-1].startswith("  posts.py:"), "where it was raised"
    assert len(letter["traceback_hash"]) == 16
    assert node.worker.progress[UNIT].parked_keys == 1


async def test_after_an_operators_retry_the_waiting_events_follow_in_order(
    start: Start, connection: asyncpg.Connection
) -> None:
    outside, one, other = Outside(raises={"down": ConnectionError("down")}), uuid4(), uuid4()
    node = await working(start, outside.reactor(on_failure=SOON))
    await write(connection, posted(one, "down"), posted(other, "0"), *(posted(one, str(n)) for n in range(30)))
    await until(lambda: node.worker.progress[UNIT].retries == 3)
    head = await write(connection, posted(one, "last"), posted(other, "1"))
    await until(lambda: outside.of(other) == ["0", "1"])
    await reached(node, head)
    assert outside.of(one) == []
    outside.raises.clear()
    assert await dead_letters.retry(connection, dead_letters.LetterFilter(UNIT)) == 1
    await until(lambda: letters_are(connection, []))
    assert outside.of(one) == ["down", *map(str, range(30)), "last"]
    await write(connection, posted(one, "after"))
    await until(lambda: outside.of(one)[-1] == "after")


async def test_a_passing_failure_is_resolved_by_a_retry(start: Start, connection: asyncpg.Connection) -> None:
    outside, box = Outside(raises={"down": ConnectionError("down")}), uuid4()
    node = await working(start, outside.reactor(on_failure=replace_times(SOON, 1000)))
    await write(connection, posted(box, "down"), posted(box, "next"))
    await until(lambda: node.worker.progress[UNIT].retries >= 2)
    outside.raises.clear()
    await until(lambda: outside.notes == ["down", "next"])
    await until(lambda: letters_are(connection, []))


def replace_times(policy: Retry, times: int) -> Retry:
    return Retry(times=times, first=policy.first, longest=policy.longest)


async def test_a_slow_reaction_is_cancelled(start: Start, connection: asyncpg.Connection) -> None:
    outside, one, other = Outside(held={"slow"}), uuid4(), uuid4()
    reactor = outside.reactor(within=timedelta(milliseconds=50), on_failure=Retry(times=0))
    node = await working(start, reactor)
    head = await write(connection, posted(one, "slow"), posted(other, "quick"))
    await reached(node, head)
    assert (outside.cancelled, outside.notes) == (["slow"], ["quick"])
    assert await letters(connection) == [(1, 1, "TimeoutError: it took longer than 0.05 s", False)]
    text = await connection.fetchval("select error from headwater.dead_letters")
    assert "posts.py" in text, "where it stood"


async def test_keys_that_are_retried_do_not_wait_for_each_other(start: Start, connection: asyncpg.Connection) -> None:
    """Otherwise a receiver that is down would delay everything by the timeouts of all its keys together."""
    outside, boxes = Outside(raises={"down": ConnectionError("down")}), [uuid4() for _ in range(10)]
    node = await working(start, outside.reactor(on_failure=Retry(times=0), within=timedelta(hours=1)))
    await reached(node, await write(connection, *(posted(box, "down") for box in boxes)))
    outside.tried.clear()
    outside.held.add("down")
    assert await dead_letters.retry(connection, dead_letters.LetterFilter(UNIT)) == 10
    await until(lambda: len(outside.tried) == 10)


async def test_keys_that_are_retried_delay_no_other_keys(start: Start, connection: asyncpg.Connection) -> None:
    """However many keys get no answer, new events of other keys and retries of other keys go on."""
    outside, boxes, well = Outside(raises={"down": ConnectionError("down")}), [uuid4() for _ in range(15)], uuid4()
    node = await working(start, outside.reactor(on_failure=Retry(times=0), within=timedelta(hours=1)))
    await reached(node, await write(connection, *(posted(box, "down") for box in boxes), posted(well, "down")))
    outside.held.add("down")
    for box in boxes:
        await dead_letters.retry(connection, dead_letters.LetterFilter(UNIT, str(box)))
    await until(lambda: outside.tried.count("down") == 31)
    await reached(node, await write(connection, posted(uuid4(), "quick"), posted(well, "behind")))
    assert outside.notes == ["quick"]
    outside.held.clear()
    outside.raises.clear()
    await dead_letters.retry(connection, dead_letters.LetterFilter(UNIT, str(well)))
    await until(lambda: outside.of(well) == ["down", "behind"])
    await reached(node, await write(connection, posted(well, "after")))
    assert outside.of(well) == ["down", "behind", "after"]


async def test_events_that_arrive_while_their_key_is_retried_follow_in_order(
    start: Start, connection: asyncpg.Connection
) -> None:
    outside, box = Outside(raises={"down": ConnectionError("down")}), uuid4()
    reactor = outside.reactor(on_failure=replace_times(SOON, 1000), within=timedelta(milliseconds=200))
    node = await working(start, reactor)
    await write(connection, posted(box, "down"))
    outside.held.add("down")
    await until(lambda: outside.cancelled)
    for number in range(5):
        await reached(node, await write(connection, posted(box, str(number))))
    assert outside.notes == []
    outside.held.clear()
    outside.raises.clear()
    await until(lambda: outside.notes == ["down", *"01234"])
    await until(lambda: letters_are(connection, []))


async def test_a_key_that_is_parked_again_during_its_retry_stays_parked(
    start: Start, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saga does so when a step fails while an event is retried.

    The step's letter is written after the outcome of the event, which would otherwise remove it. Later events wait for
    the letter.
    """
    box, taken = uuid4(), list[str]()
    trying, tried = asyncio.Event(), asyncio.Event()

    async def take(key: UUID, event: Any) -> None:
        taken.append(event.data.note)
        if taken == ["down"]:
            raise ReactionFailed(ConnectionError("down"))
        if taken == ["down", "down"]:
            assert not runner.parked.is_parked(key)
            runner.parked.set_aside(key, event.position, RuntimeError("a step"), 7)
            assert runner.parked.is_parked(key)
            trying.set()
            await tried.wait()

    node = await working(start, Outside().reactor(on_failure=SOON))
    [runner] = node.worker.reacting.values()
    monkeypatch.setattr(runner.handler, "take", take)
    await write(connection, posted(box, "down"))
    await trying.wait()
    await reached(node, await write(connection, posted(box, "behind"), posted(uuid4(), "other")))
    tried.set()
    await until(lambda: letters_are(connection, [(1, 7, "RuntimeError: a step", False), (2, 0, None, False)]))
    await reached(node, await write(connection, posted(uuid4(), "more")))
    assert taken == ["down", "down", "other", "more"]


async def test_retries_are_cancelled_when_the_worker_ends(dsn: str, connection: asyncpg.Connection) -> None:
    outside, box = Outside(raises={"down": ConnectionError("down")}), uuid4()
    async with Node(app_of(outside.reactor(within=timedelta(hours=1))), QUICK, dsn, serve=False, work=True) as node:
        await reached(node, await write(connection, posted(box, "down")))
        outside.held.add("down")
        await until(lambda: len(outside.tried) == 2)
    assert outside.cancelled == ["down"]
    assert await letters(connection) == [(1, 1, "ConnectionError: down", True)]


async def test_retries_are_cancelled_when_the_lease_is_lost(start: Start, connection: asyncpg.Connection) -> None:
    outside, box = Outside(raises={"down": ConnectionError("down")}), uuid4()
    node = await working(start, outside.reactor(within=timedelta(hours=1)))
    await reached(node, await write(connection, posted(box, "down")))
    outside.held.add("down")
    await until(lambda: len(outside.tried) == 2)
    await connection.execute("update headwater.projections set fence = fence + 1 where name = $1", UNIT)
    await write(connection, posted(uuid4(), "quick"))
    await until(lambda: outside.cancelled == ["down"])


async def test_a_slow_receiver_does_not_affect_readiness(start: Start, connection: asyncpg.Connection) -> None:
    outside = Outside(held={"slow"})
    settings = replace(QUICK, ready_lag_seconds=0.001)
    node: Node = await start(app_of(outside.reactor()), settings=settings)
    await write(connection, posted(uuid4(), "slow"))

    async def only_it_is_late() -> bool:
        return (await read_standings(node.database.pool)).late(0.001) == [UNIT]

    await connection.execute("delete from headwater.projections where name in ('Account', 'Transfer', 'User')")
    await until(only_it_is_late)
    assert await node.troubles() == {}


# At least once -------------------------------------------------------------------------------------------------------


@pytest.mark.kills
async def test_events_are_delivered_again_with_the_same_keys_after_a_kill(
    start: Start, dsn: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    file, box = tmp_path / "reached", uuid4()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(sys.executable, posts.__file__, dsn, f"{file}", env=environment)
    try:
        query = "select count(*) from headwater.projections where name = $1 and owner is not null"
        await until(lambda: connection.fetchval(query, UNIT))
        head = await write(connection, *(posted(box, note) for note in ("first", "second", "stay", "last")))
        await until(lambda: file.exists() and file.read_text().count("\n") == 3)
    finally:
        process.kill()
        assert await process.wait() == -signal.SIGKILL, "it ended by itself"
    assert await stands_at(connection) < 3
    before = [tuple(line.split()) for line in file.read_text().splitlines()]

    outside = Outside()
    node = await working(start, outside.reactor())
    await reached(node, head)
    after = [(note, key) for _, note, key in outside.got]
    assert [note for note, _ in before] == ["first", "second", "stay"]
    assert [note for note, _ in after] == ["first", "second", "stay", "last"][4 - len(after) :]
    assert ("stay", before[2][1]) in after, "the same key"
    assert len({*before, *after}) == 4, "each is one delivery, however often it comes"


async def test_dead_letters_of_a_reactor_survive_a_restart(dsn: str, connection: asyncpg.Connection) -> None:
    outside, box = Outside(raises={"down": ConnectionError("down")}), uuid4()
    async with Node(app_of(outside.reactor()), QUICK, dsn, serve=False, work=True) as node:
        await reached(node, await write(connection, posted(box, "down"), posted(box, "behind")))
    outside.raises.clear()
    async with Node(app_of(outside.reactor()), QUICK, dsn, serve=False, work=True):
        await until(lambda: outside.notes == ["down", "behind"])


# From where on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_start", [False, True])
async def test_a_new_reactor_begins_at_the_end_of_the_log_unless_from_start(
    start: Start, connection: asyncpg.Connection, from_start: bool
) -> None:
    outside, box = Outside(), uuid4()
    await write(connection, posted(box, "old"))
    node = await working(start, outside.reactor(from_start=from_start))
    await reached(node, await write(connection, posted(box, "new")))
    assert outside.notes == (["old", "new"] if from_start else ["new"])


async def test_migrate_registers_a_reactor_at_the_end_of_the_log(
    start: Start, dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", dsn)
    outside, box = Outside(), uuid4()
    head = await write(connection, posted(box, "before"))
    for _ in range(2):
        assert await asyncio.to_thread(main, ("migrate", "--app", "tests.support.posts:app")) == 0
        head = await write(connection, posted(box, "between"))
    await reached(await working(start, outside.reactor()), head)
    assert outside.notes == ["between", "between"]


async def test_a_rebuild_of_a_read_model_calls_no_reactor(start: Start, connection: asyncpg.Connection) -> None:
    outside, box = Outside(), uuid4()
    node = await working(start, outside.reactor())
    await reached(node, await write(connection, *(posted(box, str(n)) for n in range(10))))
    await rebuild(connection, view)
    live = "select count(*) from headwater.projections where name = 'Box' and generation = 2 and state = 'live'"
    await until(lambda: connection.fetchval(live))
    assert await connection.fetchval("select count from read.box") == 10
    await reached(node, await write(connection, posted(box, "after")))
    assert outside.notes == [*map(str, range(10)), "after"]


# The bank's ----------------------------------------------------------------------------------------------------------


async def test_the_banks_statement_has_each_movement_once(
    dsn: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BANK_STATEMENTS", f"{tmp_path}")
    account = new_id()
    file, unit = tmp_path / f"{account}.csv", statements.unit
    async with Node(bank, QUICK, dsn, serve=True, work=True) as node:
        execute = partial(accepted, node)
        await execute(OpenAccount(account_id=account, owner_id=new_id(), currency="EUR"))
        await execute(Deposit(account_id=account, amount=Decimal("5.00")))
        await execute(Withdraw(account_id=account, amount=Decimal("1.50")))
        moved: Any = {"account_id": account, "transfer_id": new_id()}
        await execute(ReceiveTransfer(**moved, amount=Decimal("0.25"), currency="EUR"))
        await execute(SendTransfer(**moved, amount=Decimal("0.75")))
        done = await execute(ReturnTransfer(**moved, amount=Decimal("0.75")))
        await until(lambda: node.worker.progress[unit].position >= done.position)
    once = file.read_text()
    assert [line.split(",")[2:] for line in once.splitlines()] == [
        ["deposit", "5.00", "5.00"],
        ["withdrawal", "1.50", "3.50"],
        ["transfer received", "0.25", "3.75"],
        ["transfer sent", "0.75", "3.00"],
        ["transfer returned", "0.75", "3.75"],
    ]
    await connection.execute("update headwater.projections set position = 0 where name = $1", unit)
    with file.open("a") as torn:
        torn.write("half a li")
    async with Node(bank, QUICK, dsn, serve=True, work=True) as node:
        await until(lambda: node.worker.progress[unit].position >= done.position)
        assert file.read_text() == once
        done = await accepted(node, Deposit(account_id=account, amount=Decimal(2)))
        await until(lambda: node.worker.progress[unit].position >= done.position)
    assert file.read_text().startswith(once)
    assert file.read_text().count("\n") == 6


def contents(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_the_bank_writes_no_statements_without_a_folder(
    dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BANK_STATEMENTS", raising=False)
    monkeypatch.chdir(tmp_path)
    account = new_id()
    async with Node(bank, QUICK, dsn, serve=True, work=True) as node:
        await accepted(node, OpenAccount(account_id=account, owner_id=new_id(), currency="EUR"))
        done = await accepted(node, Deposit(account_id=account, amount=Decimal(5)))
        await until(lambda: node.worker.progress[statements.unit].position >= done.position)
        assert await node.troubles() == {}
    assert contents(tmp_path) == []


def test_a_long_statement_is_searched_from_its_end(tmp_path: Path) -> None:
    file, keys = tmp_path / "long.csv", [f"{UUID(int=n)}" for n in range(6000)]
    file.write_text("".join(f"{key},something that was written before\n" for key in keys))
    assert file.stat().st_size > 256 * 1024
    append_once(file, keys[-1], f"{keys[-1]},again")
    append_once(file, keys[-500], f"{keys[-500]},again")
    assert file.read_text().count("\n") == 6000
    append_once(file, "new", "new,line")
    assert file.read_text().splitlines()[-2:] == [f"{keys[-1]},something that was written before", "new,line"]
