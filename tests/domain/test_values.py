"""Values nested in events, states, commands and refusals: read back equal, checked at every depth."""

from __future__ import annotations

import enum
import json
import sys
import types
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, TypeAlias
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from headwater import Command, Do, Event, Exact, Saga, Upcaster, Value, replace
from headwater.domain.fields import fields_of, values_of
from headwater.domain.messages import InvalidInput
from headwater.domain.saga_fold import apply_record, reaction_to, read_command
from headwater.domain.saga_records import SagaHandledEvent
from headwater.domain.saga_state import SagaInstance
from headwater.domain.serialization import Codec, StateCodec, encode
from headwater.domain.validation import command_from
from headwater.errors import DefinitionError, LogError, UnreadableEvent
from headwater.testing import recorded

A, B = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Grade(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Place(Value):
    """A seat."""

    row: Annotated[int, Meta(ge=1)]
    letter: str = "A"


class OrderLine(Value):
    """One line of an order."""

    ticket_type_id: UUID
    quantity: Annotated[int, Meta(ge=1, le=50)] = 1
    price: Annotated[Decimal, Exact(above=0, places=2)] | None = None
    seats: list[Place] = msgspec.field(default_factory=list)


class Card(Value, tag="card"):
    number: Annotated[str, Meta(pattern=r"^[0-9]{4}\Z", examples=["1234"])]


class BankTransfer(Value, tag="bank_transfer"):
    iban: str


Payment: TypeAlias = Card | BankTransfer


class Tree(Value):
    """A value that contains itself, as events and states can."""

    name: str
    branches: tuple[Tree, ...] = ()


class Placed(Event, version=2):
    """Each kind of type that an event carries."""

    order_id: UUID
    lines: list[OrderLine]
    first: OrderLine | None
    payment: Payment
    by_size: dict[Size, int]
    by_id: dict[UUID, OrderLine]
    labels: dict[str, str]
    raw: bytes
    wait: timedelta
    opens: time
    day: date
    grade: Grade
    pair: tuple[int, Decimal]
    names: tuple[str, ...]
    tags: frozenset[str]
    tree: Tree
    loose: dict[str, Any]


PLACED = Placed(
    order_id=A,
    lines=[OrderLine(ticket_type_id=B, quantity=2, price=Decimal("1.50"), seats=[Place(row=3)])],
    first=None,
    payment=Card(number="1234"),
    by_size={Size.LARGE: 3},
    by_id={A: OrderLine(ticket_type_id=A)},
    labels={"ä": "ö"},
    raw=b"\0\xff",
    wait=-timedelta(hours=1, microseconds=1),
    opens=time(9, 30),
    day=date(2026, 1, 31),
    grade=Grade.HIGH,
    pair=(1, Decimal("0.10")),
    names=("a", "b"),
    tags=frozenset(["y", "x"]),
    tree=Tree(name="root", branches=(Tree(name="leaf"),)),
    loose={"a": [1, {"b": None}]},
)


# --------------------------------------------------------------------------------------------------------------- events


def test_an_event_with_nested_values_is_read_back_equal() -> None:
    again = Codec([Placed]).decode("Placed", 2, encode(PLACED))
    assert again == PLACED
    assert json.loads(encode(PLACED))["payment"] == {"type": "card", "number": "1234"}


class Labelled(Event):
    tags: frozenset[str]


def test_a_set_is_stored_in_order_so_that_each_process_writes_the_same_bytes() -> None:
    assert encode(Labelled(tags=frozenset(map(str, range(20))))) == json.dumps(
        {"tags": sorted(map(str, range(20)))}, separators=(",", ":")
    )


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"lines": [PLACED.lines[0], OrderLine(ticket_type_id=A, quantity=0)]}, "Expected `int` >= 1 - at `$.lines[1]"),
        (
            {"first": OrderLine(ticket_type_id=A, price=Decimal("NaN"))},
            "first.price breaks a rule: Expected a finite",
        ),
        (
            {"tree": Tree(name="", branches=(Tree(name="a\0"),))},
            "tree.branches.0.name breaks a rule: Expected",
        ),
        ({"tree": Tree(name="\ud800")}, "can't encode character"),
        ({"loose": {"deep": [{"er": 2**70}]}}, "its field loose.deep.0.er breaks a rule: Expected a whole number"),
        (
            {"labels": {"a\0": ""}},
            "its field labels breaks a rule: Expected text without NUL characters",
        ),
        ({"pair": (1, Decimal("Infinity"))}, "its field pair.1 breaks a rule: Expected a finite decimal"),
        (
            {"opens": time(9, tzinfo=UTC)},
            "opens breaks a rule: Expected a time of day without a time zone",
        ),
        ({"payment": PLACED.tree}, "Object missing required field `type` - at `$.payment"),
    ],
)
def test_an_event_is_not_written_when_a_nested_value_breaks_a_rule(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UnreadableEvent) as caught:
        encode(replace(PLACED, **changes))
    assert sentence in str(caught.value)


def test_an_event_that_is_nested_too_deep_is_not_written() -> None:
    deep: Any = {}
    for _ in range(sys.getrecursionlimit() * 2):
        deep = {"a": deep}
    with pytest.raises(UnreadableEvent, match="recursion"):
        encode(replace(PLACED, loose=deep))


def test_upcasters_change_nested_values() -> None:
    def with_quantities(stored: dict[str, Any]) -> dict[str, Any]:
        return {**stored, "lines": [{"ticket_type_id": each, "quantity": 1} for each in stored.pop("tickets")]}

    old = json.loads(encode(PLACED))
    del old["lines"]
    codec = Codec([Placed], [Upcaster("Placed", 1, with_quantities)])
    read = codec.decode("Placed", 1, json.dumps(old | {"tickets": [str(B)]}))
    assert read == replace(PLACED, lines=[OrderLine(ticket_type_id=B)])
    with pytest.raises(LogError, match=r"does not fit Placed after its upcasters: Invalid UUID - at `\$\.lines\[0\]"):
        codec.decode("Placed", 1, json.dumps(old | {"tickets": ["x"]}))


# --------------------------------------------------------------------------------------------------------------- states


class Cart(Value):
    lines: tuple[OrderLine, ...] = ()
    payment: Payment | None = None
    seen: frozenset[UUID] = frozenset()
    by_id: dict[UUID, int] = msgspec.field(default_factory=dict)
    tree: Tree | None = None


def test_a_state_with_nested_values_has_snapshots() -> None:
    codec = StateCodec(Cart)
    cart = Cart(
        lines=tuple(PLACED.lines),
        payment=BankTransfer(iban="DE"),
        seen=frozenset([A, B]),
        by_id={A: 1},
        tree=PLACED.tree,
    )
    assert codec.decode(codec.encode(cart)) == cart


def test_the_shape_of_a_state_changes_with_that_of_its_nested_values() -> None:
    def shape_with(**fields: Any) -> str:
        inner = msgspec.defstruct("Inner", list(fields.items()), bases=(msgspec.Struct,))
        return StateCodec(list[inner]).shape  # type: ignore[valid-type]  # made here

    assert len({shape_with(a=int), shape_with(a=str), shape_with(b=int), shape_with(a=int, b=int)}) == 4


# ------------------------------------------------------------------------------------------------------------- commands


class PlaceOrder(Command):
    order_id: UUID
    lines: Annotated[list[OrderLine], Meta(min_length=1, max_length=3)]
    payment: Payment | None = None
    labels: dict[str, Annotated[str, Meta(max_length=3)]] = msgspec.field(default_factory=dict)
    grade: Grade = Grade.LOW
    wait: timedelta | None = None
    opens: time | None = None
    raw: Annotated[bytes, Meta(max_length=2)] = b""


LINE = {"ticket_type_id": str(B)}
RIGHT: dict[str, Any] = {"order_id": A, "lines": [LINE]}


def test_nested_input_becomes_values() -> None:
    given = RIGHT | {
        "lines": [{"ticket_type_id": B, "price": Decimal("2.00"), "seats": [{"row": 1}]}],
        "payment": {"type": "card", "number": "1234"},
        "labels": {"a": "b"},
        "grade": Grade.HIGH,
        "opens": time(9),
    }
    assert command_from(PlaceOrder, given) == PlaceOrder(
        order_id=A,
        lines=[OrderLine(ticket_type_id=B, price=Decimal("2.00"), seats=[Place(row=1)])],
        payment=Card(number="1234"),
        labels={"a": "b"},
        grade=Grade.HIGH,
        opens=time(9),
    )


def refused(command: type[Command], values: dict[str, Any]) -> InvalidInput:
    answer = command_from(command, values)
    assert isinstance(answer, InvalidInput)
    return answer


@pytest.mark.parametrize(
    "changes, path, complaint",
    [
        ({"lines": []}, "lines", "Expected at least 1 value"),
        ({"lines": [LINE] * 4}, "lines", "Expected at most 3 values"),
        ({"lines": [LINE, LINE, LINE | {"quantity": 0}]}, "lines.2.quantity", "Expected at least 1"),
        ({"lines": [LINE | {"quantity": 51}]}, "lines.0.quantity", "Expected at most 50"),
        ({"lines": [LINE | {"quantity": None}]}, "lines.0.quantity", "Expected a whole number, got nothing"),
        ({"lines": [LINE | {"price": Decimal("0.001")}]}, "lines.0.price", "Expected at most 2 decimal places"),
        ({"lines": [LINE | {"price": Decimal("NaN")}]}, "lines.0.price", "Expected a finite decimal"),
        ({"lines": [LINE | {"seats": [{"row": 1}, {"row": 0}]}]}, "lines.0.seats.1.row", "Expected at least 1"),
        ({"lines": [{}]}, "lines.0.ticket_type_id", "Expected a value, got none"),
        ({"lines": [None]}, "lines.0", "Expected an object, got nothing"),
        (
            {"lines": [LINE | {"quantty": 1}]},
            "lines.0.quantty",
            "There is no field of this name; did you mean `quan",
        ),
        (
            {"payment": {"type": "card", "number": "12x"}},
            "payment.number",
            "Expected text of another form, such as 1",
        ),
        ({"payment": {"type": "cash"}}, "payment.type", "Invalid value 'cash'"),
        (
            {"payment": {"type": "bank_transfer", "iban": "\0"}},
            "payment.iban",
            "Expected text without NUL characters and",
        ),
        ({"labels": {"a": "long"}}, "labels.a", "Expected at most 3 characters"),
        ({"labels": {"a\0": ""}}, "labels", "Expected text without NUL characters and lone surrogates as keys"),
        ({"labels": {"a": "\ud800"}}, "labels.a", "Expected text without NUL characters and lone surrogates"),
        ({"wait": "1 h"}, "wait", 'Expected a duration such as "PT90S"'),
        ({"opens": "9"}, "opens", 'Expected a time of day such as "12:00:00"'),
        ({"opens": "09:00:00Z"}, "opens", "Expected a time of day without a time zone"),
        ({"raw": "?"}, "raw", "Expected bytes in base64"),
        ({"raw": b"abc"}, "raw", "Expected at most 2 bytes"),
        ({"grade": 9}, "grade", "Invalid enum value 9"),
    ],
)
def test_input_that_breaks_a_rule_of_a_nested_value_is_refused_with_its_path(
    changes: dict[str, Any], path: str, complaint: str
) -> None:
    caught = refused(PlaceOrder, RIGHT | changes)
    assert ".".join(caught.path) == path
    assert caught.complaint.startswith(complaint)


def test_input_names_every_value_that_breaks_a_rule() -> None:
    given = {
        "lines": [
            {"quantity": 0, "seats": [{"row": 0, "letter": 1}], "colour": "red"},
            {"ticket_type_id": "x", "price": "1.001"},
            LINE,
            LINE | {"quantity": "1"},
        ],
        "payment": {"type": "card"},
        "labels": {"a": "long", "b": 1, "c": "ok"},
        "opens": "9",
    }
    caught = refused(PlaceOrder, given)
    assert [(".".join(each.path), each.message) for each in caught.errors] == [
        ("order_id", "Expected a value, got none"),
        ("lines", "Expected at most 3 values"),
        ("lines.0.colour", "There is no field of this name; the known ones are ticket_type_id, quantity, price, seats"),
        ("lines.0.ticket_type_id", "Expected a value, got none"),
        ("lines.0.quantity", "Expected at least 1"),
        ("lines.0.seats.0.row", "Expected at least 1"),
        ("lines.0.seats.0.letter", "Expected text, got a whole number"),
        ("lines.1.ticket_type_id", "Expected a UUID"),
        ("lines.1.price", "Expected at most 2 decimal places"),
        ("lines.3.quantity", "Expected a whole number, got text"),
        ("payment.number", "Expected a value, got none"),
        ("labels.a", "Expected at most 3 characters"),
        ("labels.b", "Expected text, got a whole number"),
        ("opens", 'Expected a time of day such as "12:00:00"'),
    ]
    many = refused(PlaceOrder, RIGHT | {"labels": dict.fromkeys(map(str, range(10_000)), 1)})
    assert len(many.errors) == 100


def test_a_command_with_nested_values_survives_the_records_of_a_saga() -> None:
    command = PlaceOrder(
        order_id=A,
        lines=[OrderLine(ticket_type_id=B, price=Decimal("1.00"), seats=[Place(row=1)])],
        payment=Card(number="1234"),
        labels={"a": "b"},
        wait=timedelta(hours=1),
        opens=time(9),
        raw=b"\1",
    )

    def react(state: None, event: Placed) -> list[Do]:
        return [Do(command)]

    def evolve(state: None, event: Placed) -> None:
        return None

    instance: SagaInstance[None] = SagaInstance(Saga("seller", "order_id", None, react, evolve), A, None)
    then = reaction_to(instance, PLACED, "cause", NOON)
    record = SagaHandledEvent(saga="seller", at=NOON, key=A, position=1, event_id=B, type="Placed", then=then)
    again = Codec([SagaHandledEvent]).decode("SagaHandledEvent", 1, encode(record))
    assert again == record, "a record in memory is the same as one that is read"
    apply_record(instance, recorded(record), PLACED)
    assert instance.first_step is not None
    assert read_command({"PlaceOrder": PlaceOrder}, instance.first_step) == command


# -------------------------------------------------------------------------------------------------------------- classes


def test_values_are_frozen_keyword_only_and_compared_by_their_fields() -> None:
    assert Place(row=1) == Place(row=1, letter="A")
    assert len({Place(row=1), Place(row=1)}) == 1
    with pytest.raises(AttributeError, match="immutable"):
        Place(row=1).row = 2  # type: ignore[misc]  # the mistake
    with pytest.raises(TypeError):
        Place(1)  # type: ignore[call-arg]  # the mistake


def test_values_of_returns_each_class_once_inner_ones_first() -> None:
    assert list(values_of(fields_of(PlaceOrder))) == [Place, OrderLine, Card, BankTransfer]


@pytest.mark.parametrize(
    "keywords, namespace, complaint",
    [
        ({"tga": "x"}, {}, "Odd: the class keyword `tga` is unknown; did you mean `tag`?"),
        ({"tag": 5}, {}, "Odd: tag=5 must be text"),
        ({"name": 5}, {}, "Odd: its name has 1 to 200 characters that can be printed on one line, not 5"),
        ({"tag": "x"}, {"type": str}, "Odd: `tag_field='type' conflicts with an existing field of that name"),
    ],
)
def test_a_wrong_declaration_of_a_value_is_an_error(
    keywords: dict[str, Any], namespace: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(DefinitionError) as caught:
        types.new_class("Odd", (Value,), keywords, lambda body: body.update({"__annotations__": namespace}))
    assert str(caught.value) == complaint
