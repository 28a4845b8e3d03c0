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
from typing import TypeAlias

from bank.accounts.domain import ReceiveTransfer, ReturnTransfer, SendTransfer, SettleTransfer
from bank.transfers.domain import CompleteTransfer, NoteWithdrawn, RefundTransfer, RefuseTransfer, TransferRequested
from headwater import Do, Done, Refused, Retry, Saga, TimedOut

STEP_TIMEOUT = timedelta(seconds=30)
"""The timeout of the steps that move money. If SendTransfer times out, no money has moved; if ReceiveTransfer does, the
money goes back."""


def move(
    request: TransferRequested | None, event: TransferRequested
) -> list[Do[SendTransfer | NoteWithdrawn | ReceiveTransfer | SettleTransfer | CompleteTransfer] | Done]:
    transfer, amount, source, target = event.transfer_id, event.amount, event.from_account_id, event.to_account_id
    return [
        Do(
            SendTransfer(account_id=source, transfer_id=transfer, amount=amount),
            undo=ReturnTransfer(account_id=source, transfer_id=transfer, amount=amount),
            within=STEP_TIMEOUT,
        ),
        Do(NoteWithdrawn(transfer_id=transfer)),
        Do(
            ReceiveTransfer(account_id=target, transfer_id=transfer, amount=amount, currency=event.currency),
            within=STEP_TIMEOUT,
            pivot=True,
        ),
        Do(SettleTransfer(account_id=source, transfer_id=transfer)),
        Do(CompleteTransfer(transfer_id=transfer)),
        Done(),
    ]


def not_sent(
    request: TransferRequested | None, event: Refused[SendTransfer] | TimedOut[SendTransfer]
) -> list[Do[RefuseTransfer] | Done]:
    return [Do(RefuseTransfer(transfer_id=event.command.transfer_id, reason=event.code)), Done()]


def not_received(
    request: TransferRequested | None, event: Refused[ReceiveTransfer] | TimedOut[ReceiveTransfer]
) -> list[Do[RefundTransfer] | Done]:
    return [Do(RefundTransfer(transfer_id=event.command.transfer_id, reason=event.code)), Done()]


Noted: TypeAlias = NoteWithdrawn | SettleTransfer | CompleteTransfer | RefuseTransfer | RefundTransfer


def not_noted(request: TransferRequested | None, event: Refused[Noted]) -> list[Done]:
    """The transfer accepts these commands in their order. A refusal is a bug, which an operator must look at."""
    raise RuntimeError(f"{type(event.command).__name__} was refused with {event.code}")


def evolve(request: TransferRequested | None, event: TransferRequested) -> TransferRequested:
    return event


transfer = Saga(
    "Transfer",
    route="transfer_id",
    initial=None,
    react=[move, not_sent, not_received, not_noted],
    evolve=evolve,
    undo_retry=Retry(times=3, first=0.5),
)
