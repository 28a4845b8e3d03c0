"""A read model's fold, as all who fold take it: the live projection, a rebuild, verify and the past.

What the user's function gives is a row only if it is the row that the event was routed to. Where one of them took
another, the others would not: the live projection knows its rows by the keys of events, PostgreSQL by those of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from headwater.errors import HeadwaterError
from headwater.view import ReadModel, View

M = TypeVar("M", bound=ReadModel)

Fold: TypeAlias = Callable[[UUID, M | None, Any], M | None]
"""From a key, its row or None and an event to the row after it, or None."""


class RowMisplaced(HeadwaterError):
    """A fold gave a row of another key than the event was routed to. It counts as the event's failure."""


def fold_of(view: View[M]) -> Fold[M]:
    """The view's fold.

    Raises, when it is called:
        RowMisplaced.  Whatever the user's function raises.
    """
    fold, key_of_row, name = view.fold, view.key, view.name

    def folded(key: UUID, row: M | None, event: Any) -> M | None:
        after = fold(row, event)
        if after is None or after is row:
            return after
        given = getattr(after, key_of_row)
        if given is not key and given != key:
            raise RowMisplaced(f"the fold gave a row of {name} {given}, for an event that is routed to {key}")
        return after

    return folded
