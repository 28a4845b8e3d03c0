"""Filters and orders as Python programs write them, and the error for each that is wrong."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from tests.support.shop import Address, Spot, order_view

from bank.accounts.domain import AccountStatus
from bank.accounts.views import account_view
from headwater.domain.fields import fields_of
from headwater.errors import BadUserInput
from headwater.projections.filter import EVERYTHING, All, Compare, Not, Some
from headwater.projections.given_filter import filter_from, order_from
from headwater.projections.order import Order

OWNER = uuid4()


def test_comparisons_side_by_side_must_all_hold_and_values_are_stored_ones() -> None:
    given = {"status": {"in": [AccountStatus.OPEN, AccountStatus.CLOSED]}, "balance": {"gt": 5, "lte": Decimal(9)}}
    assert filter_from(account_view, given) == All(
        (
            Compare("status", "in", ("OPEN", "CLOSED")),
            Compare("balance", "gt", Decimal(5)),
            Compare("balance", "lte", Decimal(9)),
        )
    )
    assert filter_from(account_view, None) == filter_from(account_view, {}) == EVERYTHING


def test_filters_are_combined() -> None:
    given = {"or": [{"not": {"owner_id": {"eq": OWNER}}}, {"currency": {"starts_with": "E"}}]}
    owner, currency = Compare("owner_id", "eq", OWNER), Compare("currency", "starts_with", "E")
    assert filter_from(account_view, given) == All((Some((All((Not(All((owner,))),)), All((currency,)))),))


def test_filters_and_orders_reach_into_nested_values() -> None:
    address = next(each for each in order_view.fields if each.name == "address")
    city, spot = (next(each for each in fields_of(Address) if each.name == name) for name in ("city", "spot"))
    latitude = fields_of(Spot)[0]
    given = {"address": {"city": {"eq": "Oslo"}, "spot": {"latitude": {"gt": 1.5}}, "is_null": False}}
    assert filter_from(order_view, given) == All(
        (
            Compare("address", "eq", "Oslo", (address, city)),
            Compare("address", "gt", 1.5, (address, spot, latitude)),
            Compare("address", "is_null", False),
        )
    )
    assert order_from(order_view, ["-address.city", "address.spot.latitude"]) == [
        Order("address", True, (address, city)),
        Order("address", False, (address, spot, latitude)),
    ]
    assert filter_from(order_view, {"total": {"gt": Decimal("1.005")}}) == All(
        (Compare("total", "gt", Decimal("1.005")),)
    )


def test_an_order_is_read_from_names() -> None:
    assert order_from(account_view, ["-balance", "currency"]) == [Order("balance", descending=True), Order("currency")]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"balence": {"gt": 5}}, "Account has no column 'balence' for this; did you mean 'balance'?"),
        ({"balance": 5}, 'The filter compares balance with 5; write {"eq": 5}.'),
        ({"currency": {"start_with": "E"}}, "currency cannot be compared by 'start_with'; did you mean 'starts_with'?"),
        ({"status": {"gt": 5}}, "status cannot be compared by 'gt'; it has eq, ne, in, not_in, is_null."),
        ({"balance": {"gt": "5"}}, "balance is compared with '5', which is no Decimal."),
        ({"entry_count": {"eq": True}}, "entry_count is compared with True, which is no int."),
        ({"owner_id": {"eq": None}}, 'owner_id is compared with None; write {"is_null": True}.'),
        ({"owner_id": {"in": "abc"}}, "'in' of owner_id takes a list, not 'abc'."),
        ({"balance": {"eq": Decimal("NaN")}}, "balance is compared with Decimal('NaN'). Expected a finite decimal."),
        ({"or": {"balance": {"gt": 5}}}, "'or' in a filter takes a list of filters, not {'balance': {'gt': 5}}."),
    ],
)
def test_a_wrong_filter_names_its_fault(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadUserInput) as wrong:
        filter_from(account_view, given)
    assert str(wrong.value) == complaint


def test_a_wrong_filter_of_a_nested_value_names_its_fault() -> None:
    for given, complaint in (
        ({"address": {"cty": {"eq": "x"}}}, "Address has no column 'cty' for this; did you mean 'city'?"),
        ({"address": {"city": "x"}}, "The filter compares city with 'x'; write {\"eq\": 'x'}."),
        ({"address": {"seal": {"gt": b""}}}, "seal cannot be compared by 'gt'; it has eq, ne, in, not_in, is_null."),
        (
            {"lines": {"is_null": False}},
            "Order has no column 'lines' for this; it has order_id, total, address, wait, opens, seal, grade.",
        ),
    ):
        with pytest.raises(BadUserInput) as wrong:
            filter_from(order_view, given)
        assert str(wrong.value) == complaint


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("+balance", "Account has no column '+balance' for this; did you mean 'balance'?"),
        (["balance", "-balance"], "The order names balance twice."),
    ],
)
def test_a_wrong_order_names_its_fault(given: str | list[str], complaint: str) -> None:
    with pytest.raises(BadUserInput) as wrong:
        order_from(account_view, given)
    assert str(wrong.value) == complaint
