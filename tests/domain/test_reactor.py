"""Declaring a reactor: what is right is taken, and a mistake stops the start with a sentence."""
# Annotations are evaluated here, so that the classes can stand in the tests that they belong to.

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from bank.accounts.domain import MoneyDeposited, MoneyWithdrawn
from bank.accounts.domain import accounts as account_decider
from headwater import Event, Feature, Park, Reactor, Recorded, Retry, Stop
from headwater.domain.feature import Domain
from headwater.errors import DefinitionError
from headwater.ids import derived_id

GUIDE = Path(__file__).parents[2] / "docs" / "reactors.md"


class Elsewhere(Event):
    thing_id: UUID


async def react(event: Recorded[MoneyDeposited | MoneyWithdrawn], key: str) -> None:
    """Nothing."""


def domain(*reactors: Reactor) -> Domain:
    return Domain([Feature([account_decider]), *(Feature(reactors=[each]) for each in reactors)])


def says(sentence: str) -> Any:
    return pytest.raises(DefinitionError, match=re.escape(sentence).replace(r"\.\.\.", ".*") + "$")


def recorded(stream_id: UUID, event_id: UUID) -> Recorded[MoneyDeposited]:
    data = MoneyDeposited(account_id=UUID(int=1), amount=1, balance=1)  # type: ignore[arg-type]  # it matters not
    return Recorded(data, 1, stream_id, 1, datetime(2026, 1, 1, tzinfo=UTC), event_id, uuid4(), uuid4())


def test_what_is_right_is_taken() -> None:
    made = Reactor("mail", react)
    assert made.events == (MoneyDeposited, MoneyWithdrawn)
    assert made.within == timedelta(seconds=30)
    assert not made.from_start
    assert domain(made, Reactor("ledger", react, on_failure=Park())).reactors[0] is made


def test_the_key_is_of_the_reactor_and_the_event() -> None:
    one, other, event_id = Reactor("one", react), Reactor("other", react), uuid4()
    event = recorded(uuid4(), event_id)
    assert one.key_for(event) == one.key_for(event) == str(derived_id(event_id, "reactor one"))
    assert len({one.key_for(event), other.key_for(event), one.key_for(recorded(event.stream_id, uuid4()))}) == 3


def test_order_is_the_streams_unless_told_otherwise() -> None:
    event = recorded(uuid4(), uuid4())
    assert Reactor("one", react).order_of(event) == event.stream_id
    assert Reactor("one", react, order=lambda data: data.account_id).order_of(event) == UUID(int=1)


def test_a_function_that_cannot_react() -> None:
    def blocking(event: Recorded[MoneyDeposited], key: str) -> None: ...
    async def bare(event, key):  # type: ignore[no-untyped-def]
        pass

    async def naked(event: MoneyDeposited, key: str) -> None: ...
    async def keyless(event: Recorded[MoneyDeposited]) -> None: ...
    async def other_key(event: Recorded[MoneyDeposited], key: UUID) -> None: ...
    async def unknown(event: "Recorded[Nowhere]", key: str) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with says("...blocking must be an async function"):
        Reactor("mail", blocking)  # type: ignore[arg-type]
    for function in (bare, naked, keyless, other_key):
        with says(
            f"...{function.__name__}: its parameters must be annotated Recorded[...], with the events it takes, and "
            "str, for the idempotency key"
        ):
            Reactor("mail", function)  # type: ignore[arg-type]
    with says("...unknown: an annotation cannot be resolved: name 'Nowhere' is not defined"):
        Reactor("mail", unknown)


def test_numbers_and_names_that_make_no_sense() -> None:
    with says("A reactor's name is letters, digits and underscores, not 'a mail'"):
        Reactor("a mail", react)
    with says("mail: within=0:00:00 must be above 0"):
        Reactor("mail", react, within=timedelta(0))
    for policy in (Stop(), Retry(then=Stop())):
        with says("mail: a reactor cannot stop for one event; on_failure ends with Park()"):
            Reactor("mail", react, on_failure=policy)  # type: ignore[arg-type]


def test_an_event_that_does_not_happen() -> None:
    async def react_elsewhere(event: Recorded[MoneyDeposited | Elsewhere], key: str) -> None: ...

    with says("The reactor mail takes Elsewhere, which no decider's evolve takes"):
        domain(Reactor("mail", react_elsewhere))


def test_two_with_one_name() -> None:
    with says("Two of the app's features bring a reactor named 'Mail'"):
        domain(Reactor("mail", react), Reactor("Mail", react))


def test_the_guides_example_is_a_feature_of_the_bank() -> None:
    example = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    said: dict[str, Any] = {"__name__": "guide"}
    exec(example, said)  # it is our own
    made = Domain([Feature([account_decider]), said["feature"]])
    assert [(each.name, each.events) for each in made.reactors] == [("ledger", (MoneyDeposited, MoneyWithdrawn))]
