"""Declarations that must not type-check: each line that is marked `# error` is reported by mypy and by pyright.

Those marked `# error of pyright` pass mypy, which finds an event type that no event has. No other line is reported.
"""
# pyright: strict

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from headwater import (
    Command,
    Context,
    Decider,
    Do,
    Done,
    Event,
    Invariant,
    Projection,
    Reactor,
    ReadModel,
    Recorded,
    Refusal,
    Refused,
    Saga,
    Upcaster,
    Value,
    View,
    replace,
)


class Full(Refusal):
    size: int


class Fill(Command):
    box_id: UUID


class Filled(Event):
    box_id: UUID
    amount: Decimal


class Other(Event):
    other_id: UUID


class Box(ReadModel, key="box_id"):
    box_id: UUID


class Size(Value):
    width: Decimal


class TagOfNumber(Value, tag=5):  # error: a tag is text
    width: Decimal


class ColouredValue(Value, colour="red"):  # error: no keyword of a value
    width: Decimal


Size(Decimal(1))  # error: a value is keyword-only
Size(width="1")  # error: text is no decimal
Size(width=Decimal(1)).width = Decimal(2)  # error: a value is frozen


class VersionOfText(Event, version="2"):  # error: a version is an int
    box_id: UUID


class NameOfNumber(Event, name=2):  # error: a name is text
    box_id: UUID


class Coloured(Event, colour="red"):  # error: no keyword of an event
    box_id: UUID


class Versioned(Command, version=2):  # error: a command has no version
    box_id: UUID


class Coded(Refusal, code="CODED"):  # error: no keyword of a refusal
    box_id: UUID


class CreatesBox(Command, creates="box"):  # error: creates is a bool
    box_id: UUID


class Keyless(ReadModel):  # error: a read model needs a key
    box_id: UUID


class KeyOfField(ReadModel, key=UUID):  # error: a key is the name of a field
    box_id: UUID


class IndexedByNumber(ReadModel, key="box_id", indexes=[1]):  # error: an index names columns
    box_id: UUID


class PluralOfNumber(ReadModel, key="box_id", plural=2):  # error: a plural is text
    box_id: UUID


class Misspelled(ReadModel, key="box_id", indexs=["box_id"]):  # error: no keyword of a read model
    box_id: UUID


replace("row", box_id=UUID(int=1))  # error: text is no row
Fill(UUID(int=1))  # error: fields are keywords
Filled(box_id=UUID(int=1))  # error: a field is missing
Filled(box_id=UUID(int=1), amount="1")  # error: a field of another type
Full(length=1)  # error: a fact that the refusal does not have


def decide(command: Fill, state: int) -> list[Filled]:
    command.box_id = UUID(int=2)  # error: messages are frozen
    return []


def decide_seeing(command: Fill, state: int, context: Context) -> Filled | None:
    state_of_it: str = context.seen.of(boxes, command.box_id)  # error: the state is an int
    context.actor = state_of_it  # error: a context is frozen
    return Full(size=1)  # error: a refusal that the annotation does not name


def decide_text(command: Fill, state: str) -> Filled:
    raise NotImplementedError


def decide_to_text(command: Fill, state: int) -> str:
    return ""


def decide_to_texts(command: Fill, state: int) -> list[str]:
    return []


def decide_four(command: Fill, state: int, context: Context, more: int) -> None:
    return None


async def async_decide(command: Fill, state: int) -> Filled:
    raise NotImplementedError


def evolve(state: int, event: Filled) -> int:
    return state


def evolve_to_text(state: int, event: Filled) -> str:
    return ""


async def async_evolve(state: int, event: Filled) -> int:
    return state


def consults_pairs(command: Fill) -> Sequence[tuple[object, UUID]]:
    return []


boxes = Decider("box", "box_id", 0, decide, evolve)
Decider("box", "box_id", "0", decide, evolve)  # error: the initial state is no int
Decider("box", "box_id", 0, [decide, decide_text], evolve)  # error: one decides another state
Decider("box", "box_id", 0, decide_text, evolve)  # error: it decides another state
Decider("box", "box_id", 0, decide_to_text, evolve)  # error: a text is neither an event nor a refusal
Decider("box", "box_id", 0, [decide_to_texts], evolve)  # error: texts are no events
Decider("box", "box_id", 0, decide_four, evolve)  # error: nothing follows the context
Decider("box", "box_id", 0, async_decide, evolve)  # error: decide is async
Decider("box", "box_id", 0, decide, evolve_to_text)  # error: evolve returns another state
Decider("box", "box_id", 0, decide, [evolve, async_evolve])  # error: evolve is async
Decider("box", "box_id", 0, decide, evolve, consults=consults_pairs)  # error: a pair is no Consult


def react(state: int, event: Filled | Refused[Fill]) -> list[Do[Fill] | Done]:
    if isinstance(event, Refused):
        return [Do(event.command, undo=event.command.inverse)]  # error: the command does not have that field
    return [Do(Command())]  # error: the annotation names another command


def react_to_text(state: int, event: Filled) -> list[str]:
    return []


def react_to_an_event(state: int, event: Refused[Filled]) -> list[Done]:  # error: an event is no command
    return []


Saga("s", "box_id", 0, react, evolve)
Saga("s", "box_id", "0", react, evolve)  # error: the initial state is no int
Saga("s", "box_id", 0, [react_to_text], evolve)  # error: a text is no reaction


def fold(row: Box | None, event: Recorded[Filled]) -> Box | None:
    return row


def fold_bare(row: Box | None, event: Filled) -> Box | None:
    return row


def fold_to_text(row: Box | None, event: Recorded[Filled]) -> str:
    return ""


async def async_fold(row: Box | None, event: Recorded[Filled]) -> Box | None:
    return row


def route_to_text(event: Filled) -> str:
    return ""


def route_to_other(event: Recorded[Filled]) -> float:
    return 0.5


def route_recorded(event: Recorded[Other]) -> UUID:
    return event.data.other_id


def route_other(event: Other) -> UUID:
    return event.other_id


View(Filled, fold)  # error: an event is no read model
View(Box, fold_bare)  # error: a fold takes the recorded event
View(Box, fold_to_text)  # error: a fold returns a row
View(Box, async_fold)  # error: a fold is not async
View(Box, [fold, fold_to_text])  # error: one of the folds returns no row
View(Box, fold, route=route_to_other)  # error: a route returns keys
View(Box, fold, route=route_other)  # error: the route takes the recorded event
View(Box, fold, route=route_recorded)  # error of pyright: the route takes another event than the fold


def holds(before: int | None, event: Recorded[Filled]) -> int:
    return 1


def holds_bare(before: int | None, event: Filled) -> int:
    return 1


def holds_to_text(before: int | None, event: Recorded[Filled]) -> str:
    return ""


def holds_always(before: int, event: Recorded[Filled]) -> int:
    return before


async def async_holds(before: int | None, event: Recorded[Filled]) -> int:
    return 1


Invariant("balance", over=Box, holds=holds)  # error: a read model is no event
Invariant("balance", over=Other, holds=holds)  # error: it does not take that event
Invariant("balance", over=Filled, holds=holds_bare)  # error: it takes the recorded event
Invariant("balance", over=Filled, holds=holds_to_text)  # error: it returns what it was given
Invariant("balance", over=Filled, holds=holds_always)  # error: there is nothing before the first event
Invariant("balance", over=Filled, holds=async_holds)  # error: an invariant is not async
Invariant("balance", over=Filled, holds=holds, key=route_to_text)  # error: a key is a UUID
Invariant("balance", over=Filled, holds=holds, key=route_other)  # error: the key takes another event


def rename(stored: dict[str, object]) -> str:
    return ""


async def async_rename(stored: dict[str, object]) -> dict[str, object]:
    return stored


Upcaster("Filled", from_version=1, to=rename)  # error: an upcaster returns fields
Upcaster("Filled", from_version=1, to=async_rename)  # error: an upcaster is not async


async def send(event: Recorded[Filled], key: str) -> None:
    return None


def send_at_once(event: Recorded[Filled], key: str) -> None:
    return None


async def clear(connection: AsyncConnection) -> None:
    return None


def index_at_once(connection: AsyncConnection, batch: Sequence[Recorded[Filled]]) -> None:
    return None


Reactor("send", send, order=route_other)  # error of pyright: the order takes another event
Projection("index", events=[Filled], handle=index_at_once, reset=clear)  # error: a handler is async
Projection("index", events=[Filled], handle=send, reset=clear)  # error: a handler takes a connection and a batch
Reactor("send", send_at_once)  # error: a reactor is async
