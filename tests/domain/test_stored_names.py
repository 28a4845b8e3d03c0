"""A name that the database stores is short text of one line; another one is refused when it is declared."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from headwater import (
    Command,
    Decider,
    Do,
    Event,
    Feature,
    Reactor,
    ReadModel,
    Recorded,
    Saga,
    Schedule,
    Upcaster,
)
from headwater.domain.feature import Domain
from headwater.errors import DefinitionError


class Add(Command):
    sum_id: UUID


class Added(Event):
    sum_id: UUID


def decide(command: Add, state: None) -> list[Added]:
    return []


def evolve(state: None, event: Added) -> None:
    return None


def react(state: None, event: Added) -> list[Do]:
    return []


async def send(event: Recorded[Added], key: str) -> None:
    return None


def command(due: datetime) -> Command:
    return Add(sum_id=UUID(int=1))


def named(kind: Any, name: Any, **keywords: Any) -> None:
    class Thing(kind, name=name, **keywords):  # type: ignore[misc,call-arg]  # the kind is a parameter
        sum_id: UUID


DECLARE: dict[str, Callable[[Any], object]] = {
    "a category": lambda name: Decider(name, "sum_id", None, decide, evolve),
    "an event": lambda name: named(Event, name),
    "a command": lambda name: named(Command, name),
    "a read model": lambda name: named(ReadModel, name, key="sum_id"),
    "a schedule": lambda name: Schedule(name, command, every=timedelta(days=1)),
    "the source of an upcaster": lambda name: Upcaster(name, 1),
    "the target of an upcaster": lambda name: Upcaster("Added", 1, to_type=name),
    "a saga": lambda name: Saga(name, route="sum_id", initial=None, react=react, evolve=evolve),
    "a reactor": lambda name: Reactor(name, send),
}
UNSTORABLE = ["", " ", "a\0", "a\nb", "\ud800", "x" * 201, 5, b"x", True]


@pytest.mark.parametrize("name", UNSTORABLE, ids=ascii)
@pytest.mark.parametrize("what", DECLARE)
def test_a_name_that_cannot_be_stored_is_refused(what: str, name: object) -> None:
    with pytest.raises(DefinitionError, match=r"name.* (has 1 to 200 characters|is letters, digits and underscores)"):
        DECLARE[what](name)


@pytest.mark.parametrize("what", DECLARE)
def test_a_name_of_the_most_characters_is_accepted(what: str) -> None:
    DECLARE[what]("x" * 200)


@pytest.mark.parametrize("given", [5, "ab", [5], [None], [Added]], ids=repr)
@pytest.mark.parametrize("name", ["deciders", "views", "upcasters", "sagas", "schedules", "reactors", "invariants"])
def test_a_feature_of_other_things_than_its_declarations_is_refused(name: str, given: Any) -> None:
    with pytest.raises(DefinitionError, match=f"^Feature: {name}=.* must be a list of "):
        Feature(**{name: given})


def test_an_app_of_other_things_than_features_is_refused() -> None:
    features: Any = [Decider("sum", "sum_id", None, decide, evolve)]
    with pytest.raises(DefinitionError, match=r"^App: features=.* must be a list of Features$"):
        Domain(features)
