"""The fields for the rows of a read model are named in English plurals."""

from __future__ import annotations

import pytest

from headwater.domain.plurals import plural


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Account", "Accounts"),
        ("BankAccount", "BankAccounts"),
        ("account", "accounts"),
        ("order_entry", "order_entries"),
        ("Day", "Days"),
        ("Status", "Statuses"),
        ("Address", "Addresses"),
        ("Box", "Boxes"),
        ("Branch", "Branches"),
        ("Epoch", "Epochs"),
        ("Analysis", "Analyses"),
        ("Person", "People"),
        ("SalesPerson", "SalesPeople"),
        ("Shelf", "Shelves"),
        ("Hero", "Heroes"),
        ("Photo", "Photos"),
        ("URL", "URLs"),
        ("Top10", "Top10s"),
        ("Thing_", "Things_"),
        ("DailySales", "DailySales"),
        ("Series", "Series"),
        ("Equipment", "Equipment"),
        ("_", "_s"),
    ],
)
def test_plurals(name: str, expected: str) -> None:
    assert plural(name) == expected
