"""The fold of a read model as Headwater calls it: in the live projection, a rebuild, verify and reads of the past.

The user's fold is wrapped, so that all of them get the same rows:

- The row must have the key that its event was routed to. Rows in memory are found by the key of the event, and rows in
  PostgreSQL by the key of the row; the two must not differ.
- Its values are in canonical form, so that a row in memory is the same as one read from the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from headwater.domain.canonical_values import canonical_form_of, with_canonical
from headwater.domain.messages import Recorded
from headwater.domain.read_model import ReadModel, View
from headwater.domain.row_key import LARGEST_KEY, RowKey
from headwater.errors import HeadwaterError

M = TypeVar("M", bound=ReadModel)

Fold: TypeAlias = Callable[[RowKey, M | None, Recorded[Any]], M | None]
"""From a key, its row or None and an event to the row after the event, or None."""


LONGEST_SHOWN = 200
"""Characters of a misplaced row's key in the error."""


class RowMisplaced(HeadwaterError):
    """A fold returned a row with another key than the event was routed to. It counts as a failure of the fold."""


def fold_of(view: View[M]) -> Fold[M]:
    """Return the view's fold with the check of the key and with canonical values.

    The returned function raises:
        RowMisplaced: the row has another key.
        Exception: the user's fold raised it.
    """
    fold, takes_key = view.fold, view.takes_key
    is_uuid, key_of_row, values = view.key.is_uuid, view.key.of_model, view.key.values
    forms = [(each.name, form) for each in view.fields if (form := canonical_form_of(each)) is not None]

    def folded(key: Any, row: M | None, event: Recorded[Any]) -> M | None:
        after = fold(row, event, values(key)) if takes_key else fold(row, event)
        if after is None or after is row:
            return after
        given = key_of_row(after)
        # Comparing two UUID objects is slow.
        if given is not key and (getattr(given, "int", None) != key.int if is_uuid else given != key):
            raise _misplaced(view, given, key)
        return with_canonical(after, forms) if forms else after

    return folded


def _misplaced(view: View[M], given: Any, key: RowKey) -> RowMisplaced:
    try:
        text = view.key.text(given)
    except AttributeError:  # a value of another type than its field
        text = str(given)
    if len(text) > LONGEST_SHOWN:
        text = f"{text[:LONGEST_SHOWN]}... (a key has {LARGEST_KEY} bytes at most)"
    return RowMisplaced(
        f"the fold returned a row of {view.name} {text}, for an event that is routed to {view.key.text(key)}"
    )
