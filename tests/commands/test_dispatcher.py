"""Dispatch: each command has one truthful answer, however often it is sent, whoever else writes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from secrets import token_urlsafe
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bank.accounts.domain import (
    Account,
    AccountNotFound,
    AccountStatus,
    CloseAccount,
    Deposit,
    FreezeAccount,
    InsufficientFunds,
    OpenAccount,
    UnfreezeAccount,
    Withdraw,
    accounts,
)
from bank.main import app
from bank.transfers.domain import RequestTransfer, TransferRequested
from bank.users.domain import AlreadyExists, ChangeEmail, EmailTaken, RegisterUser, UserNotFound
from headwater import Command, Decider, Event, Feature, Recorded, Refusal, Release, Seen, Take, testing
from headwater.commands.dispatcher import ATTEMPTS, LONGEST_PAUSE, Accepted, Dispatcher, Origin
from headwater.commands.stream_cache import Streams
from headwater.domain.decider import LARGEST_CLAIM
from headwater.domain.feature import Domain
from headwater.domain.messages import InvalidInput, VersionConflict
from headwater.errors import (
    CodeFailed,
    CommandIdReused,
    Contended,
    DefinitionError,
    LogError,
    MisplacedEvent,
    Unavailable,
    UnreadableEvent,
)
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Append, Appended, Log, Verdict, append
from headwater.eventstore.positions import Positions
from headwater.ids import new_id
from headwater.postgres.database import Database
from headwater.postgres.embedded import EmbeddedPostgres
from headwater.supervisor import Supervisor


class CountingLog(Log):
    """Counts how often each stream was read."""

    def __init__(self, pool: asyncpg.Pool, domain: Domain) -> None:
        super().__init__(pool, domain.codec)
        self.reads: Counter[UUID] = Counter()

    def read_stream(
        self, stream_id: UUID, after_version: int = 0, *, page: int = 1000
    ) -> AsyncGenerator[tuple[str, Recorded[Event]], None]:
        self.reads[stream_id] += 1
        return super().read_stream(stream_id, after_version, page=page)


@dataclass
class Process:
    """What one process of an app has of its own."""

    dispatcher: Dispatcher
    appender: Appender
    log: CountingLog

    async def __call__(self, command: Command, **options: Any) -> Accepted:
        return await self.dispatcher.execute(command, **options)


Start: TypeAlias = Callable[..., Coroutine[Any, Any, Process]]


@pytest.fixture
async def process(dsn: str) -> AsyncIterator[Start]:
    """Starts processes on the test's database."""
    async with AsyncExitStack() as stack:

        async def start(
            domain: Domain = app.domain, *, cache: int = 1000, write: Any = append, **options: Any
        ) -> Process:
            database = await stack.enter_async_context(Database(dsn, pool_size=4))
            supervisor = await stack.enter_async_context(Supervisor())
            appender = Appender(database, Positions(), write=write)
            supervisor.start("appender", appender.run)
            log = CountingLog(database.pool, domain)
            return Process(Dispatcher(domain, log, appender, cache=cache, **options), appender, log)

        yield start


@pytest.fixture
async def bank(process: Start) -> Process:
    """One process of the bank."""
    return await process()


@pytest.fixture
async def other(process: Start) -> Process:
    """Another process of the bank, on the same log."""
    return await process()


async def opened(bank: Process, balance: int = 0) -> UUID:
    """An account that is open and holds so much."""
    account_id = new_id()
    await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
    if balance:
        await bank(deposit(account_id, balance))
    return account_id


def deposit(account_id: UUID, amount: int) -> Deposit:
    return Deposit(account_id=account_id, amount=Decimal(amount))


def withdraw(account_id: UUID, amount: int) -> Withdraw:
    return Withdraw(account_id=account_id, amount=Decimal(amount))


def register(email: str, user_id: UUID | None = None) -> RegisterUser:
    return RegisterUser(user_id=user_id or new_id(), email=email, name="Ada")


async def stream(bank: Process, stream_id: UUID) -> list[Event]:
    """The events of a stream; their versions are 1 to n."""
    found = [event async for _, event in bank.log.read_stream(stream_id)]
    assert [event.version for event in found] == list(range(1, len(found) + 1))
    return [event.data for event in found]


async def state(bank: Process, account_id: UUID) -> Account:
    """The fold of an account's events, in which no balance is ever below zero."""
    account: Account = accounts.initial
    for event in await stream(bank, account_id):
        account = accounts.evolve(account, event)  # type: ignore[arg-type]  # an account's stream
        assert account.balance >= 0
    return account


async def refusal_of(answer: Coroutine[Any, Any, Accepted]) -> tuple[type[Refusal], dict[str, Any]]:
    with pytest.raises(Refusal) as caught:
        await answer
    return type(caught.value), caught.value.facts


# ------------------------------------------------------------------------------------------------------- idempotency


async def test_a_command_sent_again_gives_its_first_result(bank: Process, other: Process) -> None:
    account_id, command_id = await opened(bank), new_id()
    first = await bank(deposit(account_id, 5), command_id=command_id)
    assert (first.command_id, first.stream_id, first.version) == (command_id, account_id, 2)
    await bank(deposit(account_id, 1))
    assert await bank(deposit(account_id, 5), command_id=command_id) == first
    assert await other(deposit(account_id, 5), command_id=command_id) == first
    assert (await bank(deposit(account_id, 1))).version == 4
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(7), "EUR")


async def test_a_creation_sent_again_finds_itself_not_in_the_way(bank: Process, other: Process) -> None:
    command, command_id = register("ada@example.org"), new_id()
    first = await bank(command, command_id=command_id)
    assert await bank(command, command_id=command_id) == first
    assert await other(command, command_id=command_id, expected_version=0) == first
    assert await refusal_of(bank(command, command_id=new_id())) == (AlreadyExists, {})
    assert await refusal_of(bank(command)) == (AlreadyExists, {})


async def test_a_command_that_decided_nothing_is_remembered(
    bank: Process, other: Process, connection: asyncpg.Connection
) -> None:
    account_id, command_id = await opened(bank), new_id()
    command = UnfreezeAccount(account_id=account_id)
    first = await bank(command, command_id=command_id)
    assert (first.version, first.position) == (1, 1)
    await bank(FreezeAccount(account_id=account_id))
    # It would decide something now.
    assert await bank(command, command_id=command_id) == first
    assert await other(command, command_id=command_id) == first
    assert (await state(bank, account_id)).status is AccountStatus.FROZEN
    assert await connection.fetchval("select position from headwater.head") == 2


async def test_a_command_sent_many_times_at_once_happens_once(bank: Process, other: Process) -> None:
    account_id = await opened(bank, 10)
    command_id = new_id()
    # The account is empty after the first.
    answers = [each(withdraw(account_id, 10), command_id=command_id) for each in (bank, other) for _ in range(20)]
    assert set(await asyncio.gather(*answers)) == {Accepted(command_id, account_id, 3, 3)}
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(0), "EUR")


async def test_an_id_of_another_streams_command_is_refused(bank: Process, connection: asyncpg.Connection) -> None:
    one, two, command_id = await opened(bank), await opened(bank), new_id()
    await bank(deposit(one, 5), command_id=command_id)
    for command in (deposit(two, 5), withdraw(two, 5), deposit(new_id(), 5)):
        with pytest.raises(CommandIdReused, match=f"{command_id} was used before, for {one}; nothing was written"):
            await bank(command, command_id=command_id)
    assert await connection.fetchval("select count(*) from headwater.events") == 3


async def test_an_id_of_another_command_of_the_stream_is_refused(bank: Process, connection: asyncpg.Connection) -> None:
    account, command_id, idle_id = await opened(bank, 20), new_id(), new_id()
    first = await bank(deposit(account, 5), command_id=command_id)
    with pytest.raises(CommandIdReused, match=f"{command_id} was used before, for Deposit; nothing was written"):
        await bank(withdraw(account, 5), command_id=command_id)
    assert await bank(deposit(account, 5), command_id=command_id) == first
    owner = await connection.fetchval("select data ->> 'owner_id' from headwater.events where version = 1")
    same = OpenAccount(account_id=account, owner_id=UUID(owner), currency="EUR")
    with pytest.raises(CommandIdReused, match="for Deposit"):
        await bank(same, command_id=command_id)
    await bank(UnfreezeAccount(account_id=account), command_id=idle_id)  # it is open, so that this leaves no event
    with pytest.raises(CommandIdReused, match=f"{idle_id} was used before, for UnfreezeAccount"):
        await bank(FreezeAccount(account_id=account), command_id=idle_id)
    assert await state(bank, account) == Account(AccountStatus.OPEN, Decimal(25), "EUR")


async def test_what_older_code_wrote_has_no_name_to_compare(bank: Process, connection: asyncpg.Connection) -> None:
    account, command_id = await opened(bank), new_id()
    await connection.execute("alter table headwater.events disable trigger append_only")
    first = await bank(deposit(account, 5), command_id=command_id)
    await connection.execute("update headwater.events set command = null")
    assert await bank(deposit(account, 5), command_id=command_id) == first


# -------------------------------------------------------------------------------------------------- expected versions


async def test_an_expected_version_that_is_wrong_says_what_it_is(bank: Process) -> None:
    account_id = await opened(bank, 5)
    assert (await bank(deposit(account_id, 1), expected_version=2)).version == 3
    for expected in (0, 2, 4):
        assert await refusal_of(bank(deposit(account_id, 1), expected_version=expected)) == (
            VersionConflict,
            {"expected_version": expected, "actual_version": 3},
        )
    assert await refusal_of(bank(deposit(new_id(), 1), expected_version=1)) == (
        VersionConflict,
        {"expected_version": 1, "actual_version": 0},
    )


async def test_an_expected_version_is_the_logs_not_that_of_this_process(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    await other(deposit(account_id, 5))
    assert await refusal_of(bank(deposit(account_id, 1), expected_version=1)) == (
        VersionConflict,
        {"expected_version": 1, "actual_version": 2},
    )
    await other(deposit(account_id, 5))
    assert (await bank(deposit(account_id, 1), expected_version=3)).version == 4


async def test_of_many_who_expect_one_version_one_wins(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    answers = await asyncio.gather(
        *(each(deposit(account_id, 1), expected_version=1) for each in (bank, other) for _ in range(10)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, Accepted) for answer in answers) == 1
    losers = [answer for answer in answers if isinstance(answer, VersionConflict)]
    assert len(losers) == 19
    assert {tuple(loser.facts.values()) for loser in losers} == {(1, 2)}


# ------------------------------------------------------------------------------------------------ beside other writers


async def test_a_conflict_decides_again_on_what_the_other_wrote(bank: Process, other: Process) -> None:
    account_id = await opened(bank, 10)
    assert (await other(deposit(account_id, 5))).version == 3
    assert (await bank(withdraw(account_id, 12))).version == 4
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(3), "EUR")
    # And what is no longer allowed is refused with the log's facts.
    assert await refusal_of(other(withdraw(account_id, 12))) == (InsufficientFunds, {"balance": Decimal(3)})


async def test_a_stale_no_is_never_given(bank: Process, other: Process) -> None:
    account_id, missing = await opened(bank), new_id()
    assert await refusal_of(bank(deposit(missing, 1))) == (AccountNotFound, {"account_id": missing})
    await other(OpenAccount(account_id=missing, owner_id=new_id(), currency="EUR"))
    assert (await bank(deposit(missing, 1))).version == 2
    await other(deposit(account_id, 10))
    assert (await bank(withdraw(account_id, 10))).version == 3
    await other(FreezeAccount(account_id=account_id))
    await other(UnfreezeAccount(account_id=account_id))
    await other(CloseAccount(account_id=account_id))
    assert (await refusal_of(bank(deposit(account_id, 1))))[1] == {"status": AccountStatus.CLOSED}


async def test_a_no_on_what_is_on_its_way_waits_for_it(bank: Process) -> None:
    """Ten at once want 30 of 100: three are given it, and seven read the balance that those leave."""
    account_id = await opened(bank, 100)
    answers = await asyncio.gather(*(bank(withdraw(account_id, 30)) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(answer, Accepted) for answer in answers) == 3
    refusals = [answer for answer in answers if isinstance(answer, InsufficientFunds)]
    assert len(refusals) == 7
    assert {refusal.balance for refusal in refusals} == {Decimal(10)}


async def test_a_refusal_is_checked_against_the_log_though_an_earlier_command_was_in_flight(
    process: Start, other: Process
) -> None:
    """The command in flight may have been written before another process changed the stream."""
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
    await asyncio.sleep(0)  # it is refused on the known state, and waits for the command in flight
    answered.set()
    assert (await first).version == 2
    assert (await second).version == 4
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(51), "EUR")


async def test_many_refusals_at_once_share_a_look_at_the_log(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    for process in (bank, other):  # one remembers the account, the other does not
        answers = await asyncio.gather(*(process(withdraw(account_id, 1)) for _ in range(300)), return_exceptions=True)
        assert Counter(type(answer) for answer in answers) == {InsufficientFunds: 300}
        assert process.log.reads[account_id] <= 3


def blinded(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on it reads every stream as empty, and so never wins one that is not."""

    async def blind(*_: object, **__: object) -> AsyncIterator[tuple[str, Recorded[Event]]]:
        for nothing in list[tuple[str, Recorded[Event]]]():
            yield nothing

    monkeypatch.setattr(process.log, "read_stream", blind)


async def test_a_command_that_loses_every_attempt_is_contended(
    process: Start, other: Process, monkeypatch: pytest.MonkeyPatch, connection: asyncpg.Connection
) -> None:
    bank = await process(attempts=3)
    account_id = await opened(other)
    blinded(bank, monkeypatch)
    with pytest.raises(Contended, match=r"during 3 attempts; nothing was written"):
        await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
    assert await connection.fetchval("select count(*) from headwater.events") == 1


async def test_a_losing_command_pauses_at_random_before_its_next_attempt(
    process: Start, other: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses grow up to a bound. The first two attempts after a loss follow at once."""
    account_id = await opened(other)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    bank = await process(sleep=sleep)
    blinded(bank, monkeypatch)
    for _ in range(2):
        with pytest.raises(Contended):
            await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
    bounds = [min(0.001 * 2**setbacks, LONGEST_PAUSE) for setbacks in range(3, ATTEMPTS)] * 2
    assert bounds[:3] == [0.008, 0.016, 0.02]
    parts = [pause / bound for pause, bound in zip(pauses, bounds, strict=True)]
    assert len(set(parts)) == len(parts)
    assert 0 <= min(parts) < 0.5 < max(parts) <= 1


async def test_a_log_that_cannot_be_read_is_said(bank: Process, postgres: EmbeddedPostgres, dsn: str) -> None:
    account_id = await opened(bank)
    name = urlsplit(dsn).path.removeprefix("/")
    outside = await asyncpg.connect(postgres.dsn())
    try:
        await outside.execute(f"alter database {name} allow_connections false")
        await outside.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = $1", name)
        # One is not in memory, the other would be refused on what is.
        for command in (deposit(new_id(), 1), withdraw(account_id, 1)):
            with pytest.raises(Unavailable, match="cannot be read; nothing was written"):
                await bank(command)
        await outside.execute(f"alter database {name} allow_connections true")
        assert (await bank(deposit(account_id, 1))).version == 2
    finally:
        await outside.close()


# --------------------------------------------------------------------------------------------------------- hot streams


async def test_a_hot_stream_is_pipelined(bank: Process) -> None:
    account_id = await opened(bank)
    before = bank.appender.counts.batches
    answers = await asyncio.gather(*(bank(deposit(account_id, 1)) for _ in range(200)))
    assert [answer.version for answer in answers] == list(range(2, 202))
    assert bank.appender.counts.batches - before < 15
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(200), "EUR")


@pytest.mark.parametrize("how", ["refused", "of another version", "created again", "sent again"])
async def test_a_hot_stream_is_not_disturbed_by_one_that_is(bank: Process, how: str) -> None:
    """What changes nothing costs those on their way nothing: no command of theirs is ever decided again."""
    account_id, known_id = await opened(bank), new_id()
    await bank(deposit(account_id, 1), command_id=known_id)

    async def disturb() -> Accepted:
        match how:
            case "refused":
                return await bank(withdraw(account_id, 10**9))
            case "of another version":
                return await bank(deposit(account_id, 1), expected_version=1)
            case "created again":
                return await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"))
            case _:
                return await bank(deposit(account_id, 1), command_id=known_id)

    async def several(call: Callable[[], Coroutine[Any, Any, Accepted]], times: int) -> list[Accepted | Refusal]:
        answers: list[Accepted | Refusal] = []
        for _ in range(times):
            try:
                answers.append(await call())
            except Refusal as refusal:
                answers.append(refusal)
        return answers

    deposits = [several(lambda: bank(deposit(account_id, 1)), 25) for _ in range(16)]
    answers = await asyncio.gather(*deposits, *(several(disturb, 10) for _ in range(4)))
    assert all(isinstance(answer, Accepted) for mine in answers[:16] for answer in mine)
    assert all(isinstance(answer, Accepted) is (how == "sent again") for mine in answers[16:] for answer in mine)
    verdicts = bank.appender.counts.verdicts
    assert {verdict: count for verdict, count in verdicts.items() if count} == {Verdict.ACCEPTED: 402}


async def test_a_hot_stream_with_another_writer_keeps_its_balance(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    answers = await asyncio.gather(
        *(bank(deposit(account_id, 1)) for _ in range(150)), *(other(deposit(account_id, 1)) for _ in range(10))
    )
    assert sorted(answer.version for answer in answers) == list(range(2, 162))
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(160), "EUR")


async def test_a_caller_who_goes_leaves_the_stream_in_order(bank: Process) -> None:
    account_id = await opened(bank)
    callers = [asyncio.create_task(bank(deposit(account_id, 1))) for _ in range(30)]
    await asyncio.sleep(0)  # all are decided, none is answered
    for caller in callers[::2]:
        caller.cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert [answer.version for answer in answers if isinstance(answer, Accepted)] == list(range(3, 32, 2))
    assert (await bank(withdraw(account_id, 30))).version == 32


# ----------------------------------------------------------------------------------------- ids that name other things


@pytest.mark.parametrize("known", [True, False], ids=["cached", "uncached"])
async def test_an_id_of_another_kind_of_thing_is_invalid(bank: Process, other: Process, known: bool) -> None:
    account_id = await opened(bank)
    asked = bank if known else other
    for command in (ChangeEmail(user_id=account_id, email="a@b.c"), register("a@b.c", account_id)):
        with pytest.raises(InvalidInput) as caught:
            await asked(command)
        assert caught.value.path == ["user_id"]
        assert caught.value.complaint == f"{account_id} is the id of another thing, in account, not in user"
    assert (await asked(deposit(account_id, 1))).version == 2


async def test_an_id_of_another_kind_of_thing_while_it_is_being_read(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    for one, two in ((0, 1), (1, 0)):
        commands = deposit(account_id, 1), ChangeEmail(user_id=account_id, email="a@b.c")
        fresh = Process(Dispatcher(app.domain, other.log, other.appender), other.appender, other.log)
        answers = await asyncio.gather(fresh(commands[one]), fresh(commands[two]), return_exceptions=True)
        assert isinstance(answers[one], Accepted)
        assert isinstance(answers[two], InvalidInput)


async def test_an_id_of_another_kind_of_thing_after_a_failure(bank: Process) -> None:
    """The stream's state has to be read again, and there is nothing new to read."""
    account_id = await opened(bank, 5)
    with pytest.raises(asyncpg.DataError):
        await bank(deposit(account_id, 1), origin=Origin(actor="\0"))
    with pytest.raises(InvalidInput):
        await bank(ChangeEmail(user_id=account_id, email="a@b.c"))
    assert (await bank(withdraw(account_id, 5))).version == 3


async def test_an_id_that_was_only_asked_about_is_free(bank: Process) -> None:
    """Nothing has this id, whatever was looked for under it."""
    thing = new_id()
    assert await refusal_of(bank(ChangeEmail(user_id=thing, email="a@b.c"))) == (UserNotFound, {"user_id": thing})
    assert (await bank(OpenAccount(account_id=thing, owner_id=new_id(), currency="EUR"))).version == 1


async def test_an_id_that_two_kinds_of_things_want_goes_to_one(bank: Process) -> None:
    thing = new_id()
    answers = await asyncio.gather(
        bank(OpenAccount(account_id=thing, owner_id=new_id(), currency="EUR")),
        bank(register("a@b.c", thing)),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [Accepted, InvalidInput]


# ------------------------------------------------------------------------------------------------------------- claims


async def test_an_address_belongs_to_one_user(bank: Process, other: Process) -> None:
    answers = await asyncio.gather(
        *(each(register("ada@example.org")) for each in (bank, other) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(answer, Accepted) for answer in answers) == 1
    refusals = [answer for answer in answers if isinstance(answer, EmailTaken)]
    assert len(refusals) == 9
    assert {refusal.email for refusal in refusals} == {"ada@example.org"}
    assert await refusal_of(bank(register("ADA@example.org"))) == (EmailTaken, {"email": "ADA@example.org"})


async def test_a_change_of_address_gives_the_old_one_back(bank: Process, connection: asyncpg.Connection) -> None:
    ada, grace = new_id(), new_id()
    await bank(register("ada@example.org", ada))
    await bank(register("grace@example.org", grace))
    assert await refusal_of(bank(ChangeEmail(user_id=grace, email="ada@example.org"))) == (
        EmailTaken,
        {"email": "ada@example.org"},
    )
    await bank(ChangeEmail(user_id=ada, email="lovelace@example.org"))
    await bank(ChangeEmail(user_id=ada, email="Lovelace@example.org"))  # only its capitals
    await bank(ChangeEmail(user_id=grace, email="ada@example.org"))
    claims = await connection.fetch("select name, value, stream_id from headwater.claims order by value")
    assert [tuple(claim) for claim in claims] == [
        ("email", "ada@example.org", grace),
        ("email", "lovelace@example.org", ada),
    ]


async def test_two_users_exchange_their_addresses_through_a_third(bank: Process) -> None:
    """Claims that depend on each other, all at once: each is answered, and no address is held twice or lost."""
    users = [new_id() for _ in range(6)]
    await asyncio.gather(*(bank(register(f"{place}@example.org", user)) for place, user in enumerate(users)))
    answers = await asyncio.gather(
        *(bank(ChangeEmail(user_id=user, email=f"{place + 1}@example.org")) for place, user in enumerate(users)),
        return_exceptions=True,
    )
    assert {type(answer) for answer in answers} <= {Accepted, EmailTaken}
    assert isinstance(answers[-1], Accepted)
    now = [(await stream(bank, user))[-1].email for user in users]  # type: ignore[attr-defined]  # a user's events
    assert len(set(now)) == 6


# ----------------------------------------------------------------------------------------------------------- metadata


async def test_an_event_says_where_it_comes_from(bank: Process, connection: asyncpg.Connection) -> None:
    account_id, command_id, correlation, causation = new_id(), new_id(), new_id(), new_id()
    await bank(OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR"), command_id=command_id)
    origin = Origin(correlation, causation, "ada", "north", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    answer = await bank(deposit(account_id, 1), origin=origin)
    rows = await connection.fetch(
        "select command_id, correlation_id, causation_id, actor, tenant, traceparent from headwater.events"
        " order by position"
    )
    assert [tuple(row) for row in rows] == [
        (command_id, command_id, None, None, None, None),
        (answer.command_id, correlation, causation, "ada", "north", origin.traceparent),
    ]
    _, (_, recorded) = [each async for each in bank.log.read_stream(account_id)]
    assert (recorded.correlation_id, recorded.causation_id, recorded.actor) == (correlation, causation, "ada")


# --------------------------------------------------------------------------------------------------------------- cache


async def test_a_stream_is_read_once_while_the_cache_holds_it(process: Start) -> None:
    bank = await process(cache=2)
    one, two, three = [await opened(bank) for _ in range(3)]
    for account_id in (three, two, three, two):
        await bank(deposit(account_id, 1))
    assert bank.log.reads == {}, "what was created here needs no look at the log"
    await bank(deposit(one, 1))  # which drops `three`, that was not asked for the longest
    await bank(deposit(two, 1))
    await bank(deposit(three, 1))
    assert bank.log.reads == {one: 1, three: 1}
    assert await state(bank, two) == Account(AccountStatus.OPEN, Decimal(3), "EUR")


async def test_what_is_created_may_be_there_already(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    command = OpenAccount(account_id=account_id, owner_id=new_id(), currency="EUR")
    assert await refusal_of(other(command)) == (AlreadyExists, {})
    assert (await other(deposit(account_id, 1))).version == 2


async def test_a_small_cache_with_many_callers_loses_nothing(process: Start) -> None:
    bank = await process(cache=1)
    ids = [await opened(bank) for _ in range(4)]
    await asyncio.gather(*(bank(deposit(ids[place % 4], 1)) for place in range(80)))
    assert [(await state(bank, account_id)).balance for account_id in ids] == [20] * 4


async def test_a_stream_with_commands_on_their_way_is_not_forgotten(bank: Process) -> None:
    streams, busy = Streams(bank.log, None, 1), new_id()
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


async def test_many_who_ask_for_one_stream_read_it_once(bank: Process, other: Process) -> None:
    account_id = await opened(bank)
    await asyncio.gather(*(other(deposit(account_id, 1)) for _ in range(20)))
    assert other.log.reads == {account_id: 1}


# ------------------------------------------------------------------------------------------------------- own deciders


class Full(Refusal):
    """There is no room."""


class Book(Command):
    """Take seats one after another, each in place of the one before."""

    trip_id: UUID
    seats: list[str]


class SeatTaken(Event):
    trip_id: UUID
    seat: str


def decide(command: Book, seat: str) -> list[SeatTaken]:
    if not command.seats:
        raise Full()
    return [SeatTaken(trip_id=command.trip_id, seat=seat) for seat in command.seats]


def evolve(seat: str, event: SeatTaken) -> str:
    return event.seat


def claims(seat: str, event: SeatTaken) -> Sequence[Take | Release]:
    take = Take("seat", event.seat, Full())
    return (Release("seat", seat), take) if seat else (take,)


TRIPS = Domain([Feature(deciders=[Decider("trip", "trip_id", "", decide, evolve, claims)])])


async def test_a_refusal_that_was_not_declared_is_a_mistake(process: Start) -> None:
    trips = await process(TRIPS)
    with pytest.raises(
        RuntimeError, match=r"Book was refused with Full, which it does not declare in `refuses=\[...\]`"
    ):
        await trips(Book(trip_id=new_id(), seats=[]))
    await trips(Book(trip_id=new_id(), seats=["1a"]))
    with pytest.raises(RuntimeError, match="Book was refused with Full"):  # by a claim
        await trips(Book(trip_id=new_id(), seats=["1a"]))


async def test_what_a_domain_raises_is_not_taken_for_the_logs_being_away(process: Start) -> None:
    def evolve_worse(seat: str, event: SeatTaken) -> str:
        raise IsADirectoryError("as ZoneInfo raises")

    trips, trip_id = await process(TRIPS), new_id()
    await trips(Book(trip_id=trip_id, seats=["1a"]))
    worse = await process(Domain([Feature([Decider("trip", "trip_id", "", decide, evolve_worse)])]))
    with pytest.raises(CodeFailed, match=r"^IsADirectoryError: as ZoneInfo raises$"):
        await worse(Book(trip_id=trip_id, seats=["1b"]))  # the stream is read
    with pytest.raises(CodeFailed):
        await worse(Book(trip_id=new_id(), seats=["1b"]))  # and what is decided is folded


async def test_a_command_has_as_many_events_as_the_log_can_count(process: Start) -> None:
    things, thing_id = await process(MANY), new_id()
    with pytest.raises(
        LogError, match=rf"^A command on pile {thing_id} returned 32768 events; the log takes at most 32767"
    ):
        await things(Pile(pile_id=thing_id, count=32_768))
    assert (await things(Pile(pile_id=thing_id, count=32_767))).version == 32_767


async def test_claims_of_several_events_follow_one_another(process: Start, connection: asyncpg.Connection) -> None:
    trips, trip_id = await process(TRIPS), new_id()
    await trips(Book(trip_id=trip_id, seats=["1a", "1b", "1a", "1c", "1c"]))
    assert [tuple(row) for row in await connection.fetch("select * from headwater.claims")] == [("seat", "1c", trip_id)]


async def test_a_claim_is_as_large_as_the_index_takes_it(process: Start, connection: asyncpg.Connection) -> None:
    """Whatever is in it: what cannot be compressed takes the most room."""
    trips = await process(TRIPS)
    random = token_urlsafe(LARGEST_CLAIM)
    fits = random[: LARGEST_CLAIM - len("seat")]
    assert (await trips(Book(trip_id=new_id(), seats=[fits]))).version == 1
    for seat in (random[:LARGEST_CLAIM], "ö" * (LARGEST_CLAIM // 2)):
        with pytest.raises(InvalidInput) as refused:
            await trips(Book(trip_id=new_id(), seats=["1a", seat]))
        assert (refused.value.path, refused.value.complaint) == (
            [],
            "Expected at most 2500 bytes in the claim 'seat', its name included, not 2504",
        )
    assert await connection.fetchval("select position from headwater.head") == 1
    assert [row["value"] for row in await connection.fetch("select value from headwater.claims")] == [fits]


class Pile(Command):
    """Put so many on a pile."""

    pile_id: UUID
    count: int


class Piled(Event):
    pile_id: UUID


def pile(command: Pile, state: int) -> list[Piled]:
    return [Piled(pile_id=command.pile_id)] * command.count


def piled(state: int, event: Piled) -> int:
    return state + 1


MANY = Domain([Feature(deciders=[Decider("pile", "pile_id", 0, pile, piled)])])


class Scale(Command):
    """Make a thing so many times as large."""

    thing_id: UUID
    by: float


class Scaled(Event):
    thing_id: UUID
    size: float


def scale(command: Scale, size: float) -> list[Scaled]:
    return [Scaled(thing_id=command.thing_id, size=1.0), Scaled(thing_id=command.thing_id, size=size * command.by)]


def scaled(size: float, event: Scaled) -> float:
    return event.size


THINGS = Domain([Feature(deciders=[Decider("thing", "thing_id", 1e308, scale, scaled)])])


def swap(command: Scale, size: float) -> list[Scaled]:
    return [
        Scaled(thing_id=command.thing_id, size=1.0),
        Scaled(thing_id=UUID(int=command.thing_id.int ^ (command.by < 0)), size=2.0),
    ]


SWAPPED = Domain([Feature(deciders=[Decider("thing", "thing_id", 1.0, swap, scaled)])])


async def test_an_event_that_names_another_stream_is_never_written(process: Start) -> None:
    things, thing_id = await process(SWAPPED), new_id()
    other = UUID(int=thing_id.int ^ 1)
    with pytest.raises(
        MisplacedEvent, match=f"^Scaled cannot be written to thing {thing_id}: its field thing_id is {other}$"
    ):
        await things(Scale(thing_id=thing_id, by=-1.0))
    assert await stream(things, thing_id) == await stream(things, other) == []
    assert (await things(Scale(thing_id=thing_id, by=1.0))).version == 2  # and the stream goes on
    with pytest.raises(MisplacedEvent):
        testing.given(SWAPPED.deciders[0]).when(Scale(thing_id=thing_id, by=-1.0))


async def test_an_event_that_could_not_be_read_back_is_never_written(process: Start) -> None:
    things, thing_id = await process(THINGS), new_id()
    with pytest.raises(UnreadableEvent, match=r"^Scaled cannot be written, .* - at `\$.size`$"):
        await things(Scale(thing_id=thing_id, by=10.0))
    assert await stream(things, thing_id) == []
    assert (await things(Scale(thing_id=thing_id, by=0.5))).version == 2  # and the stream goes on
    again = await process(THINGS)
    assert [event.size for event in await stream(again, thing_id) if isinstance(event, Scaled)] == [1.0, 5e307]


# ------------------------------------------------------------------------------------------- decisions that consult


def request(source: UUID, transfer_id: UUID | None = None) -> RequestTransfer:
    """Five from an account to one that nobody has opened."""
    return RequestTransfer(
        transfer_id=transfer_id or new_id(), from_account_id=source, to_account_id=new_id(), amount=Decimal(5)
    )


class Shut(Refusal):
    """The gate is shut."""

    times: int


class SetGate(Command):
    gate_id: UUID
    shut: bool


class GateSet(Event):
    gate_id: UUID
    shut: bool


class Enter(Command, refuses=[Shut]):
    visit_id: UUID
    gate_id: UUID


class Entered(Event):
    visit_id: UUID


def decide_gate(command: SetGate, shut: list[bool]) -> list[GateSet]:
    return [GateSet(gate_id=command.gate_id, shut=command.shut)]


def evolve_gate(shut: list[bool], event: GateSet) -> list[bool]:
    return [*shut, event.shut]


def decide_visit(command: Enter, state: int, seen: Seen) -> list[Entered]:
    history = seen.of(gates, command.gate_id)
    if history and history[-1]:
        raise Shut(sum(history))
    return [Entered(visit_id=command.visit_id)]


def evolve_visit(state: int, event: Entered) -> int:
    return state + 1


def consults_gate(command: Enter) -> Sequence[tuple[Decider[Any, Any, Any], UUID]]:
    return [(gates, command.gate_id)]


gates = Decider("gate", "gate_id", list[bool](), decide_gate, evolve_gate)
visits = Decider("visit", "visit_id", 0, decide_visit, evolve_visit, consults=consults_gate)
PARK = Domain([Feature(deciders=[gates, visits])])


def enter(gate_id: UUID, visit_id: UUID | None = None) -> Enter:
    return Enter(visit_id=visit_id or new_id(), gate_id=gate_id)


@pytest.mark.parametrize("cache", [1000, 1], ids=["cached", "dropped"])
async def test_a_no_on_what_another_process_has_changed_since_is_never_given(
    process: Start, other: Process, cache: int
) -> None:
    bank, account_id, transfer_id = await process(cache=cache), new_id(), new_id()
    assert await refusal_of(bank(request(account_id))) == (AccountNotFound, {"account_id": account_id})
    await other(OpenAccount(account_id=account_id, owner_id=new_id(), currency="USD"))
    assert (await bank(request(account_id, transfer_id))).version == 1
    (requested,) = await stream(bank, transfer_id)
    assert isinstance(requested, TransferRequested)
    assert requested.currency == "USD"


async def test_what_is_remembered_is_advanced_before_a_no_and_before_no_yes(process: Start) -> None:
    park, beside, gate_id, visit_id = await process(PARK), await process(PARK), new_id(), new_id()
    await park(SetGate(gate_id=gate_id, shut=True))
    await beside(SetGate(gate_id=gate_id, shut=True))
    assert await refusal_of(park(enter(gate_id))) == (Shut, {"times": 2})  # with the facts of the log
    await beside(SetGate(gate_id=gate_id, shut=False))
    assert (await park(enter(gate_id, visit_id))).version == 1
    # A yes is advice, and costs nothing: it rests on what this process knows, until it reads.
    read = park.log.reads[gate_id]
    await beside(SetGate(gate_id=gate_id, shut=True))
    assert (await park(enter(gate_id, visit_id))).version == 2
    assert park.log.reads[gate_id] == read
    await park(SetGate(gate_id=gate_id, shut=True))
    assert await refusal_of(park(enter(gate_id, visit_id))) == (Shut, {"times": 4})


async def test_who_asks_first_reads_a_consulted_stream_once(bank: Process, other: Process) -> None:
    account_id, missing = await opened(bank), new_id()
    await asyncio.gather(*(other(request(account_id)) for _ in range(20)))
    assert other.log.reads[account_id] == 1
    # It was read for this command: the no is true at once.
    assert await refusal_of(other(request(missing))) == (AccountNotFound, {"account_id": missing})
    assert other.log.reads[missing] == 1


async def test_consulting_a_hot_stream_does_not_disturb_it(bank: Process) -> None:
    account_id, transfer_id = await opened(bank), new_id()
    await bank(request(account_id, transfer_id))
    answers = await asyncio.gather(
        *(
            bank(command)
            for place in range(100)
            for command in (
                deposit(account_id, 1),
                request(account_id),
                *([request(account_id, transfer_id)] if place % 10 == 0 else []),
            )
        ),
        return_exceptions=True,
    )
    assert Counter(type(answer) for answer in answers) == {Accepted: 200, AlreadyExists: 10}
    assert 0 < bank.log.reads[account_id] <= 10, "for a no, and shared by those who ask meanwhile"
    assert await state(bank, account_id) == Account(AccountStatus.OPEN, Decimal(100), "EUR")
    assert (await bank(withdraw(account_id, 100))).version == 102


async def test_a_command_that_consulted_is_answered_as_at_first(bank: Process, other: Process) -> None:
    account_id, command_id = await opened(bank), new_id()
    command = request(account_id)
    first = await bank(command, command_id=command_id)
    assert [await each(command, command_id=command_id) for each in (bank, other)] == [first, first]
    assert await refusal_of(other(command)) == (AlreadyExists, {})


async def test_an_id_of_another_kind_of_thing_cannot_be_consulted(bank: Process) -> None:
    user_id = new_id()
    await bank(register("ada@example.org", user_id))
    refusal, facts = await refusal_of(bank(request(user_id)))
    assert (refusal, facts["path"]) == (InvalidInput, ["from_account_id"])
    await bank(ChangeEmail(user_id=user_id, email="b@example.org"))


async def test_a_decider_that_no_feature_brings_cannot_be_consulted(process: Start) -> None:
    lost = await process(Domain([Feature(deciders=[visits])]))
    with pytest.raises(DefinitionError, match="Enter consults gate, which no feature of this app contains"):
        await lost(enter(new_id()))


# ---------------------------------------------------------------------------------------------------------- all at once

ACTIONS = st.tuples(
    st.integers(0, 1),  # the process
    st.integers(0, 2),  # the account
    st.integers(-40, 40).filter(bool),  # taken out or put in
    st.integers(0, 30),  # the command id: some come twice
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers=st.lists(st.lists(ACTIONS, min_size=1, max_size=6), min_size=1, max_size=12))
async def test_many_callers_of_two_processes_leave_what_they_were_told(
    bank: Process, other: Process, connection: asyncpg.Connection, callers: list[list[tuple[int, int, int, int]]]
) -> None:
    ids = [await opened(bank, 50) for _ in range(3)]
    commands = [new_id() for _ in range(31)]
    told: list[Accepted] = []
    refused: list[tuple[Decimal, Decimal]] = []

    async def call(actions: list[tuple[int, int, int, int]]) -> None:
        for process, account, amount, place in actions:
            command = deposit(ids[account], amount) if amount > 0 else withdraw(ids[account], -amount)
            try:
                told.append(await (bank, other)[process](command, command_id=commands[place]))
            except InsufficientFunds as refusal:
                refused.append((refusal.balance, Decimal(-amount)))
            except CommandIdReused:
                pass  # for another account

    await asyncio.gather(*(call(actions) for actions in callers))
    rows = await connection.fetch(
        "select command_id, stream_id, version, position from headwater.events where command_id = any($1)", commands
    )
    assert set(told) == {Accepted(*row) for row in rows}
    assert all(0 <= balance < asked for balance, asked in refused)
    for account_id in ids:
        await state(bank, account_id)
