"""Transfers: the read model that clients query, and its fold."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import assert_never
from uuid import UUID

from bank.accounts.views import AccountView
from bank.transfers.domain import (
    TransferCompleted,
    TransferEvent,
    TransferRefunded,
    TransferRefused,
    TransferRequested,
    TransferStatus,
    TransferWithdrawn,
)
from headwater import Link, ReadModel, Recorded, View, replace


class TransferView(ReadModel, name="Transfer", key="transfer_id", indexes=["requested_at"]):
    """A transfer, and how far it has come. `reason` is the code of what went wrong, where something did."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: Decimal
    currency: str
    status: TransferStatus
    reason: str | None
    requested_at: datetime
    updated_at: datetime

    from_account = Link(AccountView, by="from_account_id")
    to_account = Link(AccountView, by="to_account_id")


def fold(row: TransferView | None, event: Recorded[TransferEvent]) -> TransferView | None:
    if isinstance(event.data, TransferRequested):
        return TransferView(
            transfer_id=event.data.transfer_id,
            from_account_id=event.data.from_account_id,
            to_account_id=event.data.to_account_id,
            amount=event.data.amount,
            currency=event.data.currency,
            status=TransferStatus.REQUESTED,
            reason=None,
            requested_at=event.recorded_at,
            updated_at=event.recorded_at,
        )
    assert row is not None  # a transfer is requested first
    match event.data:
        case TransferWithdrawn():
            return replace(row, status=TransferStatus.WITHDRAWN, updated_at=event.recorded_at)
        case TransferCompleted():
            return replace(row, status=TransferStatus.COMPLETED, updated_at=event.recorded_at)
        case TransferRefused() as e:
            return replace(row, status=TransferStatus.REFUSED, reason=e.reason, updated_at=event.recorded_at)
        case TransferRefunded() as e:
            return replace(row, status=TransferStatus.REFUNDED, reason=e.reason, updated_at=event.recorded_at)
        case _:
            assert_never(event.data)


transfer_view = View(TransferView, fold)
