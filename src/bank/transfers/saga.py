"""Transfers: the saga that moves the money from the source account to the target, or back to the source.

TransferRequested -> SendTransfer -> NoteWithdrawn -> ReceiveTransfer -> SettleTransfer -> CompleteTransfer
                        |                                |
                        | refused or timed out           | refused or timed out
                        v                                v
                     RefuseTransfer                   ReturnTransfer -> RefundTransfer

The source account cannot be closed between SendTransfer and SettleTransfer or ReturnTransfer. The transfer is settled
before it is completed, so that a client that sees it completed can close the account.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias, assert_never

from bank.accounts.domain import ReceiveTransfer, ReturnTransfer, SendTransfer, SettleTransfer
from bank.transfers.domain import CompleteTransfer, NoteWithdrawn, RefundTransfer, RefuseTransfer, TransferRequested
from headwater import Do, Done, Refused, Retry, Saga, TimedOut

STEP_TIMEOUT = timedelta(seconds=30)
"""The timeout of the steps that move money. If SendTransfer times out, no money has moved; if ReceiveTransfer does, the
money goes back."""

Input: TypeAlias = TransferRequested | Refused | TimedOut


def react(request: TransferRequested | None, event: Input) -> list[Do | Done]:
    assert request is not None  # `evolve` has stored the event that began the instance
    transfer, amount = request.transfer_id, request.amount
    match event:
        case TransferRequested(from_account_id=source, to_account_id=target, currency=currency):
            return [
                Do(
                    SendTransfer(account_id=source, transfer_id=transfer, amount=amount),
                    undo=ReturnTransfer(account_id=source, transfer_id=transfer, amount=amount),
                    within=STEP_TIMEOUT,
                ),
                Do(NoteWithdrawn(transfer_id=transfer)),
                Do(
                    ReceiveTransfer(account_id=target, transfer_id=transfer, amount=amount, currency=currency),
                    within=STEP_TIMEOUT,
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
            # The transfer accepts its own commands in this order. A refusal is a bug, which an operator must look at.
            raise RuntimeError(f"{event.command} was refused with {event.code}")
        case _:
            assert_never(event)


def evolve(request: TransferRequested | None, event: TransferRequested) -> TransferRequested:
    return event


transfer = Saga(
    "Transfer", route="transfer_id", initial=None, react=react, evolve=evolve, undo_retry=Retry(times=3, first=0.5)
)
