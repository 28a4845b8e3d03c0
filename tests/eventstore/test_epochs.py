"""A new epoch begins when the log may have lost its end, and only then; what rests on a lost part is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from tests.support.executing import accepted
from tests.support.log import lose_after
from tests.support.waiting import answered, until

from bank.accounts.domain import Deposit, InsufficientFunds, OpenAccount, Withdraw
from bank.main import app as bank
from headwater.config import Settings
from headwater.errors import LogWentBack
from headwater.eventstore.epoch import EarlierServer, EpochEnded, Epochs, Known, Place
from headwater.eventstore.log import Append, append
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.server.node import Node

QUICK = Settings(poll_seconds=0.2, lease_seconds=1.0)


def marked(stream_id: UUID, expected: int | None, epoch: int | None, *events: tuple[str, int, str]) -> Append:
    command_id = uuid4()
    return Append(command_id, stream_id, "c", expected, events or [("Marked", 1, "{}")], command_id, epoch=epoch)


async def entered(connection: asyncpg.Connection) -> Epochs:
    epochs = Epochs()
    await epochs.enter(connection)
    return epochs


async def postgres_program(postgres: EmbeddedPostgres, program: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        postgres.binaries / program, *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")


async def test_the_first_process_adopts_the_server_and_later_ones_find_the_same_epoch(
    connection: asyncpg.Connection,
) -> None:
    first, second = await entered(connection), await entered(connection)
    assert first.current == second.current
    assert (first.current.number, first.current.start) == (1, 0)


async def test_a_copy_of_the_database_begins_a_new_epoch_that_two_processes_agree_on(
    dsn: str, connection: asyncpg.Connection
) -> None:
    original = (await entered(connection)).current
    await append(connection, [marked(uuid4(), 0, 1)])
    await connection.execute("update headwater.epochs set server = 'another/00000001/1'")  # as the copy finds it
    others = [await asyncpg.connect(dsn) for _ in range(4)]
    found = [epochs.current for epochs in await asyncio.gather(*map(entered, others))]
    assert {each.number for each in found} == {2}
    assert len({each.tag for each in found} | {original.tag}) == 2
    assert found[0].start == 1
    for each in others:
        await each.close()


@pytest.mark.parametrize("plain", [True, False])
async def test_an_append_of_an_earlier_epoch_writes_nothing(connection: asyncpg.Connection, plain: bool) -> None:
    await entered(connection)
    await connection.execute("select headwater.begin_epoch(1, 'a test')")
    with pytest.raises(EpochEnded):
        await append(connection, [marked(uuid4(), 0 if plain else None, 1)])
    assert await connection.fetchval("select position from headwater.head") == 0
    assert (await append(connection, [marked(uuid4(), 0 if plain else None, 2)]))[0].position == 1


@pytest.mark.parametrize("plain", [True, False])
async def test_an_append_on_another_timeline_writes_nothing(connection: asyncpg.Connection, plain: bool) -> None:
    """A connection that outlives the promotion of its server does not learn of the epoch."""
    await entered(connection)
    await connection.execute("update headwater.head set timeline = '00000099'")
    with pytest.raises(EpochEnded):
        await append(connection, [marked(uuid4(), 0 if plain else None, 1)])
    assert await connection.fetchval("select count(*) from headwater.events") == 0


async def test_a_server_that_lacks_a_known_command_begins_a_new_epoch(connection: asyncpg.Connection) -> None:
    """The files of an earlier time were restored: server, timeline and database are the same."""
    epochs = await entered(connection)
    written = [marked(uuid4(), 0, 1) for _ in range(4)]
    await append(connection, written)
    heard: list[int] = []
    epochs.on_change(lambda epoch: heard.append(epoch.number))
    known = [Known(at, each.stream_id, 1, each.command_id, None) for at, each in enumerate(written, 1)]
    for each in known:
        epochs.remember([each], epochs.current)
    first = epochs.current
    await epochs.enter(connection)
    assert (heard, epochs.current) == ([], first), "it is there"
    await lose_after(connection, 2)
    await append(connection, [marked(uuid4(), 0, 1) for _ in range(4)])  # others have gone on, beyond what was known
    await epochs.enter(connection)
    assert heard == [2]
    # Positions 3 and 4 are now of other events, though the log ends at 6.
    assert (epochs.current.start, epochs.limit(first.tag)) == (2, 2)


async def test_nothing_of_a_log_stays_valid_in_which_nothing_known_is_left(connection: asyncpg.Connection) -> None:
    epochs = await entered(connection)
    written = [marked(uuid4(), 0, 1) for _ in range(2)]
    await append(connection, written)
    epochs.remember([Known(2, written[1].stream_id, 1, written[1].command_id, None)], epochs.current)
    await lose_after(connection, 1)
    await append(connection, [marked(uuid4(), 0, 1) for _ in range(2)])
    await epochs.enter(connection)
    assert (epochs.current.number, epochs.current.start) == (2, 0)


async def test_a_dump_that_replaces_the_log_in_its_own_database_begins_a_new_epoch(
    dsn: str, connection: asyncpg.Connection, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    """Server, timeline and database are the same, and no process remembers anything."""
    first = (await entered(connection)).current
    await append(connection, [marked(uuid4(), 0, 1)])
    dump = str(tmp_path / "dump")
    await postgres_program(postgres, "pg_dump", "--format=custom", f"--file={dump}", dsn)
    await append(connection, [marked(uuid4(), 0, 1)])
    await postgres_program(postgres, "pg_restore", "--clean", "--exit-on-error", f"--dbname={dsn}", dump)
    for plain in (True, False):  # of a process that did not notice, since its connection is still open
        with pytest.raises(EpochEnded):
            await append(connection, [marked(uuid4(), 0 if plain else None, 1)])
    epochs = await entered(connection)
    assert (epochs.current.number, epochs.current.start, epochs.limit(first.tag)) == (2, 1, 1)
    assert (await append(connection, [marked(uuid4(), 0, 2)]))[0].position == 2
    assert (await entered(connection)).current == epochs.current


async def test_a_server_whose_epoch_has_ended_is_refused(connection: asyncpg.Connection) -> None:
    epochs = await entered(connection)
    await connection.execute("select headwater.begin_epoch(1, 'a test')")
    await epochs.enter(connection)
    await connection.execute("delete from headwater.epochs where epoch = 2")
    await connection.execute("update headwater.head set epoch = 1")  # the former primary, started again
    with pytest.raises(EarlierServer, match="followed by 2"):
        await epochs.enter(connection)
    assert epochs.current.number == 2


async def test_positions_up_to_the_start_of_an_epoch_stay_valid(dsn: str, connection: asyncpg.Connection) -> None:
    epochs = await entered(connection)
    first = epochs.current
    await append(connection, [marked(uuid4(), 0, 1) for _ in range(3)])
    await connection.execute("select headwater.begin_epoch(1, 'a test')")
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    assert await epochs.resolve(first.place(99), pool) == 99, "the process has not heard of the new epoch"
    second = (await entered(connection)).current
    assert await epochs.resolve(second.place(7), pool) == 7, "it asks when a client knows more"
    assert await epochs.resolve(first.place(3), pool) == 3
    for place, again_from in ((first.place(4), second.place(3)), (Place("00000000", 1), Place(None, 0))):
        with pytest.raises(LogWentBack) as error:
            await epochs.resolve(place, pool)
        assert error.value.facts == {"position": again_from.spell()}
    await pool.close()


async def test_a_process_that_lost_its_end_of_the_log_says_so_and_forgets_it(
    start: Callable[..., Awaitable[Node]], connection: asyncpg.Connection
) -> None:
    """The files of an earlier time were restored under a running process."""
    node = await start(bank, settings=QUICK)
    account = uuid4()
    await accepted(node, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    lost_id = uuid4()
    await accepted(node, Deposit(account_id=account, amount=Decimal(100)), command_id=lost_id)
    await until(lambda: node.positions.known("Account") == 2)
    await lose_after(connection, 1)
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where pid <> pg_backend_pid() and datname = current_database()"
    )
    await until(lambda: node.positions.epochs.current.number == 2)
    answer = await answered(lambda: node.dispatcher.execute(Withdraw(account_id=account, amount=Decimal(1))))
    assert answer == InsufficientFunds(balance=Decimal(0))
    await until(lambda: connection.fetchval("select balance = 0 from read.account where account_id = $1", account))
    lost = await until(lambda: connection.fetch("select position, type, command_id from headwater.lost"))
    assert {row["command_id"] for row in lost} <= {lost_id}
    assert {row["position"] for row in lost} <= {2}


async def test_a_new_epoch_is_one_line_in_the_log(
    start: Callable[..., Awaitable[Node]], connection: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The process ends its connections itself: that is no failure of its parts."""
    node = await start(bank, settings=QUICK)
    account = uuid4()
    await node.dispatcher.execute(OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    await until(lambda: node.positions.known("Account") == 1)
    await connection.execute("select headwater.begin_epoch(1, 'a test')")
    await answered(lambda: node.dispatcher.execute(Deposit(account_id=account, amount=Decimal(100))))
    await until(lambda: node.positions.known("Account") == 2)  # by a lease that was claimed again
    (line,) = [each.getMessage() for each in caplog.records if each.levelname != "INFO"]
    assert line.startswith("the log went back: epoch 2 begins after position 1")


async def test_what_is_lost_is_named(connection: asyncpg.Connection, dsn: str) -> None:
    epochs = await entered(connection)
    first, known = epochs.current, Known(5, uuid4(), 2, uuid4(), "Deposit")
    epochs.remember([known], first)
    await connection.execute("select headwater.begin_epoch(1, 'a test')")
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=1)
    reporting = asyncio.create_task(epochs.report_lost(pool, "host/1"))
    await epochs.refresh(pool)
    for position in (5, 9):
        with pytest.raises(LogWentBack):
            await epochs.resolve(first.place(position), pool)
    await until(lambda: connection.fetchval("select count(*) = 2 from headwater.lost"))
    rows = await connection.fetch("select position, stream_id, version, command_id, type, known_by from headwater.lost")
    assert sorted(map(tuple, rows)) == [
        (5, known.stream_id, 2, known.command_id, "Deposit", "host/1"),
        (9, None, None, None, None, "host/1"),
    ]
    reporting.cancel()
    await asyncio.wait([reporting])
    await pool.close()
