"""A stream's id belongs to one category: commands of another category are refused as invalid input."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from tests.support.dispatching import Process, deposit, opened, register, withdraw

from bank.accounts.domain import OpenAccount
from bank.main import app
from bank.users.domain import ChangeEmail, UserNotFound
from headwater.commands.dispatcher import Accepted, Dispatcher, Origin
from headwater.domain.messages import InvalidInput
from headwater.ids import new_id


@pytest.mark.parametrize("known", [True, False], ids=["cached", "uncached"])
async def test_the_id_of_a_stream_of_another_category_is_invalid_input(
    bank: Process, other: Process, known: bool
) -> None:
    account_id = await opened(bank)
    asked = bank if known else other
    for command in (ChangeEmail(user_id=account_id, email="a@b.c"), register("a@b.c", account_id)):
        complaint = f"{account_id} is the id of a stream of account, not of user"
        assert await asked.ask(command) == InvalidInput(path=["user_id"], complaint=complaint)
    assert (await asked(deposit(account_id, 1))).version == 2


async def test_the_id_of_another_category_is_invalid_while_the_stream_is_being_read(
    bank: Process, other: Process
) -> None:
    account_id = await opened(bank)
    for one, two in ((0, 1), (1, 0)):
        commands = deposit(account_id, 1), ChangeEmail(user_id=account_id, email="a@b.c")
        fresh = Process(Dispatcher(app.domain, other.log, other.appender), other.appender, other.log)
        answers = await asyncio.gather(fresh.ask(commands[one]), fresh.ask(commands[two]))
        assert isinstance(answers[one], Accepted)
        assert isinstance(answers[two], InvalidInput)


async def test_the_id_of_another_category_is_invalid_after_a_failed_append(bank: Process) -> None:
    """The stream's state is read again after the failure, and no event of another category follows it."""
    account_id = await opened(bank, 5)
    with pytest.raises(asyncpg.DataError):
        await bank(deposit(account_id, 1), origin=Origin(actor="\0"))
    assert isinstance(await bank.ask(ChangeEmail(user_id=account_id, email="a@b.c")), InvalidInput)
    assert (await bank(withdraw(account_id, 5))).version == 3


async def test_a_refused_command_does_not_reserve_its_stream_id(bank: Process) -> None:
    """The refused command of one category has cached an empty stream under the id."""
    thing = new_id()
    assert await bank.ask(ChangeEmail(user_id=thing, email="a@b.c")) == UserNotFound(user_id=thing)
    assert (await bank(OpenAccount(account_id=thing, owner_id=new_id(), currency="EUR"))).version == 1


async def test_of_two_categories_that_create_one_id_at_once_one_is_accepted(bank: Process) -> None:
    thing = new_id()
    answers = await asyncio.gather(
        bank.ask(OpenAccount(account_id=thing, owner_id=new_id(), currency="EUR")),
        bank.ask(register("a@b.c", thing)),
    )
    assert [type(answer) for answer in answers] == [Accepted, InvalidInput]
