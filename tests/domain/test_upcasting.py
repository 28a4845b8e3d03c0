"""Upcasters: events of older shapes are read in the newest one, and a chain of steps with a gap stops the start."""
# No `from __future__ import annotations`: annotations are evaluated at once, so that they can name classes of a test.

import json
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bank.accounts.domain import Account, AccountStatus, MoneyWithdrawn, accounts
from bank.accounts.views import AccountView, account_view
from bank.main import app
from headwater import Event, Upcaster
from headwater.domain.serialization import Codec
from headwater.errors import DefinitionError, LogError
from headwater.testing import folded, recorded


class Paid(Event, version=3):
    amount: Decimal
    currency: str
    payer: str | None


class Frozen(Event):
    why: str


class Closed(Event, version=2):
    why: str


def full_name(stored: dict[str, Any]) -> dict[str, Any]:
    return {"amount": stored["amount"], "payer": f"{stored['first']} {stored['last']}"}


def status_changed(stored: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return ("Frozen" if stored["status"] == "FROZEN" else "Closed"), {"why": stored["why"]}


RENAMED = Upcaster("Payment", from_version=2, to_type="Paid", to_version=2, to=full_name)
CURRENCY = Upcaster("Paid", from_version=2, defaults={"currency": "EUR"})
SPLIT = Upcaster("StatusChanged", from_version=1, to_type=["Frozen", "Closed"], to=status_changed)
WHY = Upcaster("Closed", from_version=1, to=lambda stored: {"why": stored["why"].upper()})


def codec(*upcasters: Upcaster) -> Codec:
    return Codec([Paid, Frozen, Closed], upcasters)


def says(sentence: str, error: type[Exception] = DefinitionError) -> Any:
    """Expect an error with exactly this message; `...` stands for words of msgspec."""
    return pytest.raises(error, match="^" + re.escape(sentence).replace(r"\.\.\.", ".*") + "$")


# ------------------------------------------------------------------------------------------------------------- reading


def test_an_event_of_the_current_version_is_read_unchanged() -> None:
    event = codec(RENAMED, CURRENCY).decode("Paid", 3, '{"amount": "1.10", "currency": "USD", "payer": null}')
    assert event == Paid(amount=Decimal("1.10"), currency="USD", payer=None)


def test_a_newer_field_has_its_default_in_an_older_event() -> None:
    read = codec(CURRENCY).decode
    assert read("Paid", 2, '{"amount": "1.10", "payer": "Ada"}') == Paid(
        amount=Decimal("1.10"), currency="EUR", payer="Ada"
    )
    assert read("Paid", 2, '{"amount": "1.10", "payer": "Ada", "currency": "USD"}') == Paid(
        amount=Decimal("1.10"), currency="USD", payer="Ada"
    )


class Tagged(Event, version=3):
    tags: list[str]


def test_a_step_that_changes_a_default_does_not_change_the_next_event() -> None:
    def tag(stored: dict[str, Any]) -> dict[str, Any]:
        stored["tags"].append("old")
        return stored

    steps = Upcaster("Tagged", 1, defaults={"tags": []}), Upcaster("Tagged", 2, to=tag)
    read = Codec([Tagged], steps).decode
    assert [read("Tagged", 1, "{}") for _ in range(3)] == [Tagged(tags=["old"])] * 3


def test_steps_with_a_new_name_a_new_shape_and_a_default_follow_one_another() -> None:
    event = codec(RENAMED, CURRENCY).decode("Payment", 2, '{"amount": "5", "first": "Ada", "last": "Lovelace"}')
    assert event == Paid(amount=Decimal(5), currency="EUR", payer="Ada Lovelace")


def test_a_split_chooses_the_type_by_the_data_of_the_event() -> None:
    read = codec(SPLIT, WHY).decode
    assert read("StatusChanged", 1, '{"status": "FROZEN", "why": "asked"}') == Frozen(why="asked")
    assert read("StatusChanged", 1, '{"status": "CLOSED", "why": "asked"}') == Closed(why="ASKED")


def test_reading_a_version_without_a_step_is_an_error() -> None:
    with says("The log holds Paid of version 1; this app reads version 2 and 3", LogError):
        codec(CURRENCY).decode("Paid", 1, "{}")
    with says("The log holds events of type 'Payed', which no class of this app reads", LogError):
        codec(CURRENCY).decode("Payed", 1, "{}")


@pytest.mark.parametrize(
    "to, sentence",
    [
        (
            lambda stored: stored["payer"],
            "The upcaster from Paid version 2 raised KeyError: 'payer'",
        ),
        (
            lambda stored: stored.update(currency="EUR"),
            "The upcaster from Paid version 2 returned None, not a dict",
        ),
        (
            lambda stored: {"amount": "much", "currency": "EUR", "payer": None},
            "A stored Paid of version 2 does not fit Paid after its upcasters: ... - at `$.amount`",
        ),
        (
            lambda stored: {"amount": "1"},
            "A stored Paid of version 2 does not fit Paid after its upcasters: Object missing required field ...",
        ),
    ],
)
def test_the_error_of_a_failing_step_names_it(to: Any, sentence: str) -> None:
    with says(sentence, LogError):
        codec(Upcaster("Paid", from_version=2, to=to)).decode("Paid", 2, '{"amount": "1"}')


@pytest.mark.parametrize("given", [("Lost", {}), {"why": "asked"}, ("Closed",), None])
def test_the_error_of_a_split_into_another_type_names_it(given: Any) -> None:
    split = Upcaster("StatusChanged", from_version=1, to_type=["Frozen"], to=lambda _: given)
    with says(
        f"The upcaster from StatusChanged version 1 returned {given!r}, not (type, dict) with one of its types: Frozen",
        LogError,
    ):
        codec(split).decode("StatusChanged", 1, "{}")


def test_reading_a_text_that_is_no_json_object_is_an_error() -> None:
    with says("A stored Paid of version 2 does not fit its class: ...", LogError):
        codec(CURRENCY).decode("Paid", 2, "[]")


# ----------------------------------------------------------------------------------------------------- names to ask for


def test_stored_names_are_those_of_all_steps_that_lead_to_a_class() -> None:
    all_of_them = codec(RENAMED, CURRENCY, SPLIT, WHY)
    assert all_of_them.stored_names([Paid]) == ["Paid", "Payment"]
    assert all_of_them.stored_names([Frozen]) == ["Frozen", "StatusChanged"]
    assert all_of_them.stored_names([Frozen, Closed]) == ["Closed", "Frozen", "StatusChanged"]
    assert codec().stored_names([Paid]) == ["Paid"]


def test_classes_of_returns_every_class_that_a_stored_kind_may_become() -> None:
    all_of_them = codec(RENAMED, CURRENCY, SPLIT, WHY)
    assert all_of_them.classes_of("StatusChanged", 1) == {Frozen, Closed}
    assert all_of_them.classes_of("Payment", 2) == {Paid}
    assert all_of_them.classes_of("Paid", 3) == {Paid}


# ------------------------------------------------------------------------------------------------ refused at the start


@pytest.mark.parametrize(
    "upcasters, sentence",
    [
        (
            [Upcaster("Paid", from_version=1)],
            "The upcaster from Paid version 1 leads to Paid version 2, but its class has version=3; "
            "add the upcaster from version 2",
        ),
        (
            [Upcaster("Paid", from_version=3)],
            "The upcaster from Paid version 3 is never used, since the class that is stored as 'Paid' has version=3; "
            "raise it to 4, or remove the upcaster",
        ),
        (
            [CURRENCY, Upcaster("Paid", from_version=2)],
            "The upcaster from Paid version 2 is there twice; remove one of them",
        ),
        (
            [Upcaster("Payment", from_version=1, to_type="Payed")],
            "The upcaster from Payment version 1 leads to Payed version 1, which no decider's evolve takes and no "
            "upcaster reads",
        ),
        (
            [Upcaster("Payment", from_version=1)],
            "The upcaster from Payment version 1 leads to Payment version 2, which no decider's evolve takes and no "
            "upcaster reads",
        ),
        (
            [Upcaster("Payment", from_version=1, to_type="Paid", to_version=4)],
            "The upcaster from Payment version 1 leads to Paid version 4, but the class that is stored so has "
            "version=3; raise it, or remove the upcaster",
        ),
        (
            [SPLIT],
            "The upcaster from StatusChanged version 1 leads to Closed version 1, but its class has version=2; "
            "add the upcaster from version 1",
        ),
        (
            [Upcaster("A", from_version=1, to_type="B"), Upcaster("B", from_version=1, to_type="A")],
            "The upcasters go in a circle: A 1 -> B 1 -> A 1; none of these becomes an event of a current class",
        ),
    ],
)
def test_a_chain_that_does_not_end_in_a_current_class_is_refused(upcasters: Sequence[Upcaster], sentence: str) -> None:
    with says(sentence):
        codec(*upcasters)


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"from_version": 0}, "The upcaster from Paid version 0: a version is from 1 to 32767, not 0"),
        (
            {"from_version": 1, "to_type": "New", "to_version": 0},
            "The upcaster from Paid version 1: a version is from 1 to 32767, not 0",
        ),
        (
            {"from_version": 1, "to_version": 3},
            "The upcaster from Paid version 1: `to_version` needs a new name, `to_type`; without one the "
            "version increases by 1",
        ),
        (
            {"from_version": 1, "to_type": []},
            "The upcaster from Paid version 1: `to_type=[]` is empty; name the types that the event becomes",
        ),
        (
            {"from_version": 1, "to_type": ["Frozen", "Closed"]},
            "The upcaster from Paid version 1: with several types it needs a function `to`, which returns (type, dict)",
        ),
    ],
)
def test_contradicting_arguments_of_an_upcaster_are_refused(options: dict[str, Any], sentence: str) -> None:
    with says(sentence):
        Upcaster("Paid", **options)


# ---------------------------------------------------------------------------------------------- any chain, newest shape


@dataclass
class History:
    """A generated chain of upcasters. current: the versions of the current classes. oldest: the kind at its start."""

    upcasters: list[Upcaster]
    current: dict[str, int]
    oldest: tuple[str, int]


def stamping(added: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a step that adds its name to the event."""
    return lambda stored: {**stored, "steps": [*stored["steps"], added]}


def choosing(way: str, stamp: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    return lambda stored: (way, stamp(stored))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Return a chain of up to eight steps: new shapes, defaults, new names, and splits of which one type goes on."""
    upcasters: list[Upcaster] = []
    names = (f"T{number}" for number in range(100))
    name, version = oldest = next(names), draw(st.integers(1, 5))
    others: dict[str, int] = {}
    for number in range(draw(st.integers(0, 8))):
        what = draw(st.sampled_from(["shape", "default", "name", "split"]))
        stamp, to_version = stamping(f"s{number}"), draw(st.integers(1, 5))
        if what == "name":
            new = next(names)
            upcasters.append(Upcaster(name, version, stamp, to_type=new, to_version=to_version))
            name, version = new, to_version
        elif what == "split":
            way, other = next(names), next(names)
            both = draw(st.permutations([way, other]))
            upcasters.append(Upcaster(name, version, choosing(way, stamp), to_type=both, to_version=to_version))
            others[other] = to_version
            name, version = way, to_version
        else:
            defaults = {f"added{number}": number} if what == "default" else {}
            upcasters.append(Upcaster(name, version, stamp, defaults=defaults))
            version += 1
    return History(draw(st.permutations(upcasters)), others | {name: version}, oldest)


def event_class(name: str, version: int, defaults: Sequence[str]) -> type[Event]:
    fields = {"number": int, "steps": list[str], **dict.fromkeys(defaults, int)}
    return types.new_class(name, (Event,), {"version": version}, lambda body: body.update(__annotations__=fields))


@settings(max_examples=200, deadline=None)
@given(histories(), st.integers(-(2**60), 2**60))
def test_any_chain_results_in_the_newest_shape(history: History, number: int) -> None:
    defaults = [name for each in history.upcasters for name in each.defaults]
    classes = [event_class(name, version, defaults) for name, version in history.current.items()]
    codec = Codec(classes, history.upcasters)
    event = codec.decode(*history.oldest, json.dumps({"number": number, "steps": []}))
    assert type(event) is classes[-1]
    assert msgspec.structs.asdict(event) == {  # type: ignore[arg-type]  # type checkers do not see a struct
        "number": number,
        "steps": [f"s{place}" for place in range(len(history.upcasters))],
        **{field: int(field.removeprefix("added")) for field in defaults},
    }
    assert history.oldest[0] in codec.stored_names([type(event)])


# ------------------------------------------------------------------------------------------------------- the bank's own

A = UUID(int=1)


def stored_withdrawal(version: int, **fields: str) -> Event:
    return app.domain.codec.decode(
        "MoneyWithdrawn", version, json.dumps({"account_id": str(A), "amount": "2.50", **fields})
    )


def test_a_withdrawal_of_version_1_has_no_balance() -> None:
    assert stored_withdrawal(1) == MoneyWithdrawn(account_id=A, amount=Decimal("2.50"), balance=None)
    assert stored_withdrawal(2, balance="7.50") == MoneyWithdrawn(
        account_id=A, amount=Decimal("2.50"), balance=Decimal("7.50")
    )


def test_the_decider_subtracts_withdrawals_of_both_versions() -> None:
    before = Account(status=AccountStatus.OPEN, balance=Decimal(10))
    for event in (stored_withdrawal(1), stored_withdrawal(2, balance="7.50")):
        after = accounts.evolved(before, event)
        assert after == Account(status=AccountStatus.OPEN, balance=Decimal("7.50"))


def test_the_read_model_subtracts_withdrawals_of_both_versions() -> None:
    opened = app.domain.codec.decode(
        "AccountOpened", 1, json.dumps({"account_id": str(A), "owner_id": str(A), "currency": "EUR"})
    )
    deposited = app.domain.codec.decode(
        "MoneyDeposited", 1, json.dumps({"account_id": str(A), "amount": "10", "balance": "10"})
    )
    rows = [
        folded(account_view, [recorded(opened), recorded(deposited), recorded(withdrawn)])
        for withdrawn in (stored_withdrawal(1), stored_withdrawal(2, balance="7.50"))
    ]
    assert rows[0] == rows[1]
    assert isinstance(rows[0], AccountView)
    assert rows[0].balance == Decimal("7.50")
