"""Users, accounts and transfers to look at: `headwater seed bank.seed`."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from bank.accounts.domain import Deposit, FreezeAccount, OpenAccount, Withdraw
from bank.transfers.domain import RequestTransfer
from bank.users.domain import RegisterUser
from headwater import Command, Seed

PEOPLE = {"ada": "Ada Lovelace", "grace": "Grace Hopper", "alan": "Alan Turing"}


def seed(seed: Seed) -> Iterator[tuple[Command, str | None]]:
    """Yield the commands of three people, who have two accounts each: `ada/current` and `ada/savings`."""
    for who, name in PEOPLE.items():
        yield RegisterUser(user_id=seed.id(who), email=f"{who}@example.org", name=name), "registrar"
        for kind, amount in (("current", "1250.00"), ("savings", "8000.00")):
            account = seed.id(f"{who}/{kind}")
            yield OpenAccount(account_id=account, owner_id=seed.id(who), currency="EUR"), f"user {who}"
            yield Deposit(account_id=account, amount=Decimal(amount)), "teller 1"

    yield Withdraw(account_id=seed.id("ada/current"), amount=Decimal("49.90")), "user ada"
    yield (
        RequestTransfer(
            transfer_id=seed.id("rent"),
            from_account_id=seed.id("ada/current"),
            to_account_id=seed.id("grace/current"),
            amount=Decimal("700.00"),
        ),
        "user ada",
    )
    yield (
        RequestTransfer(  # more than there is: it ends as REFUSED
            transfer_id=seed.id("yacht"),
            from_account_id=seed.id("alan/current"),
            to_account_id=seed.id("ada/current"),
            amount=Decimal("90000.00"),
        ),
        "user alan",
    )
    yield FreezeAccount(account_id=seed.id("alan/savings")), "teller 1"
