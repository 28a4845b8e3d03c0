"""Transfers: the commands, refusals, events, state and decider. Read it from top to bottom.

    REQUESTED ── WITHDRAWN ── COMPLETED
        ├─ REFUSED   └─────── REFUNDED
        └──────────────────── REFUNDED   if it failed before the withdrawal was noted

A transfer records its own progress and moves no money. The saga moves it, with commands to the two accounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import TypeAlias, assert_never
from uuid import UUID

from bank.accounts.domain import AccountNotFound, Money, accounts
from bank.users.domain import AlreadyExists
from headwater import Command, Consulted, Decider, Event, Refusal, Seen


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


class RequestTransfer(Command, creates=True, refuses=[AlreadyExists, SameAccount, AccountNotFound]):
    """Request a transfer from one account to another, in the currency of the first. Its status shows how it ends."""

    transfer_id: UUID
    from_account_id: UUID
    to_account_id: UUID
    amount: Money


class NoteWithdrawn(Command, internal=True, refuses=[TransferNotFound, TransferCannotMove]):
    """Note that the money has left the source account."""

    transfer_id: UUID


class CompleteTransfer(Command, internal=True, refuses=[TransferNotFound, TransferCannotMove]):
    """Note that the money has arrived at the target account."""

    transfer_id: UUID


class RefuseTransfer(Command, internal=True, refuses=[TransferNotFound, TransferCannotMove]):
    """End the transfer: the money never left the source account. reason: the code of the refusal or timeout."""

    transfer_id: UUID
    reason: str


class RefundTransfer(Command, internal=True, refuses=[TransferNotFound, TransferCannotMove]):
    """End the transfer: the money is back in the source account. reason: the code of the refusal or timeout."""

    transfer_id: UUID
    reason: str


TransferCommand: TypeAlias = RequestTransfer | NoteWithdrawn | CompleteTransfer | RefuseTransfer | RefundTransfer


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


def consults(command: TransferCommand) -> Sequence[Consulted]:
    """Return the source account, whose currency the transfer takes. Its balance is checked when the money leaves it."""
    return [(accounts, command.from_account_id)] if isinstance(command, RequestTransfer) else []


def decide(command: TransferCommand, transfer: Transfer, seen: Seen) -> list[TransferEvent]:
    match command:
        case RequestTransfer():
            return [_requested(command, transfer, seen)]
        case NoteWithdrawn():
            if _has_reached(transfer, command, TransferStatus.WITHDRAWN, TransferStatus.REQUESTED):
                return []
            return [TransferWithdrawn(transfer_id=command.transfer_id)]
        case CompleteTransfer():
            if _has_reached(transfer, command, TransferStatus.COMPLETED, TransferStatus.WITHDRAWN):
                return []
            return [TransferCompleted(transfer_id=command.transfer_id)]
        case RefuseTransfer():
            if _has_reached(transfer, command, TransferStatus.REFUSED, TransferStatus.REQUESTED):
                return []
            return [TransferRefused(transfer_id=command.transfer_id, reason=command.reason)]
        case RefundTransfer():
            either = TransferStatus.REQUESTED, TransferStatus.WITHDRAWN
            if _has_reached(transfer, command, TransferStatus.REFUNDED, *either):
                return []
            return [TransferRefunded(transfer_id=command.transfer_id, reason=command.reason)]
        case _:
            assert_never(command)


def _requested(command: RequestTransfer, transfer: Transfer, seen: Seen) -> TransferRequested:
    if transfer.status is not None:
        raise AlreadyExists()
    if command.from_account_id == command.to_account_id:
        raise SameAccount()
    source = seen.of(accounts, command.from_account_id)
    if source.status is None:
        raise AccountNotFound(account_id=command.from_account_id)
    return TransferRequested(
        transfer_id=command.transfer_id,
        from_account_id=command.from_account_id,
        to_account_id=command.to_account_id,
        amount=command.amount,
        currency=source.currency,
    )


def _has_reached(transfer: Transfer, command: TransferCommand, wanted: TransferStatus, *before: TransferStatus) -> bool:
    """Return True if the transfer has the wanted status, and False if it has a status from which it can reach it.

    Raises:
        TransferNotFound: the transfer was not requested.
        TransferCannotMove: it has another status.
    """
    if transfer.status is None:
        raise TransferNotFound(transfer_id=command.transfer_id)
    if transfer.status is not wanted and transfer.status not in before:
        raise TransferCannotMove(status=transfer.status)
    return transfer.status is wanted


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
    category="transfer", key="transfer_id", initial=Transfer(), decide=decide, evolve=evolve, consults=consults
)
