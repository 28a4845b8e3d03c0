"""Several processes on one stream: conflicts, expected versions, and refusals that must hold for the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from urllib.parse import urlsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.dispatching import Process, Start, deposit, opened, state, withdraw
from tests.support.executing import unrefused

from bank.accounts.domain import (
    Account,
    AccountNotFound,
    AccountNotOpen,
    AccountStatus,
    CloseAccount,
    FreezeAccount,
    InsufficientFunds,
    OpenAccount,
    UnfreezeAccount,
)
from headwater.commands.dispatcher import ATTEMPTS, LONGEST_PAUSE, Accepted
from headwater.domain.messages import VersionConflict
from headwater.errors import CommandIdReused, Contended, Unavailable
from headwater.eventstore.log import Append, Appended, append
from headwater.ids import new_id
from headwater.postgres.embedded import EmbeddedPostgres


async def test_a_wrong_expected_version_is_answered_with_the_actual_one(bank: Process) -> None:
    account_id = await opened(bank, 5)
    assert (await bank(deposit(account_id, 1), expected_version=2)).version == 3
    for expected in (0, 2, 4):
        assert await bank.ask(deposit(account_id, 1), expected_version=expected) == VersionConflict(
            expected_version=expected, actual_version=3
        )
    assert await bank.ask(deposit(new_id(), 1), expected_version=1) == VersionConflict(
        expected_version=1, actual_version=0
    )


async def test_an_expected_version_is_compared_with_the_log_not_with_the_cache(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    await other(deposit(account_id, 5))
    assert await bank.ask(deposit(account_id, 1), expected_version=1) == VersionConflict(
        expected_version=1, actual_version=2
    )
    await other(deposit(account_id, 5))
    assert (await bank(deposit(account_id, 1), expected_version=3)).version == 4


async def test_one_of_many_commands_with_the_same_expected_version_is_accepted(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    answers = await asyncio.gather(
        *(each.ask(deposit(account_id, 1), expected_version=1) for each in (bank, other) for _ in range(10))
    )
    assert sum(isinstance(answer, Accepted) for answer in answers) == 1
    losers = [answer for answer in answers if isinstance(answer, VersionConflict)]
    assert len(losers) == 19
    assert {tuple(loser.facts.values()) for loser in losers} == {(1, 2)}


async def test_after_a_conflict_a_command_is_decided_again_on_the_new_events(bank: Process, other: Process) -> None:
    account_id = await opened(bank, 10)
    assert (await other(deposit(account_id, 5))).version == 3
    assert (await bank(withdraw(account_id, 12))).version == 4
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(3), "EUR")
    # A refusal after a conflict has the facts of the log.
    assert await other.ask(withdraw(account_id, 12)) == InsufficientFunds(balance=Decimal(3))


async def test_a_refusal_never_rests_on_an_outdated_cache(bank: Process, other: Process) -> None:
    account_id, missing = await opened(bank), new_id()
    assert await bank.ask(deposit(missing, 1)) == AccountNotFound(account_id=missing)
    await other(OpenAccount(account_id=missing, owner_id=new_id(), currency="EUR"))
    assert (await bank(deposit(missing, 1))).version == 2
    await other(deposit(account_id, 10))
    assert (await bank(withdraw(account_id, 10))).version == 3
    await other(FreezeAccount(account_id=account_id))
    await other(UnfreezeAccount(account_id=account_id))
    await other(CloseAccount(account_id=account_id))
    assert await bank.ask(deposit(account_id, 1)) == AccountNotOpen(status=AccountStatus.CLOSED)


async def test_a_refusal_waits_for_the_earlier_commands_in_flight(bank: Process) -> None:
    """Of ten concurrent withdrawals of 30 from 100, three are accepted. The other seven see the balance after those."""
    account_id = await opened(bank, 100)
    answers = await asyncio.gather(*(bank.ask(withdraw(account_id, 30)) for _ in range(10)))
    assert sum(isinstance(answer, Accepted) for answer in answers) == 3
    refusals = [answer for answer in answers if isinstance(answer, InsufficientFunds)]
    assert len(refusals) == 7
    assert {refusal.balance for refusal in refusals} == {Decimal(10)}


async def test_a_refusal_is_checked_against_the_log_though_an_earlier_command_was_in_flight(
    process: Start, other: Process
) -> None:
    """The command in flight may be older than a change by another process, so waiting for it is not enough."""
    holding = False
    written, answered = asyncio.Event(), asyncio.Event()

    async def held(connection: asyncpg.Connection, batch: Sequence[Append]) -> list[Appended]:
        nonlocal holding
        answers = await append(connection, batch)
        if holding:
            holding = False
            written.set()
            await answered.wait()
        return answers

    bank = await process(write=held)
    account_id = await opened(bank)
    holding = True
    first = asyncio.create_task(bank(deposit(account_id, 1)))
    await written.wait()
    await other(deposit(account_id, 100))
    second = asyncio.create_task(bank(withdraw(account_id, 50)))
    await asyncio.sleep(0)  # it is refused on the cached state, and waits for the command in flight
    answered.set()
    assert (await first).version == 2
    assert (await second).version == 4
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(51), "EUR")


async def test_concurrent_refusals_share_one_read_of_the_log(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    for process in (bank, other):  # one has the account in its cache, the other does not
        answers = await asyncio.gather(*(process.ask(withdraw(account_id, 1)) for _ in range(300)))
        assert Counter(type(answer) for answer in answers) == {InsufficientFunds: 300}
        assert process.log.reads[account_id] <= 3


async def test_a_command_that_loses_every_attempt_is_contended(
    process: Start, other: Process, connection: asyncpg.Connection
) -> None:
    bank = await process(attempts=3)
    account_id = await opened(other)
    bank.log.blind = True
    with pytest.raises(Contended, match=r"during 3 attempts; nothing was written"):
        await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
    assert await connection.fetchval("select count(*) from headwater.events") == 1


async def test_a_losing_command_pauses_at_random_before_its_next_attempt(process: Start, other: Process) -> None:
    """The pauses grow up to a bound. The first two attempts after a loss follow at once."""
    account_id = await opened(other)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    bank = await process(sleep=sleep)
    bank.log.blind = True
    for _ in range(2):
        with pytest.raises(Contended):
            await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
    bounds = [min(0.001 * 2**setbacks, LONGEST_PAUSE) for setbacks in range(3, ATTEMPTS)] * 2
    assert bounds[:3] == [0.008, 0.016, 0.02]
    parts = [pause / bound for pause, bound in zip(pauses, bounds, strict=True)]
    assert len(set(parts)) == len(parts)
    assert 0 <= min(parts) < 0.5 < max(parts) <= 1


async def test_a_command_fails_with_unavailable_while_the_log_cannot_be_read(
    bank: Process, postgres: EmbeddedPostgres, dsn: str
) -> None:
    account_id = await opened(bank)
    name = urlsplit(dsn).path.removeprefix("/")
    outside = await asyncpg.connect(postgres.dsn())
    try:
        await outside.execute(f"alter database {name} allow_connections false")
        await outside.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1", name)
        # The first command's stream is not cached; the second is refused on the cached state. Both need the log.
        for command in (deposit(new_id(), 1), withdraw(account_id, 1)):
            with pytest.raises(Unavailable, match="cannot be read; nothing was written"):
                await bank(command)
        await outside.execute(f"alter database {name} allow_connections true")
        assert (await bank(deposit(account_id, 1))).version == 2
    finally:
        await outside.close()


ACTIONS = st.tuples(
    st.integers(0, 1),  # the process
    st.integers(0, 2),  # the account
    st.integers(-40, 40).filter(bool),  # withdrawn or deposited
    st.integers(0, 30),  # the command id; some are used twice
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers=st.lists(st.lists(ACTIONS, min_size=1, max_size=6), min_size=1, max_size=12))
async def test_the_log_agrees_with_every_answer_of_two_processes(
    bank: Process, other: Process, connection: asyncpg.Connection, callers: list[list[tuple[int, int, int, int]]]
) -> None:
    ids = [await opened(bank, 50) for _ in range(3)]
    commands = [new_id() for _ in range(31)]
    accepted: list[Accepted] = []
    refused: list[tuple[Decimal, Decimal]] = []  # balance and amount

    async def call(actions: list[tuple[int, int, int, int]]) -> None:
        for process, account, amount, place in actions:
            command = deposit(ids[account], amount) if amount > 0 else withdraw(ids[account], -amount)
            try:
                answer = await (bank, other)[process].ask(command, command_id=commands[place])
            except CommandIdReused:
                continue  # the id was used for another account
            if isinstance(answer, InsufficientFunds):
                refused.append((answer.balance, Decimal(-amount)))
            else:
                accepted.append(unrefused(answer))

    await asyncio.gather(*(call(actions) for actions in callers))
    rows = await connection.fetch(
        "select command_id, stream_id, version, position from headwater.events where command_id = any($1)", commands
    )
    assert set(accepted) == {Accepted(*row) for row in rows}
    assert all(0 <= balance < amount for balance, amount in refused)
    for account_id in ids:
        await state(bank, account_id)
