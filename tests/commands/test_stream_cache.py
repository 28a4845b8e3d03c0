"""The cache of stream states: what is read, how often, and what is evicted."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from tests.support.dispatching import Process, Start, deposit, opened, state

from bank.accounts.domain import Account, AccountStatus, OpenAccount, accounts
from bank.users.domain import AlreadyExists
from headwater.commands.stream_cache import Streams
from headwater.eventstore.epoch import Epochs
from headwater.eventstore.log import Appended, Verdict
from headwater.ids import new_id


async def test_a_cached_stream_is_read_only_once(process: Start) -> None:
    bank = await process(cache=2)
    one, two, three = [await opened(bank) for _ in range(3)]
    for account_id in (three, two, three, two):
        await bank(deposit(account_id, 1))
    assert bank.log.reads == {}, "a stream that this process created is not read"
    await bank(deposit(one, 1))  # evicts `three`, the least recently used
    await bank(deposit(two, 1))
    await bank(deposit(three, 1))
    assert bank.log.reads == {one: 1, three: 1}
    assert await state(bank, two) == Account(AccountStatus.OPEN, Decimal(3), "EUR")


async def test_a_creation_finds_a_stream_that_exists_without_reading_it_first(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    command = OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR")
    assert await other.ask(command) == AlreadyExists()
    assert (await other(deposit(account_id, 1))).version == 2


async def test_a_cache_smaller_than_the_streams_in_use_loses_no_command(process: Start) -> None:
    bank = await process(cache=1)
    ids = [await opened(bank) for _ in range(4)]
    await asyncio.gather(*(bank(deposit(ids[place % 4], 1)) for place in range(80)))
    assert [(await state(bank, account_id)).balance for account_id in ids] == [20] * 4


async def test_a_stream_with_commands_in_flight_is_not_evicted(bank: Process) -> None:
    streams, busy = Streams(bank.log, None, 1, Epochs()), new_id()
    stream = streams.assume_new(accounts, busy)
    answer = asyncio.get_running_loop().create_future()
    stream.advance(accounts.initial, 1, answer, streams.ticked())
    for _ in range(3):
        streams.assume_new(accounts, new_id())
    assert streams.known(accounts, busy) is stream
    answer.set_result(Appended(Verdict.ACCEPTED, 1, 1, busy))
    for _ in range(3):
        streams.assume_new(accounts, new_id())
    assert streams.known(accounts, busy) is None


async def test_concurrent_commands_share_one_read_of_an_uncached_stream(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    await asyncio.gather(*(other(deposit(account_id, 1)) for _ in range(20)))
    assert other.log.reads == {account_id: 1}
