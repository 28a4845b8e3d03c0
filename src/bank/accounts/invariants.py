"""Accounts: what the events of every log must fulfil. `headwater verify --all` checks it.

`balance` adds up the amounts of each account, `transfer_money` follows the money of each transfer. Together they say
that all balances and the money under way are what was deposited less what was withdrawn.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TypeAlias, assert_never

from bank.accounts.domain import (
    MoneyDeposited,
    MoneyWithdrawn,
    Movement,
    TransferReceived,
    TransferReturned,
    TransferSent,
)
from headwater import Invariant, Recorded, Violation

TransferLeg: TypeAlias = TransferSent | TransferReceived | TransferReturned


def adds_up(before: Decimal | None, event: Recorded[Movement]) -> Decimal:
    """Return the balance of the account. The event must say the same, and it must not be negative."""
    after = (before or Decimal(0)) + _change(event.data)
    if event.data.balance not in (None, after):
        raise Violation(f"the event says that the balance is {event.data.balance}; the amounts add up to {after}")
    if after < 0:
        raise Violation(f"the account is overdrawn: the amounts add up to {after}")
    return after


def _change(movement: Movement) -> Decimal:
    match movement:
        case MoneyDeposited() | TransferReceived() | TransferReturned():
            return movement.amount
        case MoneyWithdrawn() | TransferSent():
            return -movement.amount
        case _:
            assert_never(movement)


def arrives_once(sent: Decimal | None, event: Recorded[TransferLeg]) -> Decimal | None:
    """Return the money that the transfer has under way; None when it has arrived or come back."""
    if isinstance(event.data, TransferSent):
        if sent is not None:
            raise Violation(f"the transfer sends {event.data.amount}, and {sent} is under way already")
        return event.data.amount
    if event.data.amount != sent:
        raise Violation(f"{event.data.amount} of the transfer arrives, and {sent or 0} is under way")
    return None


balance = Invariant("balance", over=Movement, holds=adds_up)
transfer_money = Invariant("transfer_money", over=TransferLeg, holds=arrives_once, key=lambda event: event.transfer_id)
