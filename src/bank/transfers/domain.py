"""Transfers: the commands, refusals, events, state and decider. Read it from top to bottom.

    REQUESTED ── WITHDRAWN ── COMPLETED
        ├─ REFUSED   └─────── REFUNDED
        └──────────────────── REFUNDED   if it failed before the withdrawal was noted

A transfer records its own progress and moves no money. The saga moves it, with commands to the two accounts.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import TypeAlias, assert_never
from uuid import UUID

from bank.accounts.domain import AccountNotFound, Money, accounts
from bank.users.domain import AlreadyExists
from headwater import Command, Consult, Context, Decider, Event, Refusal


class TransferStatus(Enum):
    """The progress of a transfer. COMPLETED, REFUSED (no money moved) and REFUNDED (it came back) are final."""

    REQUESTED = "REQUESTED"
    WITHDRAWN = "WITHDRAWN"
    COMPLETED = "COMPLETED"
    REFUSED = "REFUSED"
    REFUNDED = "REFUNDED"


class SameAccount(Refusal):
    """A transfer goes from one account to another."""


class TransferNotFound(Refusal):
    """There is no such transfer."""

    transfer_id: UUID


class TransferCannotMove(Refusal):
    """The transfer is over, or has not come so far yet."""

    status: TransferStatus


Immovable: TypeAlias = TransferNotFound | TransferCannotMove


class RequestTransfer(Command, creates=True):
    """Request a transfer from one account to another, in the currency of the first. Its status shows how it ends."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: Money


class NoteWithdrawn(Command, internal=True):
    """Note that the money has left the source account."""

    transfer_id: UUID


class CompleteTransfer(Command, internal=True):
    """Note that the money has arrived at the target account."""

    transfer_id: UUID


class RefuseTransfer(Command, internal=True):
    """End the transfer: the money never left the source account. reason: the code of the refusal or timeout."""

    transfer_id: UUID
    reason: str


class RefundTransfer(Command, internal=True):
    """End the transfer: the money is back in the source account. reason: the code of the refusal or timeout."""

    transfer_id: UUID
    reason: str


class TransferRequested(Event):
    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: Decimal
    currency: str


class TransferWithdrawn(Event):
    transfer_id: UUID


class TransferCompleted(Event):
    transfer_id: UUID


class TransferRefused(Event):
    transfer_id: UUID
    reason: str


class TransferRefunded(Event):
    transfer_id: UUID
    reason: str


TransferEvent: TypeAlias = (
    TransferRequested | TransferWithdrawn | TransferCompleted | TransferRefused | TransferRefunded
)


@dataclass(frozen=True, slots=True)
class Transfer:
    """The state that a decision about a transfer needs. status: None before the transfer is requested."""

    status: TransferStatus | None = None


def consults(command: RequestTransfer) -> list[Consult]:
    """Return the source account, whose currency the transfer takes. Its balance is checked when the money leaves it."""
    return [Consult(accounts, command.from_account_id)]


def request(
    command: RequestTransfer, transfer: Transfer, context: Context
) -> TransferRequested | AlreadyExists | SameAccount | AccountNotFound:
    if transfer.status is not None:
        return AlreadyExists()
    if command.from_account_id == command.to_account_id:
        return SameAccount()
    source = context.seen.of(accounts, command.from_account_id)
    if source.status is None:
        return AccountNotFound(account_id=command.from_account_id)
    return TransferRequested(
        transfer_id=command.transfer_id,
        from_account_id=command.from_account_id,
        to_account_id=command.to_account_id,
        amount=command.amount,
        currency=source.currency,
    )


def note_withdrawn(command: NoteWithdrawn, transfer: Transfer) -> TransferWithdrawn | Immovable | None:
    if transfer.status is TransferStatus.REQUESTED:
        return TransferWithdrawn(transfer_id=command.transfer_id)
    return _unless(TransferStatus.WITHDRAWN, transfer, command.transfer_id)


def complete(command: CompleteTransfer, transfer: Transfer) -> TransferCompleted | Immovable | None:
    if transfer.status is TransferStatus.WITHDRAWN:
        return TransferCompleted(transfer_id=command.transfer_id)
    return _unless(TransferStatus.COMPLETED, transfer, command.transfer_id)


def refuse(command: RefuseTransfer, transfer: Transfer) -> TransferRefused | Immovable | None:
    if transfer.status is TransferStatus.REQUESTED:
        return TransferRefused(transfer_id=command.transfer_id, reason=command.reason)
    return _unless(TransferStatus.REFUSED, transfer, command.transfer_id)


def refund(command: RefundTransfer, transfer: Transfer) -> TransferRefunded | Immovable | None:
    if transfer.status in (TransferStatus.REQUESTED, TransferStatus.WITHDRAWN):
        return TransferRefunded(transfer_id=command.transfer_id, reason=command.reason)
    return _unless(TransferStatus.REFUNDED, transfer, command.transfer_id)


def _unless(reached: TransferStatus, transfer: Transfer, transfer_id: UUID) -> Immovable | None:
    """Return why a transfer cannot move to a status; None if it has that status already."""
    if transfer.status is None:
        return TransferNotFound(transfer_id=transfer_id)
    return None if transfer.status is reached else TransferCannotMove(status=transfer.status)


def evolve(transfer: Transfer, event: TransferEvent) -> Transfer:
    match event:
        case TransferRequested():
            return Transfer(TransferStatus.REQUESTED)
        case TransferWithdrawn():
            return Transfer(TransferStatus.WITHDRAWN)
        case TransferCompleted():
            return Transfer(TransferStatus.COMPLETED)
        case TransferRefused():
            return Transfer(TransferStatus.REFUSED)
        case TransferRefunded():
            return Transfer(TransferStatus.REFUNDED)
        case _:
            assert_never(event)


transfers = Decider(
    "transfer",
    key="transfer_id",
    initial=Transfer(),
    decide=[request, note_withdrawn, complete, refuse, refund],
    evolve=evolve,
    consults=consults,
)
