"""Declarations of reactors: valid ones are accepted, and a mistake stops the start with an error that names it."""
# No `from __future__ import annotations`: annotations are evaluated at once, so that they can name classes of a test.

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
    """Do nothing."""


def domain(*reactors: Reactor) -> Domain:
    return Domain([Feature([account_decider]), *(Feature(reactors=[each]) for each in reactors)])


def says(sentence: str) -> Any:
    return pytest.raises(DefinitionError, match=re.escape(sentence).replace(r"\.\.\.", ".*") + "$")


def recorded(stream_id: UUID, event_id: UUID) -> Recorded[MoneyDeposited]:
    data = MoneyDeposited(account_id=UUID(int=1), amount=1, balance=1)  # type: ignore[arg-type]  # the values do not matter
    return Recorded(data, 1, stream_id, 1, datetime(2026, 1, 1, tzinfo=UTC), event_id, uuid4(), uuid4())


def test_a_valid_reactor_is_accepted() -> None:
    made = Reactor("mail", react)
    assert made.events == (MoneyDeposited, MoneyWithdrawn)
    assert made.within == timedelta(seconds=30)
    assert not made.from_start
    assert domain(made, Reactor("ledger", react, on_failure=Park())).reactors[0] is made


def test_an_idempotency_key_depends_on_the_reactor_and_the_event() -> None:
    one, other, event_id = Reactor("one", react), Reactor("other", react), uuid4()
    event = recorded(uuid4(), event_id)
    assert one.key_for(event) == one.key_for(event) == str(derived_id(event_id, "reactor one"))
    assert len({one.key_for(event), other.key_for(event), one.key_for(recorded(event.stream_id, uuid4()))}) == 3


def test_events_are_ordered_by_stream_unless_the_reactor_has_an_order() -> None:
    event = recorded(uuid4(), uuid4())
    assert Reactor("one", react).order_of(event) == event.stream_id
    assert Reactor("one", react, order=lambda data: data.account_id).order_of(event) == UUID(int=1)


def test_react_must_be_async_and_annotated() -> None:
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


def test_invalid_names_timeouts_and_failure_policies_are_refused() -> None:
    with says("A reactor's name is letters, digits and underscores, not 'a mail'"):
        Reactor("a mail", react)
    with says("mail: within=0:00:00 must be above 0"):
        Reactor("mail", react, within=timedelta(0))
    for policy in (Stop(), Retry(then=Stop())):
        with says("mail: a reactor cannot stop for one event; on_failure ends with Park()"):
            Reactor("mail", react, on_failure=policy)  # type: ignore[arg-type]


def test_a_reactor_cannot_take_an_event_of_no_decider() -> None:
    async def react_elsewhere(event: Recorded[MoneyDeposited | Elsewhere], key: str) -> None: ...

    with says("The reactor mail takes Elsewhere, which no decider's evolve takes"):
        domain(Reactor("mail", react_elsewhere))


def test_two_reactors_cannot_have_one_name() -> None:
    with says("The app has two declarations of a reactor named 'Mail'; rename one of them"):
        domain(Reactor("mail", react), Reactor("Mail", react))


def test_the_example_of_the_guide_is_a_valid_feature() -> None:
    example = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[0]
    names: dict[str, Any] = {"__name__": "guide"}
    exec(example, names)  # the example is our own
    made = Domain([Feature([account_decider]), names["feature"]])
    assert [(each.name, each.events) for each in made.reactors] == [("ledger", (MoneyDeposited, MoneyWithdrawn))]
