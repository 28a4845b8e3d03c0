"""A repeated command returns its first result, and a command id is used for one command only."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from uuid import UUID

import asyncpg
import pytest
from tests.support.dispatching import Process, deposit, opened, register, state, withdraw

from bank.accounts.domain import Account, AccountStatus, FreezeAccount, MoneyDeposited, OpenAccount, UnfreezeAccount
from bank.users.domain import AlreadyExists
from headwater.commands.dispatcher import Accepted
from headwater.domain.serialization import stored_form
from headwater.errors import CommandIdReused
from headwater.eventstore.log import Append, append
from headwater.ids import new_id


async def test_a_repeated_command_returns_its_first_result(bank: Process, other: Process) -> None:
    account_id, command_id = await opened(bank), new_id()
    first = await bank(deposit(account_id, 5), command_id=command_id)
    assert (first.command_id, first.stream_id, first.version) == (command_id, account_id, 2)
    await bank(deposit(account_id, 1))
    assert await bank(deposit(account_id, 5), command_id=command_id) == first
    assert await other(deposit(account_id, 5), command_id=command_id) == first
    assert (await bank(deposit(account_id, 1))).version == 4
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(7), "EUR")


async def test_a_repeated_creation_is_not_refused_because_of_its_own_first_run(bank: Process, other: Process) -> None:
    command, command_id = register("ada@example.org"), new_id()
    first = await bank(command, command_id=command_id)
    assert await bank(command, command_id=command_id) == first
    assert await other(command, command_id=command_id, expected_version=0) == first
    assert await bank.ask(command, command_id=new_id()) == AlreadyExists()
    assert await bank.ask(command) == AlreadyExists()


async def test_a_repeated_command_without_events_returns_its_first_result(
    bank: Process, other: Process, connection: asyncpg.Connection
) -> None:
    account_id, command_id = await opened(bank), new_id()
    command = UnfreezeAccount(account_id=account_id)
    first = await bank(command, command_id=command_id)
    assert (first.version, first.position) == (1, 1)
    await bank(FreezeAccount(account_id=account_id))
    # Decided again, it would return an event now.
    assert await bank(command, command_id=command_id) == first
    assert await other(command, command_id=command_id) == first
    assert (await state(bank, account_id)).status is AccountStatus.FROZEN
    assert await connection.fetchval("select position from headwater.head") == 2


async def test_concurrent_copies_of_one_command_append_once(bank: Process, other: Process) -> None:
    account_id = await opened(bank, 10)
    command_id = new_id()
    # The account is empty after the first withdrawal, so a second one would be refused.
    answers = [each(withdraw(account_id, 10), command_id=command_id) for each in (bank, other) for _ in range(20)]
    assert set(await asyncio.gather(*answers)) == {Accepted(command_id, account_id, 3, 3)}
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(0), "EUR")


async def test_a_command_id_used_for_another_stream_is_refused(bank: Process, connection: asyncpg.Connection) -> None:
    one, two, command_id = await opened(bank), await opened(bank), new_id()
    await bank(deposit(one, 5), command_id=command_id)
    for command in (deposit(two, 5), withdraw(two, 5), deposit(new_id(), 5)):
        with pytest.raises(CommandIdReused, match=f"{command_id} was used before, for {one}; nothing was written"):
            await bank(command, command_id=command_id)
    assert await connection.fetchval("select count(*) from headwater.events") == 3


async def test_a_command_id_used_for_another_command_of_the_stream_is_refused(
    bank: Process, connection: asyncpg.Connection
) -> None:
    account, command_id, idle_id = await opened(bank, 20), new_id(), new_id()
    first = await bank(deposit(account, 5), command_id=command_id)
    with pytest.raises(CommandIdReused, match=f"{command_id} was used before, for Deposit; nothing was written"):
        await bank(withdraw(account, 5), command_id=command_id)
    assert await bank(deposit(account, 5), command_id=command_id) == first
    owner = await connection.fetchval("select data ->> 'owner_id' from headwater.events where version = 1")
    same = OpenAccount(account_id=account, owner_id=UUID(owner), currency="EUR")
    with pytest.raises(CommandIdReused, match="for Deposit"):
        await bank(same, command_id=command_id)
    await bank(UnfreezeAccount(account_id=account), command_id=idle_id)  # no event: the account is not frozen
    with pytest.raises(CommandIdReused, match=f"{idle_id} was used before, for UnfreezeAccount"):
        await bank(FreezeAccount(account_id=account), command_id=idle_id)
    assert await state(bank, account) == Account(AccountStatus.OPEN, Decimal(25), "EUR")


async def test_the_id_of_a_record_of_headwater_is_refused(bank: Process, connection: asyncpg.Connection) -> None:
    """Only a record has no command name; a command with its id must not return the record's place as its result."""
    account_id, command_id = await opened(bank), new_id()
    event = MoneyDeposited(account_id=account_id, amount=Decimal(5), balance=Decimal(5))
    await append(connection, [Append(command_id, account_id, "account", 1, [stored_form(event)], command_id)])
    with pytest.raises(CommandIdReused, match="for a record of Headwater; nothing was written"):
        await bank(deposit(account_id, 5), command_id=command_id)
