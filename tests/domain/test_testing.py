"""`headwater.testing.folded` folds as a projection does, and says what a test got wrong."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

import pytest

from headwater import Event, ReadModel, Recorded, View
from headwater.domain.row_fold import RowMisplaced
from headwater.testing import folded, recorded

A, B = UUID(int=1), UUID(int=2)


class Put(Event):
    thing_id: UUID
    size: Decimal


class Lost(Event):
    thing_id: UUID


class Thing(ReadModel, key="thing_id"):
    thing_id: UUID
    size: Decimal
    seen_at: datetime


def fold(row: Thing | None, event: Recorded[Put]) -> Thing:
    return Thing(thing_id=event.data.thing_id, size=event.data.size, seen_at=event.recorded_at)


def fold_to_b(row: Thing | None, event: Recorded[Put]) -> Thing:
    return Thing(thing_id=B, size=event.data.size, seen_at=event.recorded_at)


view = View(Thing, fold)


def put(thing_id: UUID, size: str) -> Recorded[Put]:
    return recorded(Put(thing_id=thing_id, size=Decimal(size)))


def test_a_row_is_returned_in_the_form_in_which_postgresql_returns_it() -> None:
    row = folded(view, [put(A, "1"), put(A, "2E+3")])
    assert row is not None
    assert str(row.size) == "2000"


def test_no_events_leave_no_row() -> None:
    assert folded(view, []) is None


def test_a_value_that_postgresql_cannot_store_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^size: Expected a finite decimal, not Decimal"):
        folded(view, [put(A, "NaN")])


def test_events_of_two_rows_are_an_error_of_the_test() -> None:
    with pytest.raises(AssertionError, match=f"Put is routed to the row {B}; the first event is routed to {A}"):
        folded(view, [put(A, "1"), put(B, "1")])


def test_an_event_that_the_view_does_not_fold_is_an_error_of_the_test() -> None:
    with pytest.raises(AssertionError, match=r"^Thing does not fold Lost"):
        folded(view, [put(A, "1"), recorded(Lost(thing_id=A))])


def test_a_row_with_another_key_is_an_error_as_in_a_projection() -> None:
    with pytest.raises(RowMisplaced):
        folded(View(Thing, fold_to_b), [put(A, "1")])
