"""Transfers: how the money moves. It leaves one account, then it reaches the other, or it comes back.

TransferRequested -> SendTransfer -> NoteWithdrawn -> ReceiveTransfer -> SettleTransfer -> CompleteTransfer
                        |                                |
                        | refused                        | refused, or no answer in time
                        v                                v
                     RefuseTransfer                   ReturnTransfer -> RefundTransfer

From SendTransfer to SettleTransfer or ReturnTransfer the account that the money comes from cannot be closed. It is
settled before the transfer is completed, so that whoever sees it completed can close the account.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias, assert_never

from bank.accounts.domain import ReceiveTransfer, ReturnTransfer, SendTransfer, SettleTransfer
from bank.transfers.domain import CompleteTransfer, NoteWithdrawn, RefundTransfer, RefuseTransfer, TransferRequested
from headwater import Do, Done, Refused, Retry, Saga, TimedOut

PATIENCE = timedelta(seconds=30)
"""How long an account may take to answer, before the money stays where it is, or comes back."""

Input: TypeAlias = TransferRequested | Refused | TimedOut


def react(request: TransferRequested | None, event: Input) -> list[Do | Done]:
    assert request is not None  # it starts the saga
    transfer, amount = request.transfer_id, request.amount
    match event:
        case TransferRequested(from_account_id=source, to_account_id=target, currency=currency):
            return [
                Do(
                    SendTransfer(account_id=source, transfer_id=transfer, amount=amount, hold=True),
                    undo=ReturnTransfer(account_id=source, transfer_id=transfer, amount=amount),
                    within=PATIENCE,
                ),
                Do(NoteWithdrawn(transfer_id=transfer)),
                Do(
                    ReceiveTransfer(account_id=target, transfer_id=transfer, amount=amount, currency=currency),
                    within=PATIENCE,
                    pivot=True,
                ),
                Do(SettleTransfer(account_id=source, transfer_id=transfer)),
                Do(CompleteTransfer(transfer_id=transfer)),
                Done(),
            ]
        case Refused(command="SendTransfer") | TimedOut(command="SendTransfer"):
            return [Do(RefuseTransfer(transfer_id=transfer, reason=event.code)), Done()]
        case Refused(command="ReceiveTransfer") | TimedOut(command="ReceiveTransfer"):
            return [Do(RefundTransfer(transfer_id=transfer, reason=event.code)), Done()]
        case Refused() | TimedOut():
            # The transfer's own books refuse nothing that comes in this order. If they do, a person must look.
            raise RuntimeError(f"{event.command} was refused with {event.code}")
        case _:
            assert_never(event)


def evolve(request: TransferRequested | None, event: TransferRequested) -> TransferRequested:
    return event


transfer = Saga(
    "Transfer", route="transfer_id", initial=None, react=react, evolve=evolve, undo_retry=Retry(times=3, first=0.5)
)
