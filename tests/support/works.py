"""A domain for the tests of sagas: an order names works to be done one after another, and how each of them behaves."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias, assert_never
from uuid import UUID

from headwater import (
    After,
    App,
    Cancel,
    Command,
    Decider,
    Do,
    Done,
    Event,
    Feature,
    Refusal,
    Refused,
    Saga,
    TimedOut,
    Undo,
)
from headwater.domain.failure_policy import Retry
from headwater.ids import derived_id

NOBODY = UUID(int=0)


class Exists(Refusal):
    """It is there already."""


class WillNot(Refusal):
    """This work is never done."""

    why: str


# -------------------------------------------------------------------------------------------------------------- orders


class PlaceOrder(Command, creates=True):
    """Place an order.

    plan: works by name, in order. The names say how the works behave: `no ...` is refused, `bug ...` raises, `zone ...`
    raises the error of a lost PostgreSQL, `late ...` gets no answer from the log (see tests/sagas/conftest.py), and the
    undo of `... no undo` is refused. With `wait` the order stays open after its works are done.
    patience: the timeout of each work, in seconds.
    """

    order_id: UUID
    plan: list[str]
    patience: int = 0


class ChangeOrder(Command):
    """what: cancel, remind, stop reminding, or anything else."""

    order_id: UUID
    what: str


class CloseOrder(Command):
    """Say how it ended."""

    order_id: UUID
    how: str


class OrderPlaced(Event):
    order_id: UUID
    plan: list[str]
    patience: int


class OrderChanged(Event):
    order_id: UUID
    what: str


class OrderClosed(Event):
    order_id: UUID
    how: str


def place_order(command: PlaceOrder, placed: bool) -> OrderPlaced | Exists:
    if placed:
        return Exists()
    return OrderPlaced(order_id=command.order_id, plan=command.plan, patience=command.patience)


def change_order(command: ChangeOrder, placed: bool) -> OrderChanged:
    return OrderChanged(order_id=command.order_id, what=command.what)


def close_order(command: CloseOrder, placed: bool) -> OrderClosed:
    return OrderClosed(order_id=command.order_id, how=command.how)


def evolve_order(placed: bool, event: OrderPlaced | OrderChanged | OrderClosed) -> bool:
    return True


orders = Decider(
    "order", key="order_id", initial=False, decide=[place_order, change_order, close_order], evolve=evolve_order
)

# --------------------------------------------------------------------------------------------------------------- works


class Work(Command):
    """Do it."""

    work_id: UUID
    name: str


class Unwork(Command):
    """Take it back."""

    work_id: UUID
    name: str


class Worked(Event):
    work_id: UUID
    name: str


class Unworked(Event):
    work_id: UUID
    name: str


@dataclass
class Weather:
    """What the tests change from outside: a decision may depend on it, where a real one must not."""

    forgiving: bool = False


weather = Weather()


def work(command: Work, done: int) -> Worked | WillNot:
    if command.name.startswith("no "):
        return WillNot(why=command.name)
    if command.name.startswith("bug ") and not weather.forgiving:
        raise RuntimeError(f"a bug in {command.name}")
    if command.name.startswith("zone ") and not weather.forgiving:
        raise IsADirectoryError(command.name)
    return Worked(work_id=command.work_id, name=command.name)


def unwork(command: Unwork, done: int) -> Unworked | WillNot:
    if command.name.endswith(" no undo") and not weather.forgiving:
        return WillNot(why=command.name)
    return Unworked(work_id=command.work_id, name=command.name)


def evolve_work(done: int, event: Worked | Unworked) -> int:
    return done + 1


works = Decider("work", key="work_id", initial=0, decide=[work, unwork], evolve=evolve_work)

# ---------------------------------------------------------------------------------------------------------------- saga


class Reminder(Event):
    """The saga's own message."""

    order_id: UUID


@dataclass(frozen=True)
class Known:
    """What the saga remembers."""

    order_id: UUID | None = None
    changes: int = 0
    failures: tuple[str, ...] = ()


Input: TypeAlias = OrderPlaced | OrderChanged | Reminder | Refused[Work] | TimedOut[Work]


def react(known: Known, event: Input) -> list[Do | Undo | After | Cancel | Done]:
    assert known.order_id is not None
    match event:
        case OrderPlaced():
            within = timedelta(seconds=event.patience) if event.patience else None
            steps: list[Do | Undo | After | Cancel | Done] = [
                Do(
                    Work(work_id=derived_id(event.order_id, name), name=name),
                    undo=Unwork(work_id=derived_id(event.order_id, name), name=name),
                    within=within,
                    optional=name.endswith("optional"),
                )
                for name in event.plan
                if name != "wait"
            ]
            return (
                steps if "wait" in event.plan else [*steps, Do(CloseOrder(order_id=event.order_id, how="done")), Done()]
            )
        case OrderChanged(what="cancel"):
            return [Undo(), Do(CloseOrder(order_id=event.order_id, how="cancelled")), Done()]
        case OrderChanged(what="remind"):
            return [After(timedelta(hours=1), Reminder(order_id=event.order_id))]
        case OrderChanged(what="stop reminding"):
            return [Cancel(Reminder)]
        case OrderChanged(what="bug"):
            if not weather.forgiving:
                raise RuntimeError("a bug in react")
            return []
        case OrderChanged(what="zone"):
            if not weather.forgiving:
                raise TimeoutError("a bug in react that looks like a fault of the database")
            return []
        case OrderChanged():
            return []
        case Reminder():
            return [Do(CloseOrder(order_id=event.order_id, how="reminded")), Done()]
        case Refused() | TimedOut():
            if isinstance(event, Refused) and isinstance(event.refusal, WillNot) and "optional" in event.refusal.why:
                return []
            return [Do(CloseOrder(order_id=known.order_id, how=event.code)), Done()]
        case _:
            assert_never(event)


def evolve(known: Known, event: Input) -> Known:
    match event:
        case OrderPlaced():
            return Known(order_id=event.order_id)
        case OrderChanged():
            return Known(known.order_id, known.changes + 1, known.failures)
        case Refused() | TimedOut():
            return Known(known.order_id, known.changes, (*known.failures, event.code))
        case Reminder():
            return known
        case _:
            assert_never(event)


fulfilment = Saga(
    "Fulfilment",
    route="order_id",
    initial=Known(),
    react=react,
    evolve=evolve,
    starts=[OrderPlaced],
    on_failure=Retry(times=1, first=0.001),
    undo_retry=Retry(times=1, first=0.001),
)

app = App(features=[Feature(deciders=[orders, works], sagas=[fulfilment])])
