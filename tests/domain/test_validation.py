"""Foreign input becomes a command, or `InvalidInput` that says where it breaks which rule."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from bank.accounts.domain import Deposit, OpenAccount
from bank.users.domain import RegisterUser
from headwater import Command, Exact
from headwater.domain.messages import InvalidInput
from headwater.domain.validation import command_from

A = UUID(int=1)


class Order(Command):
    order_id: UUID
    notes: list[Annotated[str, Meta(max_length=5)]] = msgspec.field(default_factory=list)
    prices: list[Annotated[Decimal, Exact(places=2)]] | None = None
    count: Annotated[int, Meta(ge=1, le=9)] = 1
    rate: Decimal | None = None
    comment: str | None = None


def refused(command: type[Command], values: dict[str, Any]) -> tuple[list[str], str]:
    answer = command_from(command, values)
    assert isinstance(answer, InvalidInput)
    return answer.path, answer.complaint


# --------------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize(
    "bounds, value, complaint",
    [
        (Exact(), "NaN", "Expected a finite decimal"),
        (Exact(), "sNaN", "Expected a finite decimal"),
        (Exact(), "Infinity", "Expected a finite decimal"),
        (Exact(at_most=5), "-Infinity", "Expected a finite decimal"),
        (Exact(), "1E+27", None),
        (Exact(), "1E+28", "Expected at most 28 digits"),
        (Exact(), "1E-28", None),
        (Exact(), "1E-29", "Expected at most 28 digits"),
        (Exact(), "1E+999999999999", "Expected at most 28 digits"),
        (Exact(), "0E-29", "Expected at most 28 digits"),
        (Exact(digits=4), "1234", None),
        (Exact(digits=4), "12.34", None),
        (Exact(digits=4), "0.1234", None),
        (Exact(digits=4), "12345", "Expected at most 4 digits"),
        (Exact(digits=4), "1E+4", "Expected at most 4 digits"),
        (Exact(digits=4), "1.2345", "Expected at most 4 digits"),
        (Exact(places=2), "1.23", None),
        (Exact(places=2), "1E+3", None),
        (Exact(places=2), "1.234", "Expected at most 2 decimal places"),
        (Exact(places=2), "1.230", "Expected at most 2 decimal places"),
        (Exact(places=0), "1", None),
        (Exact(places=0), "1.0", "Expected at most 0 decimal places"),
        (Exact(above=0), "0", "Expected more than 0"),
        (Exact(above=0), "-0", "Expected more than 0"),
        (Exact(above=0), "1E-20", None),
        (Exact(at_least=Decimal("0.5")), "0.5", None),
        (Exact(at_least=Decimal("0.5")), "0.49", "Expected at least 0.5"),
        (Exact(at_most=5), "5.00", None),
        (Exact(at_most=5), "5.01", "Expected at most 5"),
    ],
)
def test_exact_returns_the_bound_that_a_decimal_breaks(bounds: Exact, value: str, complaint: str | None) -> None:
    assert bounds.complaint(Decimal(value)) == complaint


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value="-1e30", max_value="1e30"))
def test_exact_counts_the_digits_of_the_decimal_written_out(value: Decimal) -> None:
    whole, _, fraction = f"{value.copy_abs():f}".partition(".")
    digits = len(whole.lstrip("0") if value else whole) + len(fraction)
    assert Exact(digits=digits).complaint(value) is None
    assert Exact(digits=digits - 1).complaint(value) == f"Expected at most {digits - 1} digits"
    assert Exact(digits=1000, places=len(fraction)).complaint(value) is None


# ------------------------------------------------------------------------------------------------------------- commands


def test_valid_input_becomes_a_command() -> None:
    values = {"account_id": A, "amount": Decimal("0.10")}
    assert command_from(Deposit, values) == Deposit(account_id=A, amount=Decimal("0.10"))
    given = {"order_id": str(A), "notes": ["a", "é"], "prices": [Decimal("1.5")], "count": 9, "comment": None}
    assert command_from(Order, given) == Order(order_id=A, notes=["a", "é"], prices=[Decimal("1.5")], count=9)


@pytest.mark.parametrize(
    "amount, complaint",
    [
        (Decimal("NaN"), "Expected a finite decimal"),
        (Decimal("-Infinity"), "Expected a finite decimal"),
        (Decimal(0), "Expected more than 0"),
        (Decimal("0.001"), "Expected at most 2 decimal places"),
        (Decimal("1E+18"), "Expected at most 18 digits"),
        # The same complaints about decimals that come as text or as whole numbers.
        ("NaN", "Expected a finite decimal"),
        ("-1", "Expected more than 0"),
        ("0.001", "Expected at most 2 decimal places"),
        (-1, "Expected more than 0"),
        ("1,5", 'Expected a decimal such as "12.50"'),
        (True, "Expected a decimal, got true or false"),
        (None, "Expected a decimal, got nothing"),
    ],
)
def test_an_amount_out_of_bounds_is_invalid_input(amount: object, complaint: str) -> None:
    assert refused(Deposit, {"account_id": A, "amount": amount}) == (["amount"], complaint)


@pytest.mark.parametrize(
    "values, path, complaint",
    [
        ({"email": "ab"}, ["email"], "Expected at least 3 characters"),
        ({"email": "a@" + "b" * 253}, ["email"], "Expected at most 254 characters"),
        ({"email": "a b@c"}, ["email"], "Expected text of another form, such as ada@example.org"),
        ({"name": ""}, ["name"], "Expected at least 1 character"),
        ({"name": "  "}, ["name"], "Expected text of another form, such as Ada Lovelace"),
        ({"name": 5}, ["name"], "Expected text, got a whole number"),
        ({"user_id": "zz"}, ["user_id"], "Expected a UUID"),
        ({"name": "a\0b"}, ["name"], "Expected text without NUL characters and lone surrogates"),
        ({"name": "a\ud800b"}, ["name"], "Expected text without NUL characters and lone surrogates"),
        ({"email": "a@\udfff"}, ["email"], "Expected text without NUL characters and lone surrogates"),
    ],
)
def test_text_that_breaks_a_bound_is_invalid_input_with_its_path(
    values: dict[str, Any], path: list[str], complaint: str
) -> None:
    right = {"user_id": A, "email": "ada@example.org", "name": "Ada"}
    assert command_from(RegisterUser, right) == RegisterUser(user_id=A, email="ada@example.org", name="Ada")
    assert refused(RegisterUser, right | values) == (path, complaint)


def test_a_pattern_must_match_the_whole_value() -> None:
    for currency in ("eur", "EURO", "EU", "EUR ", "EUR\n"):
        path, _ = refused(OpenAccount, {"account_id": A, "owner_id": A, "currency": currency})
        assert path == ["currency"], repr(currency)
    for email in ("a@b@c", "a@b\n", "\na@b", "@ab", "ab@"):
        path, _ = refused(RegisterUser, {"user_id": A, "email": email, "name": "Ada"})
        assert path == ["email"], repr(email)


@pytest.mark.parametrize(
    "values, path, complaint",
    [
        ({"notes": ["ok", "too long"]}, ["notes", "1"], "Expected at most 5 characters"),
        ({"notes": ["ok", "\0"]}, ["notes", "1"], "Expected text without NUL characters and lone surrogates"),
        ({"notes": ["ok", None]}, ["notes", "1"], "Expected text, got nothing"),
        ({"prices": [Decimal("1.5"), Decimal("1.555")]}, ["prices", "1"], "Expected at most 2 decimal places"),
        ({"prices": [Decimal("NaN")]}, ["prices", "0"], "Expected a finite decimal"),
        ({"comment": 5}, ["comment"], "Expected text or nothing, got a whole number"),
        ({"notes": "x"}, ["notes"], "Expected a list, got text"),
        ({"count": 0}, ["count"], "Expected at least 1"),
        ({"count": 10}, ["count"], "Expected at most 9"),
        ({"rate": Decimal("NaN")}, ["rate"], "Expected a finite decimal"),
        ({"comment": "\0"}, ["comment"], "Expected text without NUL characters and lone surrogates"),
    ],
)
def test_the_path_of_an_invalid_list_element_has_its_index(
    values: dict[str, Any], path: list[str], complaint: str
) -> None:
    assert refused(Order, {"order_id": A} | values) == (path, complaint)


def test_a_missing_value_is_invalid_input() -> None:
    assert refused(Deposit, {"account_id": A}) == (["amount"], "Expected a value, got none")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_text_that_postgresql_can_store_is_accepted(text: str) -> None:
    assert command_from(Order, {"order_id": A, "comment": text}) == Order(order_id=A, comment=text)


@given(st.text(), st.sampled_from(["\0", "\ud800", "\udbff", "\udc00", "\udfff"]), st.text())
def test_text_that_postgresql_cannot_store_is_invalid_input(before: str, odd: str, after: str) -> None:
    path, _ = refused(Order, {"order_id": A, "comment": before + odd + after})
    assert path == ["comment"]
