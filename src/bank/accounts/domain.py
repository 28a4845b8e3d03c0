"""Accounts: the commands, refusals, events, state and decider. Read it from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import Enum
from typing import Annotated, TypeAlias, assert_never
from uuid import UUID

from msgspec import Meta

from bank.users.domain import AlreadyExists
from headwater import Command, Decider, Event, Exact, Refusal

Money: TypeAlias = Annotated[Decimal, Exact(above=0, places=2, digits=18)]
Currency: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Z]{3}\Z", examples=["EUR"])]


class AccountStatus(Enum):
    """Whether money may move."""

    OPEN = "OPEN"
    FROZEN = "FROZEN"
    CLOSED = "CLOSED"


class AccountNotFound(Refusal):
    """There is no such account."""

    account_id: UUID


class AccountNotOpen(Refusal):
    """The account is frozen or closed."""

    status: AccountStatus


class InsufficientFunds(Refusal):
    """The account does not hold that much."""

    balance: Decimal


Unusable: TypeAlias = AccountNotFound | AccountNotOpen


class AccountNotEmpty(Refusal):
    """Only an empty account can be closed. Money on its way out counts until it has arrived: it may come back."""

    balance: Decimal


class CurrencyMismatch(Refusal):
    """The account holds another currency."""

    expected: str
    actual: str


class OpenAccount(Command, creates=True):
    """Open an account for an owner in one currency, with nothing in it."""

    account_id: UUID
    owner_id: UUID
    currency: Currency


class Deposit(Command):
    """Put money into an account."""

    account_id: UUID
    amount: Money


class Withdraw(Command):
    """Take money out of an account."""

    account_id: UUID
    amount: Money


class FreezeAccount(Command):
    """Let no money move on an account until it is unfrozen."""

    account_id: UUID


class UnfreezeAccount(Command):
    """Let money move on a frozen account again."""

    account_id: UUID


class CloseAccount(Command):
    """Close an empty account for good. It is not empty while a transfer out of it is under way."""

    account_id: UUID


class SendTransfer(Command, internal=True):
    """Take the money of a transfer out of its source account.

    The account cannot be closed until SettleTransfer or ReturnTransfer follows.
    """

    account_id: UUID
    transfer_id: UUID
    amount: Money


class SettleTransfer(Command, internal=True):
    """Note that the money of a transfer has arrived at its target, and will not come back."""

    account_id: UUID
    transfer_id: UUID


class ReceiveTransfer(Command, internal=True):
    """Put the money of a transfer into its target account."""

    account_id: UUID
    transfer_id: UUID
    amount: Money
    currency: Currency


class ReturnTransfer(Command, internal=True):
    """Put the money of a failed transfer back into its source account, in whatever status the account is.

    An undo must not be refused: the money would be nowhere.
    """

    account_id: UUID
    transfer_id: UUID
    amount: Money


class AccountOpened(Event):
    account_id: UUID
    owner_id: UUID
    currency: str


class MoneyDeposited(Event):
    account_id: UUID
    amount: Decimal
    balance: Decimal


class MoneyWithdrawn(Event, version=2):
    """`balance`: after the withdrawal. None in events of version 1, which lack it: see `balance_after`."""

    account_id: UUID
    amount: Decimal
    balance: Decimal | None


class AccountFrozen(Event):
    account_id: UUID


class AccountUnfrozen(Event):
    account_id: UUID


class AccountClosed(Event):
    account_id: UUID


class TransferSent(Event):
    """TransferSettled or TransferReturned follows, and the account cannot be closed until then."""

    account_id: UUID
    transfer_id: UUID
    amount: Decimal
    balance: Decimal


class TransferSettled(Event):
    account_id: UUID
    transfer_id: UUID


class TransferReceived(Event):
    account_id: UUID
    transfer_id: UUID
    amount: Decimal
    balance: Decimal


class TransferReturned(Event):
    account_id: UUID
    transfer_id: UUID
    amount: Decimal
    balance: Decimal


Movement: TypeAlias = MoneyDeposited | MoneyWithdrawn | TransferSent | TransferReceived | TransferReturned
Shown: TypeAlias = AccountOpened | Movement | AccountFrozen | AccountUnfrozen | AccountClosed
AccountEvent: TypeAlias = Shown | TransferSettled


@dataclass(frozen=True, slots=True)
class Account:
    """The state that a decision about an account needs.

    status: None before the account is opened. held: the amount that each open transfer took out and may bring back.
    """

    status: AccountStatus | None = None
    balance: Decimal = Decimal(0)
    currency: str = ""
    held: Mapping[UUID, Decimal] = field(default_factory=dict[UUID, Decimal])


def open_account(command: OpenAccount, account: Account) -> AccountOpened | AlreadyExists:
    if account.status is not None:
        return AlreadyExists()
    return AccountOpened(account_id=command.account_id, owner_id=command.owner_id, currency=command.currency)


def deposit(command: Deposit, account: Account) -> MoneyDeposited | Unusable:
    if account.status is not AccountStatus.OPEN:
        return _unusable(account, command.account_id)
    balance = account.balance + command.amount
    return MoneyDeposited(account_id=command.account_id, amount=command.amount, balance=balance)


def withdraw(command: Withdraw, account: Account) -> MoneyWithdrawn | Unusable | InsufficientFunds:
    if account.status is not AccountStatus.OPEN:
        return _unusable(account, command.account_id)
    if command.amount > account.balance:
        return InsufficientFunds(balance=account.balance)
    balance = account.balance - command.amount
    return MoneyWithdrawn(account_id=command.account_id, amount=command.amount, balance=balance)


def freeze(command: FreezeAccount, account: Account) -> AccountFrozen | Unusable:
    if account.status is not AccountStatus.OPEN:
        return _unusable(account, command.account_id)
    return AccountFrozen(account_id=command.account_id)


def unfreeze(command: UnfreezeAccount, account: Account) -> AccountUnfrozen | Unusable | None:
    if account.status is AccountStatus.OPEN:
        return None
    if account.status is not AccountStatus.FROZEN:
        return _unusable(account, command.account_id)
    return AccountUnfrozen(account_id=command.account_id)


def close(command: CloseAccount, account: Account) -> AccountClosed | Unusable | AccountNotEmpty:
    if account.status is not AccountStatus.OPEN:
        return _unusable(account, command.account_id)
    if account.balance or account.held:
        return AccountNotEmpty(balance=account.balance + sum(account.held.values()))
    return AccountClosed(account_id=command.account_id)


def send(command: SendTransfer, account: Account) -> TransferSent | Unusable | InsufficientFunds:
    if account.status is not AccountStatus.OPEN:
        return _unusable(account, command.account_id)
    if command.amount > account.balance:
        return InsufficientFunds(balance=account.balance)
    balance = account.balance - command.amount
    return TransferSent(
        account_id=command.account_id, transfer_id=command.transfer_id, amount=command.amount, balance=balance
    )


def settle(command: SettleTransfer, account: Account) -> TransferSettled | AccountNotFound | None:
    if account.status is None:
        return AccountNotFound(account_id=command.account_id)
    if command.transfer_id not in account.held:
        return None
    return TransferSettled(account_id=command.account_id, transfer_id=command.transfer_id)


def receive(command: ReceiveTransfer, account: Account) -> TransferReceived | Unusable | CurrencyMismatch:
    if account.status is not AccountStatus.OPEN:
        return _unusable(account, command.account_id)
    if command.currency != account.currency:
        return CurrencyMismatch(expected=account.currency, actual=command.currency)
    balance = account.balance + command.amount
    return TransferReceived(
        account_id=command.account_id, transfer_id=command.transfer_id, amount=command.amount, balance=balance
    )


def give_back(command: ReturnTransfer, account: Account) -> TransferReturned | AccountNotFound:
    if account.status is None:
        return AccountNotFound(account_id=command.account_id)
    balance = account.balance + command.amount
    return TransferReturned(
        account_id=command.account_id, transfer_id=command.transfer_id, amount=command.amount, balance=balance
    )


def _unusable(account: Account, account_id: UUID) -> Unusable:
    return AccountNotFound(account_id=account_id) if account.status is None else AccountNotOpen(status=account.status)


def evolve_status(account: Account, event: AccountOpened | AccountFrozen | AccountUnfrozen | AccountClosed) -> Account:
    match event:
        case AccountOpened():
            return Account(status=AccountStatus.OPEN, currency=event.currency)
        case AccountFrozen():
            return replace(account, status=AccountStatus.FROZEN)
        case AccountUnfrozen():
            return replace(account, status=AccountStatus.OPEN)
        case AccountClosed():
            return replace(account, status=AccountStatus.CLOSED)
        case _:
            assert_never(event)


def evolve_balance(account: Account, event: Movement) -> Account:
    held = account.held
    if isinstance(event, TransferSent):
        held = {**held, event.transfer_id: event.amount}
    elif isinstance(event, TransferReturned):
        held = _without(held, event.transfer_id)
    return replace(account, balance=balance_after(account.balance, event), held=held)


def evolve_settled(account: Account, event: TransferSettled) -> Account:
    return replace(account, held=_without(account.held, event.transfer_id))


def _without(held: Mapping[UUID, Decimal], transfer_id: UUID) -> dict[UUID, Decimal]:
    return {each: amount for each, amount in held.items() if each != transfer_id}


def balance_after(balance: Decimal, event: Movement) -> Decimal:
    """Return the balance after a movement, given the balance before it."""
    return balance - event.amount if event.balance is None else event.balance


accounts = Decider(
    "account",
    key="account_id",
    initial=Account(),
    decide=[open_account, deposit, withdraw, freeze, unfreeze, close, send, settle, receive, give_back],
    evolve=[evolve_status, evolve_balance, evolve_settled],
)
