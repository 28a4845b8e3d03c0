"""A Python program runs an app: it sends commands, reads rows, and follows changes and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
from tests.support.bank_api import QUICK, app

from bank.accounts.domain import (
    AccountNotFound,
    AccountOpened,
    Deposit,
    FreezeAccount,
    InsufficientFunds,
    MoneyDeposited,
    OpenAccount,
    Withdraw,
)
from bank.accounts.views import AccountView
from bank.users.domain import RegisterUser
from headwater import Accepted, Command, ReadModel, RunningApp, Settings, replace
from headwater.domain.messages import InvalidInput, VersionConflict
from headwater.errors import DefinitionError, LogWentBack, SettingsError
from headwater.eventstore.epoch import Epoch
from headwater.live.watcher import ResetReason
from headwater.postgres.schema_version import SchemaMissing

T = TypeVar("T")


@pytest.fixture
async def bank(dsn: str) -> AsyncIterator[RunningApp]:
    async with app.run(replace(QUICK, database_url=dsn)) as bank:
        yield bank


async def accepted(bank: RunningApp, command: Command, **given: object) -> Accepted:
    done = await bank.execute(command, **given)  # type: ignore[arg-type]  # the keywords of `execute`
    assert isinstance(done, Accepted), done
    return done


async def opened(bank: RunningApp, *balances: int) -> list[UUID]:
    """Open an account with each balance."""
    accounts = [uuid4() for _ in balances]
    for account, balance in zip(accounts, balances, strict=True):
        await accepted(bank, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
        if balance:
            await accepted(bank, Deposit(account_id=account, amount=Decimal(balance)), actor=f"teller {balance}")
    return accounts


async def soon(step: AsyncIterator[T]) -> T:
    async with asyncio.timeout(10):
        return await anext(step)


async def test_a_command_is_accepted_and_its_row_is_read_at_its_position(bank: RunningApp) -> None:
    (account,) = await opened(bank, 0)
    deposit, command_id = Deposit(account_id=account, amount=Decimal("12.50")), uuid4()
    done = await accepted(bank, deposit, command_id=command_id, expected_version=1)
    assert (done.command_id, done.stream_id, done.version, done.position) == (command_id, account, 2, 2)

    row = await bank.get(AccountView, account, at_least=done)
    assert row is not None
    assert (row.balance, row.entry_count) == (Decimal("12.50"), 1)
    assert await accepted(bank, deposit, command_id=command_id) == done
    assert await bank.get(AccountView, uuid4()) is None


async def test_a_refusal_is_returned_and_so_is_a_field_out_of_bounds(bank: RunningApp) -> None:
    (account,) = await opened(bank, 5)
    refused = await bank.execute(Withdraw(account_id=account, amount=Decimal(7)))
    assert isinstance(refused, InsufficientFunds)
    assert refused.balance == Decimal(5)
    nobody = uuid4()
    missing = await bank.execute(Deposit(account_id=nobody, amount=Decimal(7)))
    assert isinstance(missing, AccountNotFound)
    conflict = await bank.execute(Deposit(account_id=account, amount=Decimal(7)), expected_version=1)
    assert isinstance(conflict, VersionConflict)
    assert (conflict.expected_version, conflict.actual_version) == (1, 2)
    invalid = await bank.execute(Deposit(account_id=account, amount=Decimal("-0.001")))
    assert isinstance(invalid, InvalidInput)
    assert invalid.path == ["amount"]


async def test_a_page_is_filtered_ordered_and_continued(bank: RunningApp) -> None:
    ids = await opened(bank, 3, 0, 9, 7)
    done = await accepted(bank, FreezeAccount(account_id=ids[2]))
    rich = {"or": [{"balance": {"gt": 5}}, {"account_id": {"in": [ids[0]]}}], "currency": {"eq": "EUR"}}
    first = await bank.page(AccountView, filter=rich, order_by="-balance", first=2, at_least=done)
    assert [row.account_id for row in first.rows] == [ids[2], ids[3]]
    assert first.cursor is not None
    last = await bank.page(AccountView, filter=rich, order_by="-balance", first=2, after=first.cursor)
    assert [row.account_id for row in last.rows] == [ids[0]]
    assert last.cursor is None
    frozen = await bank.page(AccountView, filter={"not": {"status": {"ne": last.rows[0].status}}})
    assert {row.account_id for row in frozen.rows} == {ids[0], ids[1], ids[3]}


async def test_a_watched_row_comes_now_and_with_each_change(bank: RunningApp) -> None:
    account = uuid4()
    rows = bank.watch(AccountView, account)
    assert await soon(rows) is None
    await accepted(bank, OpenAccount(account_id=account, owner_id=uuid4(), currency="EUR"))
    row = await soon(rows)
    assert row is not None
    assert row.balance == 0


async def test_watched_changes_begin_with_all_rows_and_are_resumed(bank: RunningApp) -> None:
    poor, rich = await opened(bank, 1, 9)
    await bank.get(AccountView, rich, at_least=4)
    changes = bank.watch(AccountView, filter={"balance": {"gt": 5}})
    first = await soon(changes)
    assert ([row.account_id for row in first.upserted], first.reset) == ([rich], ResetReason.SUBSCRIBED)

    await accepted(bank, Withdraw(account_id=rich, amount=Decimal(8)))
    second = await soon(changes)
    assert (second.upserted, second.removed, second.reset) == ([], [rich], None)

    assert first.position is not None
    again = await soon(bank.watch(AccountView, after=first.position))
    assert [(row.account_id, row.balance) for row in again.upserted] == [(rich, Decimal(1))]
    assert again.reset is None
    assert poor != rich


async def test_events_are_read_in_their_classes_by_stream_type_and_actor(bank: RunningApp) -> None:
    first, second = await opened(bank, 1, 2)
    everything = [event async for event in bank.events()]
    assert [type(event.data) for event in everything] == [AccountOpened, MoneyDeposited] * 2
    assert [event.position for event in everything] == [1, 2, 3, 4]

    deposits = [event async for event in bank.events(MoneyDeposited)]
    assert [(event.data.amount, event.actor) for event in deposits] == [
        (Decimal(1), "teller 1"),
        (Decimal(2), "teller 2"),
    ]
    assert [event.stream_id async for event in bank.events(actor="teller 2")] == [second]
    assert [event.version async for event in bank.events(stream_id=first, after=1)] == [2]


async def test_events_are_followed(bank: RunningApp) -> None:
    deposits = bank.events(MoneyDeposited, follow=True)
    (account,) = await opened(bank, 1)
    assert (await soon(deposits)).data.amount == 1
    await accepted(bank, Deposit(account_id=account, amount=Decimal(2)))
    assert (await soon(deposits)).data.amount == 2


async def test_iterations_end_when_the_app_is_closed(dsn: str) -> None:
    async with app.run(replace(QUICK, database_url=dsn)) as bank, asyncio.TaskGroup() as group:
        rows, events = bank.watch(AccountView, uuid4()), bank.events(follow=True)
        assert await soon(rows) is None

        async def left(iterator: AsyncIterator[object]) -> list[object]:
            return [each async for each in iterator]

        waiting = [group.create_task(left(rows)), group.create_task(left(events))]
        await asyncio.sleep(0)
        bank.close()
    assert [task.result() for task in waiting] == [[], []]


async def test_what_the_app_does_not_have_is_named(bank: RunningApp) -> None:
    class Unknown(ReadModel, key="thing_id"):
        thing_id: UUID

    class Undo(Command):
        thing_id: UUID

    with pytest.raises(DefinitionError, match="Unknown is a read model of no View of this app"):
        await bank.get(Unknown, uuid4())
    with pytest.raises(DefinitionError, match="Undo is a command of no decider of this app"):
        await bank.execute(Undo(thing_id=uuid4()))


async def test_a_position_of_another_log_is_refused(bank: RunningApp) -> None:
    done = await accepted(bank, RegisterUser(user_id=uuid4(), email="ada@example.com", name="Ada"))
    elsewhere = Accepted(done.command_id, done.stream_id, 1, 1, Epoch(1, "0123abcd", 0))
    with pytest.raises(LogWentBack):
        await bank.get(AccountView, uuid4(), at_least=elsewhere)


async def test_a_database_that_is_not_migrated_or_not_there_is_reported(blank_dsn: str, tmp_path: Path) -> None:
    with pytest.raises(SchemaMissing):
        async with app.run(blank_dsn):
            pass
    with pytest.raises(SettingsError, match="DATABASE_URL: the database cannot be reached"):
        async with app.run(Settings(database_url=f"postgresql:///nowhere?host={tmp_path}")):
            pass


async def test_without_a_database_the_embedded_one_is_started_and_migrated(data: Path) -> None:
    async with app.run(replace(QUICK, data=data)) as bank:
        (account,) = await opened(bank, 3)
        row = await bank.get(AccountView, account, at_least=2)
        assert row is not None
        assert row.balance == 3
