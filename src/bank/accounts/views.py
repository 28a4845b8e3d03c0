"""Accounts: the read model that clients query, and its fold."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import assert_never
from uuid import UUID

from bank.accounts.domain import (
    AccountClosed,
    AccountFrozen,
    AccountOpened,
    AccountStatus,
    AccountUnfrozen,
    MoneyDeposited,
    MoneyWithdrawn,
    Shown,
    TransferReceived,
    TransferReturned,
    TransferSent,
    balance_after,
)
from bank.users.views import UserView
from headwater import Link, ReadModel, Recorded, View, replace


class AccountView(ReadModel, name="Account", key="account_id", indexes=["owner_id", "opened_at"]):
    """An account, as its owner sees it."""

    account_id: UUID
    owner_id: UUID
    currency: str
    status: AccountStatus
    balance: Decimal
    entry_count: int
    opened_at: datetime
    updated_at: datetime

    owner = Link(UserView, by="owner_id")


def fold(row: AccountView | None, event: Recorded[Shown]) -> AccountView | None:
    if isinstance(event.data, AccountOpened):
        return AccountView(
            account_id=event.data.account_id,
            owner_id=event.data.owner_id,
            currency=event.data.currency,
            status=AccountStatus.OPEN,
            balance=Decimal(0),
            entry_count=0,
            opened_at=event.recorded_at,
            updated_at=event.recorded_at,
        )
    assert row is not None  # an account is opened first
    match event.data:
        case (MoneyDeposited() | MoneyWithdrawn() | TransferSent() | TransferReceived() | TransferReturned()) as e:
            balance = balance_after(row.balance, e)
            return replace(row, balance=balance, entry_count=row.entry_count + 1, updated_at=event.recorded_at)
        case AccountFrozen():
            return replace(row, status=AccountStatus.FROZEN, updated_at=event.recorded_at)
        case AccountUnfrozen():
            return replace(row, status=AccountStatus.OPEN, updated_at=event.recorded_at)
        case AccountClosed():
            return replace(row, status=AccountStatus.CLOSED, updated_at=event.recorded_at)
        case _:
            assert_never(event.data)


account_view = View(AccountView, fold)
