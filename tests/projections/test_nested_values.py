"""Rows with nested values: one canonical form in memory and in PostgreSQL, and a generation for each shape."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from msgspec import Meta

from headwater import Event, Exact, ReadModel, Recorded, Value, View, replace
from headwater.domain.row_fold import fold_of
from headwater.errors import ReadModelRebuilding
from headwater.projections.generations import fingerprint, prepare
from headwater.projections.row_codec import RowCodec, client_reader_of, writer_of
from headwater.projections.row_folder import FoldedRow
from headwater.projections.row_statements import load_sql, upsert_sql
from headwater.testing import recorded

Price: TypeAlias = Annotated[Decimal, Exact(places=2, digits=6)]
EAST = timezone(timedelta(hours=2))
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


class Item(Value):
    price: Price
    at: datetime
    ratio: float = 0.0
    free: Decimal | None = None
    count: Annotated[int, Meta(ge=0)] = 0


class Bag(Value, tag="bag"):
    items: tuple[Item, ...]


class Box(Value, tag="box"):
    colour: Colour


class Kept(Event):
    shelf_id: UUID


class Shelf(ReadModel, key="shelf_id"):
    shelf_id: UUID
    price: Price
    items: tuple[Item, ...]
    content: Bag | Box | None = None
    by_name: dict[str, Item] = msgspec.field(default_factory=dict)


def fold_to(row: Shelf) -> View[Shelf]:
    """Return a view whose fold makes this row."""

    def fold(before: Shelf | None, event: Recorded[Kept]) -> Shelf | None:
        return row

    return View(Shelf, fold)


def folded(row: Shelf) -> Shelf:
    after = fold_of(fold_to(row))(row.shelf_id, None, recorded(Kept(shelf_id=row.shelf_id)))
    assert after is not None
    return after


ITEM = Item(price=Decimal("1.50"), at=NOON, ratio=1.0, free=Decimal(100), count=1)
LAX: Any = Item(price=Decimal("1.5"), at=NOON.astimezone(EAST), ratio=1, free=Decimal("1E+2"), count=1)
SHELF = Shelf(
    shelf_id=uuid4(),
    price=Decimal("2.00"),
    items=(ITEM,),
    content=Bag(items=(ITEM, ITEM)),
    by_name={"a": ITEM, "bb": ITEM, "é": ITEM},
)


async def test_nested_values_of_a_fold_have_the_form_in_which_postgresql_returns_them(
    connection: asyncpg.Connection,
) -> None:
    items: Any = [LAX]
    given = replace(
        SHELF, price=Decimal(2), items=items, content=Bag(items=(LAX, ITEM)), by_name={"bb": LAX, "é": ITEM, "a": ITEM}
    )
    row, view = folded(given), fold_to(given)
    assert exact(row) == exact(SHELF)
    assert list(row.by_name) == ["a", "bb", "é"]

    codec, generation = RowCodec(view), await prepare(connection, view)
    await connection.execute(
        upsert_sql(view, generation.table), *codec.arrays([FoldedRow(row.shelf_id, row, 1, False)])
    )
    record = await connection.fetchrow(load_sql(view, generation.table), [row.shelf_id])
    assert record is not None
    stored = dict(record)
    assert exact(codec.read(stored)) == exact(row)
    assert list(codec.read(stored).by_name) == list(row.by_name)


def exact(row: Shelf) -> str:
    """Return a row as text that shows every digit and zone."""
    return repr(row)


def test_a_row_in_canonical_form_is_returned_as_the_same_object() -> None:
    row = replace(SHELF, by_name={"a": ITEM, "bb": ITEM})
    assert folded(row) is row


@pytest.mark.parametrize(
    "field, value, complaint",
    [
        ("price", Decimal("1.001"), "price: Expected at most 2 decimal places, not Decimal('1.001')"),
        ("price", Decimal("1E+6"), "price: Expected at most 6 digits before the decimal point, not Decimal('1E+6')"),
        (
            "items",
            (ITEM, replace(ITEM, price=Decimal("0.005"))),
            "items.1.price: Expected at most 2 decimal places, not",
        ),
        ("items", (replace(ITEM, at=datetime(2026, 1, 1)),), "items.0.at: Expected a time with a time zone"),  # noqa: DTZ001 - the mistake
        ("items", (replace(ITEM, count=-1),), "Expected `int` >= 0 - at `$[0].count`"),
        ("items", (replace(ITEM, count=2**63),), "items.0.count: Expected a whole number of at most 64 bits, not"),
        ("items", (replace(ITEM, ratio=float("nan")),), "items.0.ratio: Expected a finite number, not"),
        (
            "content",
            Bag(items=(replace(ITEM, free=Decimal("NaN")),)),
            "content.items.0.free: Expected a finite decimal",
        ),
        ("by_name", {"a\0": ITEM}, "by_name: Expected text without NUL characters and lone surrogates as keys, not"),
        ("by_name", {"a": replace(ITEM, at=None)}, "Expected `datetime`, got `null` - at `$[...].at`"),
        ("content", ITEM, "Object missing required field `type`"),
    ],
)
def test_a_row_with_a_value_that_it_cannot_have_is_not_written(field: str, value: Any, complaint: str) -> None:
    [column] = [each for each in fold_to(SHELF).fields if each.name == field]
    with pytest.raises((ValueError, msgspec.ValidationError)) as caught:
        writer_of(column)(value)
    assert str(caught.value).startswith(complaint)


def test_the_rows_are_made_again_when_the_shape_of_a_nested_value_changes() -> None:
    def print_of(**fields: Any) -> str:
        inner: Any = type("Inner", (Value,), {"__annotations__": fields})
        model: Any = type(
            "Outer", (ReadModel,), {"__annotations__": {"shelf_id": UUID, "inner": inner}}, key="shelf_id"
        )

        def fold(row: Any, event: Recorded[Kept]) -> Any:
            return row

        return fingerprint(View(model, fold)).partition(".")[0]

    shapes: list[dict[str, Any]] = [
        {"a": int},
        {"a": str},
        {"a": int, "b": int},
        {"a": int | None},
        {"a": list[int]},
        {"a": Annotated[Decimal, Exact(places=2)]},
        {"a": Annotated[Decimal, Exact(places=3)]},
        {"a": Colour},
        {"a": Box | Bag},
        {"a": dict[str, int]},
        {"a": dict[str, str]},
    ]
    assert len({print_of(**shape) for shape in shapes}) == len(shapes)
    assert print_of(a=int) == print_of(a=int)


def test_a_value_of_another_version_of_the_read_model_is_an_error_for_the_client_that_asks_for_it() -> None:
    [column] = [each for each in fold_to(SHELF).fields if each.name == "items"]
    read = client_reader_of(column)
    assert read(json.dumps([json.loads(msgspec.json.encode(ITEM))])) == (ITEM,)
    with pytest.raises(ReadModelRebuilding, match=r"^items has a value of another version of the read model"):
        read('[{"price": "1.50"}]')
