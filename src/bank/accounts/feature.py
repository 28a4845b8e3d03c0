"""Accounts: the list of what this feature declares."""

from bank.accounts.domain import accounts as accounts_decider
from bank.accounts.invariants import balance, transfer_money
from bank.accounts.statements import statements
from bank.accounts.upcasters import upcasters
from bank.accounts.views import account_view
from headwater import Feature

accounts = Feature(
    deciders=[accounts_decider],
    views=[account_view],
    upcasters=upcasters,
    reactors=[statements],
    invariants=[balance, transfer_money],
)
