"""Versions of `Tally` (see `tallies`) that return rows which PostgreSQL rejects."""

from __future__ import annotations

import random
from datetime import datetime
from string import ascii_letters
from typing import Any
from uuid import UUID

from tests.support.tallies import Removed, ThingEvent, annotated, app_with

from headwater import App, ReadModel, Recorded, View, replace
from headwater.domain.failure_policy import OnFailure


class Written(ReadModel, name="Tally", key="thing_id", indexes=["text"]):
    thing_id: UUID
    text: str
    count: int
    at: datetime | None


REJECTED: dict[str, dict[str, Any]] = {
    "text with a zero byte": {"text": "a\0b"},
    "half of a surrogate pair": {"text": "\ud800"},
    "a number beyond bigint": {"count": 2**70},
    "more than an index takes": {"text": "".join(random.Random(1).choices(ascii_letters, k=9000))},
}
"""Fields that PostgreSQL, its driver or an index rejects."""


def rejecting(fields: dict[str, Any], on_failure: OnFailure) -> tuple[View[Any], App]:
    """Return a view whose row gets these fields after a Counted by 13, and whose fold raises after a Counted by 14."""

    def fold_written(row: Written | None, event: Recorded[ThingEvent]) -> Written | None:
        if isinstance(event.data, Removed):
            return None
        row = row or Written(thing_id=event.data.thing_id, text="", count=0, at=None)
        if event.data.by == 13:
            return replace(row, **fields)
        if event.data.by == 14:
            raise ValueError("fourteen")
        return replace(row, count=row.count + event.data.by)

    view = View(Written, annotated(fold_written, Written), on_failure=on_failure)
    return view, app_with(view)
