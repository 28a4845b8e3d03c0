"""A shop whose orders have nested values of each kind in commands, events, rows and refusals."""

from __future__ import annotations

import enum
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, TypeAlias, assert_never
from uuid import UUID

import msgspec
from msgspec import Meta

from headwater import App, Command, Decider, Event, Exact, Feature, ReadModel, Recorded, Refusal, Value, View, replace

Price: TypeAlias = Annotated[Decimal, Exact(places=2)]


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Grade(enum.IntEnum):
    LOW = 1
    HIGH = 20


class Spot(Value):
    """A place on earth."""

    latitude: float
    longitude: float


class Address(Value):
    """An address."""

    city: Annotated[str, Meta(min_length=1, description="The name of the city.")]
    street: str | None = None
    since: date | None = None
    size: Size = Size.SMALL
    grade: Grade = Grade.LOW
    rent: Price | None = None
    floors: int = 0
    lift: bool = False
    owner: UUID | None = None
    opens: time | None = None
    wait: timedelta | None = None
    checked: datetime | None = None
    seal: bytes = b""
    spot: Spot | None = None


class Line(Value):
    """One line of an order."""

    sku: str
    quantity: Annotated[int, Meta(ge=1, le=50)] = 1
    price: Price
    notes: list[str] = msgspec.field(default_factory=list)


class Card(Value, tag="card"):
    """A card."""

    card_number: Annotated[str, Meta(pattern=r"^[0-9]{4}\Z", examples=["1234"])]


class BankTransfer(Value, tag="bank_transfer"):
    """A transfer between banks."""

    iban: str


Payment: TypeAlias = Card | BankTransfer


class NoSuchLine(Refusal):
    """The order has no such line."""

    lines: list[Line]
    first: Line | None


class PlaceOrder(Command, creates=True):
    """Order things."""

    order_id: UUID
    lines: Annotated[list[Line], Meta(min_length=1, max_length=20)]
    address: Address | None = None
    payment: Payment | None = None
    labels: dict[str, int] = msgspec.field(default_factory=dict)
    wait: timedelta | None = None
    opens: time | None = None
    seal: bytes = b""
    grade: Grade = Grade.LOW


class ChangeQuantity(Command):
    """Change the quantity of one line."""

    order_id: UUID
    sku: str
    quantity: int


class OrderPlaced(Event):
    lines: tuple[Line, ...]
    address: Address | None
    payment: Payment | None
    labels: dict[str, int]
    wait: timedelta | None
    opens: time | None
    seal: bytes
    grade: Grade
    skus: frozenset[str]


class QuantityChanged(Event):
    sku: str
    quantity: int


OrderEvent: TypeAlias = OrderPlaced | QuantityChanged


class Order(Value):
    lines: tuple[Line, ...] = ()


class OrderView(ReadModel, key="order_id", name="Order"):
    """An order."""

    order_id: UUID
    total: Price
    lines: tuple[Line, ...]
    address: Address | None
    payment: Payment | None
    labels: dict[str, int]
    wait: timedelta | None
    opens: time | None
    seal: bytes
    grade: Grade


def changed(lines: tuple[Line, ...], event: QuantityChanged) -> tuple[Line, ...]:
    """Return the lines with another quantity in one of them."""
    return tuple(replace(line, quantity=event.quantity) if line.sku == event.sku else line for line in lines)


def place_order(command: PlaceOrder, order: Order) -> OrderPlaced:
    return OrderPlaced(
        lines=tuple(command.lines),
        address=command.address,
        payment=command.payment,
        labels=command.labels,
        wait=command.wait,
        opens=command.opens,
        seal=command.seal,
        grade=command.grade,
        skus=frozenset(line.sku for line in command.lines),
    )


def change_quantity(command: ChangeQuantity, order: Order) -> QuantityChanged | NoSuchLine:
    if all(line.sku != command.sku for line in order.lines):
        return NoSuchLine(lines=list(order.lines), first=order.lines[0] if order.lines else None)
    return QuantityChanged(sku=command.sku, quantity=command.quantity)


def evolve(order: Order, event: OrderEvent) -> Order:
    match event:
        case OrderPlaced():
            return Order(lines=event.lines)
        case QuantityChanged():
            return Order(lines=changed(order.lines, event))
        case _:
            assert_never(event)


def fold(row: OrderView | None, event: Recorded[OrderEvent]) -> OrderView:
    match event.data:
        case OrderPlaced() as placed:
            return OrderView(
                order_id=event.stream_id,
                total=total_of(placed.lines),
                lines=placed.lines,
                address=placed.address,
                payment=placed.payment,
                labels=placed.labels,
                wait=placed.wait,
                opens=placed.opens,
                seal=placed.seal,
                grade=placed.grade,
            )
        case QuantityChanged() as change:
            assert row is not None  # an order is placed first
            lines = changed(row.lines, change)
            return replace(row, lines=lines, total=total_of(lines))
        case _:
            assert_never(event.data)


def total_of(lines: tuple[Line, ...]) -> Decimal:
    """Return the price of all lines."""
    return sum((line.price * line.quantity for line in lines), Decimal(0))


orders = Decider("order", key="order_id", initial=Order(), decide=[place_order, change_quantity], evolve=evolve)
order_view = View(OrderView, fold)
shop = App([Feature(deciders=[orders], views=[order_view])])
