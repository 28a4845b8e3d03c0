"""A domain for the tests of generations: things that are counted, and several versions of their read model `Tally`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from msgspec.structs import replace

from headwater import App, Command, Decider, Event, Feature, ReadModel, Recorded, Stop, View
from headwater.config import Settings

QUICK = replace(Settings(), poll_seconds=0.2, lease_seconds=1.0, retired_seconds=3600.0)

F = TypeVar("F", bound=Callable[..., object])


class Count(Command):
    thing_id: UUID


class Counted(Event):
    thing_id: UUID
    by: int = 1


class Removed(Event):
    thing_id: UUID


ThingEvent: TypeAlias = Counted | Removed


def decide(command: Count, state: None) -> list[ThingEvent]:
    return [Counted(thing_id=command.thing_id)]


def evolve(state: None, event: ThingEvent) -> None:
    return None


class Tally(ReadModel, key="thing_id"):
    """The number of times that a thing was counted since its row exists."""

    thing_id: UUID
    count: int
    note: str | None


class Wider(ReadModel, name="Tally", key="thing_id", indexes=["largest"]):
    """The next version of Tally: without `note`, with `largest`, and a thing counted by 13 loses its row."""

    thing_id: UUID
    count: int
    largest: int


class Fragile(ReadModel, name="Tally", key="thing_id", version=3):
    """A version of Tally whose fold raises at a thing counted by 13."""

    thing_id: UUID
    count: int


def fold(row: Tally | None, event: Recorded[ThingEvent]) -> Tally | None:
    if isinstance(event.data, Removed):
        return None
    return Tally(thing_id=event.data.thing_id, count=(row.count if row else 0) + event.data.by, note=None)


def fold_wider(row: Wider | None, event: Recorded[ThingEvent]) -> Wider | None:
    if isinstance(event.data, Removed) or event.data.by == 13:
        return None
    count, largest = (row.count, row.largest) if row else (0, 0)
    return Wider(thing_id=event.data.thing_id, count=count + event.data.by, largest=max(largest, event.data.by))


def fold_fragile(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
    assert isinstance(event.data, Counted)
    if event.data.by == 13:
        raise ZeroDivisionError("a bug in the fold")
    return Fragile(thing_id=event.data.thing_id, count=(row.count if row else 0) + event.data.by)


def annotated(function: F, model: type[ReadModel]) -> F:
    """Return a fold with evaluated annotations. Those of classes that a test defines cannot be looked up by name."""
    function.__annotations__ = {"row": model | None, "event": Recorded[ThingEvent], "return": model | None}
    return function


class Mending:
    """A version of Tally whose fold is wrong until `mended`: like a deploy that changes the fold only."""

    def __init__(self) -> None:
        self.mended = False
        self.view = View(Fragile, annotated(self.fold, Fragile), on_failure=Stop())
        self.app = App([Feature([things], [self.view])])

    @property
    def fold(self) -> Callable[[Fragile | None, Recorded[ThingEvent]], Fragile | None]:
        def fold(row: Fragile | None, event: Recorded[ThingEvent]) -> Fragile | None:
            assert isinstance(event.data, Counted)
            if event.data.by == 13 and not self.mended:
                raise ZeroDivisionError("a bug in the fold")
            step = event.data.by if self.mended else 100
            return Fragile(thing_id=event.data.thing_id, count=(row.count if row else 0) + step)

        return fold


things = Decider(category="thing", key="thing_id", initial=None, decide=decide, evolve=evolve)


def app_with(view: View[Any]) -> App:
    return App([Feature([things], [view])])


old_view, new_view = View(Tally, fold), View(Wider, fold_wider)
old, new, broken = (app_with(view) for view in (old_view, new_view, View(Fragile, fold_fragile, on_failure=Stop())))
