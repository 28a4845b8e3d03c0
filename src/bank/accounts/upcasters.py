"""Accounts: how events of older versions are read as the classes of today."""

from headwater import Upcaster

upcasters = [
    # Version 1 has no balance. An upcaster sees one event only and cannot compute it, so the balance is None and each
    # fold subtracts the amount.
    Upcaster("MoneyWithdrawn", from_version=1, defaults={"balance": None}),
]
