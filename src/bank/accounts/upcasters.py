"""Accounts: how events that older versions of this code wrote are read today."""

from headwater import Upcaster

upcasters = [
    # A withdrawal of version 1 did not say what it left. Only the events before it know, and an upcaster sees but one
    # event: so it says that it is not known, and whoever folds subtracts the amount.
    Upcaster("MoneyWithdrawn", from_version=1, defaults={"balance": None}),
]
