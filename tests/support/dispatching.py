"""Processes with a dispatcher of their own, commands of the bank, and what the log holds after them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol, TypeAlias
from uuid import UUID

import asyncpg
from tests.support.executing import unrefused

from bank.accounts.domain import Account, Deposit, OpenAccount, Withdraw, accounts
from bank.users.domain import RegisterUser
from headwater import Command, Event, Recorded, Refusal
from headwater.commands.dispatcher import Accepted, Dispatcher, Origin
from headwater.domain.feature import Domain
from headwater.eventstore.appender import Appender
from headwater.eventstore.log import Append, Appended, Log
from headwater.ids import new_id

Write: TypeAlias = Callable[[asyncpg.Connection, Sequence[Append]], Awaitable[list[Appended]]]
"""Appends a batch, as the appender is given it."""

_NO_ORIGIN = Origin()


class CountingLog(Log):
    """A log that counts how often each stream was read. blind: read every stream as empty, so that each append to one
    that is not empty loses."""

    def __init__(self, pool: asyncpg.Pool, domain: Domain) -> None:
        super().__init__(pool, domain.codec)
        self.reads: Counter[UUID] = Counter()
        self.blind = False

    async def read_stream(
        self, stream_id: UUID, after_version: int = 0, *, page: int = 1000
    ) -> AsyncGenerator[tuple[str, Recorded[Event]], None]:
        self.reads[stream_id] += 1
        if self.blind:
            return
        async with aclosing(super().read_stream(stream_id, after_version, page=page)) as events:
            async for each in events:
                yield each


@dataclass
class Process:
    """The dispatcher, appender and log that one process of an app has of its own.

    Calling it executes a command that must be accepted. `ask` executes one that may be refused.
    """

    dispatcher: Dispatcher
    appender: Appender
    log: CountingLog

    async def __call__(
        self,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int | None = None,
        origin: Origin = _NO_ORIGIN,
    ) -> Accepted:
        return unrefused(
            await self.ask(command, command_id=command_id, expected_version=expected_version, origin=origin)
        )

    async def ask(
        self,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int | None = None,
        origin: Origin = _NO_ORIGIN,
    ) -> Accepted | Refusal:
        return await self.dispatcher.execute(
            command, command_id=command_id, expected_version=expected_version, origin=origin
        )


class Start(Protocol):
    """Starts a process of an app; of the bank by default."""

    async def __call__(
        self,
        domain: Domain = ...,
        *,
        cache: int = ...,
        write: Write = ...,
        attempts: int = ...,
        sleep: Callable[[float], Awaitable[None]] = ...,
    ) -> Process: ...


async def opened(bank: Process, balance: int = 0) -> UUID:
    """Open an account with this balance. Returns its id."""
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
    """Return the events of a stream, after checking that their versions are 1 to n."""
    found = [event async for _, event in bank.log.read_stream(stream_id)]
    assert [event.version for event in found] == list(range(1, len(found) + 1))
    return [event.data for event in found]


async def state(bank: Process, account_id: UUID) -> Account:
    """Return the state of an account, after checking that no balance was ever below zero."""
    account: Account = accounts.initial
    for event in await stream(bank, account_id):
        account = accounts.evolved(account, event)
        assert account.balance >= 0
    return account
