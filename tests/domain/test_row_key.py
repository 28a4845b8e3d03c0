"""Keys of rows: their stored form, their text and back, and what is refused."""

from __future__ import annotations

from datetime import UTC, date, datetime
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater import Event, ReadModel, Recorded, View
from headwater.domain.row_key import LARGEST_KEY, KeyFields, RowKey
from headwater.errors import DefinitionError
from headwater.testing import folded, recorded

ID = UUID(int=2**127 + 1)


class Unit(Enum):
    DAY = "a:day"
    YEAR = "year@%"


class Odd(StrEnum):
    NAME = "value"


class Placed(Event):
    id_: UUID
    text: str
    number: int
    day: date
    unit: Unit


class Part(ReadModel, key=("text", "number", "day", "unit", "id_")):
    id_: UUID
    text: str
    number: int
    day: date
    unit: Unit


class Named(ReadModel, key="text"):
    text: str
    count: int


def fold_part(row: Part | None, event: Recorded[Placed]) -> Part:
    e = event.data
    return Part(id_=e.id_, text=e.text, number=e.number, day=e.day, unit=e.unit)


def fold_named(row: Named | None, event: Recorded[Placed]) -> Named:
    return Named(text=event.data.text, count=(row.count if row else 0) + 1)


parts, named = View(Part, fold_part).key, View(Named, fold_named).key
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
of_parts = st.tuples(
    texts, st.integers(-(2**63), 2**63 - 1), st.dates(), st.sampled_from([unit.value for unit in Unit]), st.uuids()
)


@given(of_parts, of_parts)
def test_the_text_of_a_key_leads_back_to_it_and_to_no_other(one: Any, other: Any) -> None:
    text = parts.text(one)
    assert parts.read(text) == parts.parse(text) == one
    assert "@" not in text
    assert (parts.text(other) == text) == (one == other)
    assert (parts.number(one) < parts.number(other)) == (one < other)


@given(texts)
def test_a_text_is_a_key_as_it_is(value: str) -> None:
    assert named.take(value) == value
    assert named.parse(named.text(value)) == value


def test_texts_of_keys_can_be_read() -> None:
    assert named.text("ada@example.com") == "ada%40example.com"
    key = parts.take(("a:b%", -1, date(7, 1, 2), Unit.YEAR, ID))
    assert key == ("a:b%", -1, date(7, 1, 2), "year@%", ID)
    assert parts.text(key) == f"a%3Ab%25:-1:0007-01-02:year%40%25:{ID}"
    assert parts.values(key) == ("a:b%", -1, date(7, 1, 2), Unit.YEAR, ID)
    assert named.text("") == ""
    assert named.parse("") == ""


@pytest.mark.parametrize("text", ["a:b", "a@", "%41", "%", "%3a", "a\0", "\ud800"])
def test_a_text_that_no_key_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"text"):
        named.parse(text)


@pytest.mark.parametrize("changed", [{0: "a:b"}, {1: "01"}, {1: "9" * 5000}, {2: "20260131"}, {3: "DAY"}, {4: "1"}])
def test_a_text_of_several_parts_is_read_strictly(changed: dict[int, str]) -> None:
    given = ["a", "1", "2026-01-31", "a%3Aday", str(ID)]
    assert parts.parse(":".join(given)) == ("a", 1, date(2026, 1, 31), "a:day", ID)
    with pytest.raises(ValueError, match=r"\w"):
        parts.parse(":".join(changed.get(place, part) for place, part in enumerate(given)))


@pytest.mark.parametrize("given", [1, None, b"a", ID, ("a",), ["a"]])
def test_a_key_of_another_type_is_refused(given: object) -> None:
    with pytest.raises(TypeError, match=r"^text=.* is no str$"):
        named.take(given)


def test_parts_of_other_types_and_numbers_beyond_64_bits_are_refused() -> None:
    fits: list[Any] = ["a", 1, date(2026, 1, 31), Unit.DAY, ID]
    for place, other in enumerate([b"", True, "2026-01-31", "a:day", str(ID)]):
        with pytest.raises(TypeError, match=rf"^{parts.names[place]}=.* is no "):
            parts.take(tuple(other if n == place else part for n, part in enumerate(fits)))
    with pytest.raises(TypeError, match="is no tuple of"):
        parts.take(fits)
    with pytest.raises(ValueError, match=r"number: Expected a whole number of at most 64 bits"):
        parts.take(("a", 2**63, *fits[2:]))


def test_subclasses_become_the_plain_value() -> None:
    assert type(named.take(Odd.NAME)) is str
    assert named.take(Odd.NAME) == "value"
    key: Any = parts.take(("a", 1, datetime(2026, 1, 31, 23, tzinfo=UTC), Unit.DAY, ID))
    assert type(key[2]) is date


@pytest.mark.parametrize("letter", ["a", "ä", "€", "😀", "%"])
def test_a_key_that_is_too_large_for_an_index_is_cut(letter: str) -> None:
    """It differs from every other key, and its text fits."""
    size = len(named.text(letter).encode())
    assert named.take(letter * (LARGEST_KEY // size)) == letter * (LARGEST_KEY // size)
    one, other = named.take(letter * (LARGEST_KEY // size + 1)), named.take(letter * (LARGEST_KEY // size + 2))
    assert one != other
    assert all(_size(named, key) < 200 for key in (one, other))
    widest: Any = parts.take((letter * 5000, 1, date(2026, 1, 31), Unit.DAY, ID))
    assert widest[1:] == (1, date(2026, 1, 31), "a:day", ID)
    assert _size(parts, widest) < 300


def _size(key: KeyFields, value: RowKey) -> int:
    return len(key.text(value).encode())


def test_a_row_whose_key_is_too_large_is_a_failure_of_its_fold() -> None:
    event = Placed(id_=ID, text="x" * 3000, number=1, day=date(2026, 1, 31), unit=Unit.DAY)
    with pytest.raises(Exception, match=r"a row of Named x{200}\.\.\. \(a key has 2000 bytes at most\)"):
        folded(View(Named, fold_named), [recorded(event)])


def test_a_key_names_fields_that_can_be_keys() -> None:
    class Maybe(ReadModel, key=("text", "day")):
        text: str
        day: date | None

    class Twice(ReadModel, key=("text", "text")):
        text: str

    class Wide(ReadModel, key=tuple(f"f{n}" for n in range(9))):
        f0: int
        f1: int
        f2: int
        f3: int
        f4: int
        f5: int
        f6: int
        f7: int
        f8: int

    def fold(row: Any, event: Recorded[Placed]) -> Any:
        return None

    with pytest.raises(DefinitionError, match="Maybe: its key `day` must be one of its fields, of type UUID, str, int"):
        View(Maybe, fold)
    for model in (Twice, Wide):
        with pytest.raises(DefinitionError, match="its key must have different fields, 8 at most"):
            View(model, fold)
    for key in (1, (), ("text", 1)):
        with pytest.raises(DefinitionError, match="key"):
            type("Bad", (ReadModel,), {"__annotations__": {}}, key=key)
