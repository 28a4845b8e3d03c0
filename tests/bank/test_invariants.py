"""The invariants of the bank: a log that contradicts itself is found, although every row equals its fold."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

import asyncpg
import pytest
from tests.support.commands import run_command
from tests.support.folding import fold_of_log, stored
from tests.support.log import append_undecided
from tests.support.waiting import until

from bank.accounts.domain import (
    AccountEvent,
    AccountOpened,
    MoneyDeposited,
    MoneyWithdrawn,
    TransferReceived,
    TransferReturned,
    TransferSent,
)
from bank.accounts.invariants import balance, transfer_money
from bank.accounts.views import account_view
from bank.main import app
from headwater.config import Settings
from headwater.server.node import Node
from headwater.testing import recorded, violations

A, B, T, U = (UUID(int=number) for number in (1, 2, 8, 9))


def opened(account: UUID = A) -> AccountOpened:
    return AccountOpened(account_id=account, owner_id=account, currency="EUR")


def deposited(amount: int, after: int, account: UUID = A) -> MoneyDeposited:
    return MoneyDeposited(account_id=account, amount=Decimal(amount), balance=Decimal(after))


def withdrawn(amount: int, after: int | None, account: UUID = A) -> MoneyWithdrawn:
    return MoneyWithdrawn(account_id=account, amount=Decimal(amount), balance=None if after is None else Decimal(after))


def sent(amount: int, after: int, transfer: UUID = T) -> TransferSent:
    return TransferSent(account_id=A, transfer_id=transfer, amount=Decimal(amount), balance=Decimal(after))


def received(amount: int, transfer: UUID = T) -> TransferReceived:
    return TransferReceived(account_id=B, transfer_id=transfer, amount=Decimal(amount), balance=Decimal(amount))


def returned(amount: int, transfer: UUID = T) -> TransferReturned:
    return TransferReturned(account_id=A, transfer_id=transfer, amount=Decimal(amount), balance=Decimal(amount))


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([opened(), deposited(5, 5), withdrawn(2, 3), sent(3, 0), returned(3), withdrawn(3, 0)], []),
        ([deposited(5, 5), withdrawn(2, None), withdrawn(3, 0)], []),
        ([deposited(1, 1), withdrawn(100, 0)], ["the event says that the balance is 0; the amounts add up to -99"]),
        ([deposited(1, 1), withdrawn(2, -1)], ["the account is overdrawn: the amounts add up to -1"]),
        ([deposited(1, 1), withdrawn(2, None)], ["the account is overdrawn: the amounts add up to -1"]),
        (
            [deposited(1, 2), deposited(7, 1, B), deposited(1, 3)],
            [
                "the event says that the balance is 2; the amounts add up to 1",
                "the event says that the balance is 1; the amounts add up to 7",
            ],
        ),
    ],
    ids=str,
)
def test_the_amounts_of_an_account_add_up_to_its_balance(events: Sequence[AccountEvent], found: list[str]) -> None:
    assert violations(balance, [recorded(each, stream_id=each.account_id) for each in events]) == found


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ([sent(3, 0), sent(4, 0, U), received(3), returned(4, U)], []),
        ([sent(3, 0)], []),
        ([sent(3, 0), received(2)], ["2 of the transfer arrives, and 3 is under way"]),
        ([sent(3, 0), received(3), returned(3)], ["3 of the transfer arrives, and 0 is under way"]),
        ([received(3)], ["3 of the transfer arrives, and 0 is under way"]),
        ([sent(3, 0), sent(3, 0), received(3)], ["the transfer sends 3, and 3 is under way already"]),
    ],
    ids=str,
)
def test_the_money_of_a_transfer_arrives_once(events: Sequence[AccountEvent], found: list[str]) -> None:
    assert violations(transfer_money, [recorded(each, stream_id=each.account_id) for each in events]) == found


async def test_an_overdrawn_log_is_found_although_every_row_equals_its_fold(
    dsn: str, connection: asyncpg.Connection
) -> None:
    """As after a failover: a process remembers a deposit of 100 that was lost, in the place of a deposit of 1."""
    log: list[AccountEvent] = [opened(), deposited(1, 1), withdrawn(100, 0), opened(B), received(7)]
    await append_undecided(connection, "account", [(each.account_id, each) for each in log])
    async with Node(app, Settings(), dsn, serve=False, work=True):

        async def projected() -> bool:
            return len(await stored(connection, account_view)) == 2

        await until(projected)
    assert await stored(connection, account_view) == await fold_of_log(connection, app, account_view)

    code, out, complaint = await run_command("verify", "--all", DATABASE_URL=dsn)
    assert (code, complaint) == (1, "")
    assert out.splitlines() == [
        "User: 0 rows compared at position 5: no difference",
        "Account: 2 rows compared at position 5: no difference",
        "Transfer: 0 rows compared at position 5: no difference",
        "balance: 3 events checked up to position 5: 1 violation",
        f"  {A}  position 3: the event says that the balance is 0; the amounts add up to -99",
        "transfer_money: 1 event checked up to position 5: 1 violation",
        f"  {T}  position 5: 7 of the transfer arrives, and 0 is under way",
    ]
