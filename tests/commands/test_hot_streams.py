"""Many concurrent commands on one stream are decided on each other's results and appended in few batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from decimal import Decimal

import pytest
from tests.support.dispatching import Process, deposit, opened, state, withdraw

from bank.accounts.domain import Account, AccountStatus, OpenAccount
from headwater import Refusal
from headwater.commands.dispatcher import Accepted
from headwater.eventstore.log import Verdict
from headwater.ids import new_id


async def test_concurrent_commands_on_one_stream_share_batches(bank: Process) -> None:
    account_id = await opened(bank)
    before = bank.appender.counts.batches
    answers = await asyncio.gather(*(bank(deposit(account_id, 1)) for _ in range(200)))
    assert [answer.version for answer in answers] == list(range(2, 202))
    assert bank.appender.counts.batches - before < 15
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(200), "EUR")


@pytest.mark.parametrize("how", ["refused", "of another version", "created again", "repeated"])
async def test_a_command_that_appends_nothing_makes_no_other_command_decide_again(bank: Process, how: str) -> None:
    """A refused or repeated command between others leaves the chain of the commands in flight intact."""
    account_id, known_id = await opened(bank), new_id()
    await bank(deposit(account_id, 1), command_id=known_id)

    async def disturb() -> Accepted | Refusal:
        match how:
            case "refused":
                return await bank.ask(withdraw(account_id, 10**9))
            case "of another version":
                return await bank.ask(deposit(account_id, 1), expected_version=1)
            case "created again":
                return await bank.ask(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
            case _:
                return await bank.ask(deposit(account_id, 1), command_id=known_id)

    async def several(call: Callable[[], Awaitable[Accepted | Refusal]], times: int) -> list[Accepted | Refusal]:
        return [await call() for _ in range(times)]

    deposits = [several(lambda: bank.ask(deposit(account_id, 1)), 25) for _ in range(16)]
    answers = await asyncio.gather(*deposits, *(several(disturb, 10) for _ in range(4)))
    assert all(isinstance(answer, Accepted) for mine in answers[:16] for answer in mine)
    assert all(isinstance(answer, Accepted) is (how == "repeated") for mine in answers[16:] for answer in mine)
    verdicts = bank.appender.counts.verdicts
    assert {verdict: count for verdict, count in verdicts.items() if count} == {Verdict.ACCEPTED: 402}


async def test_two_processes_that_write_one_stream_lose_no_deposit(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    answers = await asyncio.gather(
        *(bank(deposit(account_id, 1)) for _ in range(150)), *(other(deposit(account_id, 1)) for _ in range(10))
    )
    assert sorted(answer.version for answer in answers) == list(range(2, 162))
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(160), "EUR")


async def test_cancelled_callers_leave_the_stream_in_order(bank: Process) -> None:
    account_id = await opened(bank)
    callers = [asyncio.create_task(bank(deposit(account_id, 1))) for _ in range(30)]
    await asyncio.sleep(0)  # all are decided, none is answered
    for caller in callers[::2]:
        caller.cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [answer.version for answer in answers if isinstance(answer, Accepted)] == list(range(3, 32, 2))
    assert (await bank(withdraw(account_id, 30))).version == 32
